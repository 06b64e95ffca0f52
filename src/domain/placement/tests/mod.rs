//! The decision, by its parts: the funnel cause by cause, bound projects, the rules of `EnsureAllocation`, the strategies, and the
//! whole against an oracle.

mod against_oracle;
mod bound;
mod fit;
mod funnel;
mod refusals;
mod relocations;
mod rules;
mod strategies;
