pub mod device;
pub mod error;
pub use error::{Error, Result};
