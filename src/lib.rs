pub mod arch;
pub mod atomic;
pub mod commands;
pub mod data;
pub mod device;
pub mod engine;
pub mod error;
mod layer;
pub mod meta_step;
pub mod model;
pub mod net;
pub mod random;
pub mod step;

pub use error::{Error, Result};
