//! The decision, by its parts: the funnel cause by cause, bound projects, the rules of `EnsureAllocation`, the strategies, the
//! indexes against a look at every server, and the whole against an oracle.

mod against_oracle;
mod bound;
mod fit;
mod funnel;
mod indexed;
mod refusals;
mod relocations;
mod rules;
mod strategies;
