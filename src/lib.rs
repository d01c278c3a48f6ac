pub mod arch;
pub mod device;
pub mod error;
mod layer;
pub mod net;

pub use error::{Error, Result};
