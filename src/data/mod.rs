//! Datasets: reading, writing, label noise, the clean set, batches and augmentation.

pub mod dataset;
pub mod labels;
pub mod manifest;
pub mod noise;
pub mod source;
pub mod split;
pub mod writer;
