//! Bad input: every field of every request, each with what it must not be. It is refused by its path, all bad fields at once,
//! and nothing is written and nothing of the inside told.

mod allocations;
mod any;
mod inventory;
mod wire;
