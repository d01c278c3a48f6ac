//! The subcommands of the binary: arguments, and functions that do the work through the library and print to `out`.

pub mod bench;
pub mod compare;
pub mod data;
pub mod devices;
pub mod eval;
pub mod meta_step;
pub mod numerics;
pub mod predict;
pub mod train;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::dataset::Dataset;
use crate::data::manifest::Manifest;
use crate::data::split::Subset;
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Precision, Visitor, with_device};
use crate::engine::{Engine, EngineOptions};
use crate::evaluate::{batch_sizes, probabilities, set_table};
use crate::net::Reuse;
use crate::task;
use crate::tensor_file::TensorFile;
use crate::weights::{self, Description};
use crate::{Error, Result};

/// Prints to `out`.
fn print(out: &mut dyn Write, text: &str) -> Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("standard output", e))
}

/// A bar of a length that may be set later; draws on a terminal only.
fn progress_bar(length: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// On what to compute.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// auto, cpu, cuda[:N] or emulator
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Number format
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Threads of the CPU device [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
}

impl DeviceArgs {
    /// Hands the device to `visitor`.
    fn visit<V: Visitor>(&self, visitor: V) -> Result<V::Output> {
        with_device(self.device, self.precision, self.threads, visitor)
    }
}

/// Trained weights and the images to put through them.
#[derive(Args, Debug)]
pub struct PredictionArgs {
    /// Weights file of a run: last.safetensors or best.safetensors
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// `digits` (in the binary) or a dataset folder
    #[arg(long, default_value = crate::config::BUNDLED)]
    data: PathBuf,
    /// Split of the dataset
    #[arg(long, default_value = "test")]
    split: String,
    /// Read with positional reads instead of a memory map
    #[arg(long)]
    no_mmap: bool,
    /// Images per step
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    eval_batch: u32,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What a network says about a split.
struct Predictions {
    set: Subset,
    classes: Vec<String>,
    /// [n][classes]
    probabilities: Vec<f64>,
}

impl PredictionArgs {
    /// Reads weights and data, and predicts.
    fn predict(&self) -> Result<Predictions> {
        let (file, description) = weights::load(&self.weights)?;
        let dataset = task::open(&self.data, self.no_mmap)?;
        self.check(&description, &dataset)?;
        let set = Subset::clean(dataset.split(&self.split)?);
        // Inputs are normalised as in training, whatever this dataset's own statistics are.
        let (mean, std) = (description.mean.clone(), description.std.clone());
        let manifest = Manifest {
            mean,
            std,
            ..dataset.manifest().clone()
        };
        let probabilities = self.device.visit(Predict {
            args: self,
            file: &file,
            description: &description,
            manifest: &manifest,
            set: &set,
        })?;
        Ok(Predictions {
            set,
            classes: description.classes,
            probabilities,
        })
    }

    fn check(&self, description: &Description, dataset: &Dataset) -> Result<()> {
        let (network, data) = (&description.architecture, dataset.manifest());
        let image = [data.height as usize, data.width as usize, data.channels as usize];
        let expected = [network.image_size[0], network.image_size[1], network.in_channels];
        for (what, expected, found) in [
            (
                "image size [H, W, C]",
                format!("{expected:?}"),
                format!("{image:?}"),
            ),
            (
                "classes",
                format!("{:?}", description.classes),
                format!("{:?}", data.classes),
            ),
        ] {
            if expected != found {
                let hint = "the weights were trained on another kind of dataset";
                return Err(Error::data(dataset.folder(), what, expected, found, hint));
            }
        }
        Ok(())
    }
}

struct Predict<'a> {
    args: &'a PredictionArgs,
    file: &'a TensorFile,
    description: &'a Description,
    manifest: &'a Manifest,
    set: &'a Subset,
}

impl Visitor for Predict<'_> {
    type Output = Vec<f64>;

    fn visit<D: Device>(self, device: D) -> Result<Vec<f64>> {
        let model = weights::build(&device, &self.args.weights, self.file, self.description)?;
        let sizes = batch_sizes(self.set.len(), self.args.eval_batch);
        sizes
            .iter()
            .try_for_each(|&size| model.program.check_batch(size))?;
        let mut engine = Engine::new(device, model, EngineOptions::default(), &sizes, Reuse::ByLifetime)?;
        set_table(&engine, self.manifest)?;
        probabilities(&mut engine, self.set, self.args.eval_batch, None)
    }
}
