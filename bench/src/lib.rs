//! Scenarios and tools that make load.
