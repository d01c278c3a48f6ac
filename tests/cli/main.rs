//! The binary from outside.

mod bench;
mod readme;
mod refusals;
mod runs;
