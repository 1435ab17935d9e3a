//! The lab, and what builds and checks this repository.
