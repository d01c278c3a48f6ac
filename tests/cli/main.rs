//! The binary from outside.

mod bench;
mod refusals;
mod runs;
