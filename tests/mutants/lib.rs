//! The domain by itself, as scripts/mutants changes and tests it.

pub mod domain;
