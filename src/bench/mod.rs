//! `l2b bench`: what the device could do, and what operations, phases, steps and the loader make of it.

pub mod alone;
pub mod case;
pub mod compare;
pub mod machine;
pub mod measure;
pub mod record;
pub mod run;
pub mod serve;
pub mod table;
pub mod trace;
pub mod workload;

use crate::arch::{Architecture, ModelName};

/// The pre-activation residual network that is measured.
pub fn preact(
    width: usize,
    blocks: Vec<usize>,
    image_size: [usize; 2],
    in_channels: usize,
    num_classes: usize,
) -> Architecture {
    Architecture {
        model: ModelName::PreactResnet18,
        width,
        blocks,
        in_channels,
        image_size,
        num_classes,
    }
}
