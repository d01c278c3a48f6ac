//! `l2b meta-step`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;
use crate::device::Device;
use crate::device::choice::Visitor;
use crate::engine::InnerProduct;
use crate::{Result, meta_step};

/// Do one L2B step on a batch given in a file, to compare with another implementation
#[derive(Args, Debug)]
pub struct MetaStepArgs {
    /// Safetensors file with parameters, momentum, batches and settings
    #[arg(long)]
    input: PathBuf,
    /// Safetensors file to write
    #[arg(long)]
    output: PathBuf,
    /// How the gradients' inner products are computed
    #[arg(long, value_enum, default_value_t = InnerProduct::Tangent)]
    inner_product: InnerProduct,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs `l2b meta-step`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &MetaStepArgs) -> Result<()> {
    args.device.visit(Step(args))
}

struct Step<'a>(&'a MetaStepArgs);

impl Visitor for Step<'_> {
    type Output = ();

    fn visit<D: Device>(self, device: D) -> Result<()> {
        meta_step::run(device, &self.0.input, &self.0.output, self.0.inner_product)
    }
}
