//! Datasets: reading, writing, label noise, the clean set, batches and augmentation.

pub mod augment;
pub mod bundled;
pub mod dataset;
mod guard;
pub mod idx;
pub mod labels;
pub mod loader;
pub mod manifest;
pub mod meta_draw;
pub mod noise;
pub mod pack;
pub mod source;
pub mod split;
pub mod writer;
