//! The binary from outside.

mod bench;
mod compare;
mod folders;
mod measure;
mod readme;
mod refusals;
mod runs;
