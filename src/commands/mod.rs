//! The subcommands of the binary: arguments, and functions that do the work through the library and print to `out`.

pub mod data;
