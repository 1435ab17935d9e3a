//! Whole meshes in the lab, one file per capability.
