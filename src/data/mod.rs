//! Datasets: reading, writing, label noise, the clean set, batches and augmentation.

pub mod dataset;
pub mod manifest;
pub mod source;
pub mod writer;
