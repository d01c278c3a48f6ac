pub mod arch;
pub mod device;
pub mod error;
mod layer;
pub mod model;
pub mod net;
pub mod random;

pub use error::{Error, Result};
