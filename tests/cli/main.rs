//! The binary from outside.

mod bench;
mod measure;
mod readme;
mod refusals;
mod runs;
