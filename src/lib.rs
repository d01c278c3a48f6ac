pub mod atomic;
pub mod commands;
pub mod data;
pub mod device;
pub mod error;
pub mod random;
pub use error::{Error, Result};
