//! The folder of a run.
//!
//! | file | written |
//! |---|---|
//! | `config.toml` | at the start: the resolved configuration |
//! | `metrics.jsonl` | one line an epoch, see [`EpochRecord`] |
//! | `events.out.tfevents.l2b` | the same for TensorBoard, see [`crate::events`] |
//! | `best.safetensors` | when the test accuracy rises: weights |
//! | `last.safetensors` | after each epoch: weights |
//! | `checkpoint.safetensors` | at the start and after each epoch: weights, momentum, counters; the previous one stays as `checkpoint.previous.safetensors` |
//! | `sample_weights.safetensors` | at the end: see [`crate::epoch_log::SampleWeights::encode`] |
//! | `summary.json` | at the end, see [`Summary`] |
//!
//! Each file is written whole or not at all, the checkpoint last: a run killed at any moment goes on from the last
//! complete epoch, and writes the same bits again for what came after it. [`RunFolder`] reads and may do so beside the
//! process that trains; [`RunWriter`] is that process's, and there is one at a time.

mod writer;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::RunConfig;
use crate::data::dataset::hex;
use crate::data::labels::Overlay;
use crate::device::Device;
use crate::epoch_log::EpochRecord;
use crate::task::Task;
use crate::tensor_file::TensorFile;
use crate::train::{State, Trainer, fit_to_task};
use crate::weights::{encode, restore, restore_flat, state_dict};
use crate::{Error, Result};

pub use writer::RunWriter;

/// Where runs and comparisons go that are given no folder.
pub const RUNS: &str = "runs";

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const EVENTS: &str = "events.out.tfevents.l2b";
const BEST: &str = "best.safetensors";
const LAST: &str = "last.safetensors";
const CHECKPOINT: &str = "checkpoint.safetensors";
const PREVIOUS: &str = "checkpoint.previous.safetensors";
const SAMPLE_WEIGHTS: &str = "sample_weights.safetensors";
const SUMMARY: &str = "summary.json";

/// Metadata keys of a checkpoint.
const STATE: &str = "state";
const FINGERPRINT: &str = "dataset_fingerprint";
const LABELS: &str = "labels_sha256";

/// Prefix of momentum buffers in a checkpoint.
const MOMENTUM: &str = "momentum.";

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub version: String,
    pub method: String,
    pub device: String,
    pub precision: String,
    pub seed: u64,
    pub epochs: u32,
    pub steps: u32,
    pub train_images: u32,
    pub clean_images: u32,
    pub test_images: u32,
    pub noise_kind: String,
    /// Rate asked for; null where the labels are as given.
    pub noise_nominal: Option<f64>,
    /// Fraction of the train labels that are wrong; null where that is not known.
    pub noise_realised: Option<f64>,
    /// On the test split, 0 to 1. The best epoch is chosen on the test split itself.
    pub best_accuracy: f64,
    pub best_epoch: u32,
    pub last_accuracy: f64,
    /// Wall-clock time of all epochs, evaluations included.
    pub seconds: f64,
    /// Train images per second, evaluations not counted.
    pub images_per_second: f64,
    /// Device memory held.
    pub peak_bytes: usize,
    pub parameters: usize,
    /// Of the train split.
    pub dataset: String,
    pub dataset_fingerprint: String,
    /// Hash over the tensors of `last.safetensors`: equal for runs that ended in the same bits.
    pub weights_sha256: String,
}

/// The folder of a run, to read from.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder of a run, to read from, and its configuration. `option` is what named it.
    ///
    /// # Errors
    /// `Config` where this is no run folder or its configuration is damaged, `Io`.
    pub fn open(option: &str, path: &Path) -> Result<(Self, RunConfig)> {
        let folder = RunFolder {
            path: path.to_owned(),
        };
        if !folder.file(CONFIG).is_file() {
            let hint = "give the folder that `l2b train` wrote";
            return Err(Error::config(
                option,
                "a run folder",
                path.display().to_string(),
                hint,
            ));
        }
        let config = RunConfig::from_toml(&folder.file(CONFIG))?.resolve()?;
        Ok((folder, config))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// All records so far.
    ///
    /// # Errors
    /// `Io`; `Data` for a line that is no record.
    pub fn metrics(&self) -> Result<Vec<EpochRecord>> {
        let path = self.file(METRICS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let record = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| {
                let what = format!("line {}", number + 1);
                Error::data(&path, what, "the record of an epoch", e.to_string(), "")
            })
        };
        text.lines().enumerate().map(record).collect()
    }

    /// The newest checkpoint that is whole, and where it is.
    fn checkpoint(&self) -> Result<(PathBuf, TensorFile)> {
        let path = self.file(CHECKPOINT);
        match TensorFile::load(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) => {
                let previous = self.file(PREVIOUS);
                // The newer one tells why, should both be unusable.
                let file = TensorFile::load(&previous).map_err(|_| error)?;
                Ok((previous, file))
            }
        }
    }

    /// Brings a new trainer to where the run stopped, and returns the path of the checkpoint that says where. Changes nothing
    /// in the folder, which another process may be writing.
    ///
    /// # Errors
    /// `Data` where both checkpoints are missing or damaged, or belong to another dataset, other labels or other clean
    /// images.
    pub fn restore<D: Device>(&self, trainer: &mut Trainer<D>) -> Result<PathBuf> {
        let (path, file) = self.checkpoint()?;
        let fingerprint = &trainer.task.overlay.fingerprint;
        let found = file.metadata.get(FINGERPRINT).map_or("none", String::as_str);
        if found != fingerprint {
            let hint = "the run was started on another dataset";
            return Err(Error::data(&path, FINGERPRINT, fingerprint, found, hint));
        }
        // Checkpoints of earlier versions say nothing of the labels.
        let (labels, found) = (labels_sha256(&trainer.task.overlay), file.metadata.get(LABELS));
        if let Some(found) = found.filter(|found| **found != labels) {
            let hint = match &trainer.config.labels {
                Some(path) => format!("{} has been replaced since the run was started", path.display()),
                None => format!("{CONFIG} has been changed since"),
            };
            return Err(Error::data(&path, LABELS, labels, found, hint));
        }
        let state: State = file.json(&path, STATE)?;
        let (epochs, steps) = (trainer.config.epochs, trainer.steps_per_epoch());
        if state.epoch > epochs || u64::from(state.step) != u64::from(state.epoch) * u64::from(steps) {
            let expected = format!("at most {epochs} epochs of {steps} steps");
            let found = format!("{} epochs, {} steps", state.epoch, state.step);
            let hint = format!("{CONFIG} has been changed since");
            return Err(Error::data(&path, STATE, expected, found, hint));
        }
        let (device, model) = (&trainer.engine.device, &trainer.engine.model);
        restore(device, model, &path, &file)?;
        restore_flat(device, model, &model.momentum, &path, &file, MOMENTUM)?;
        trainer.continue_from(state)?;
        Ok(path)
    }
}

/// Hash of what a run is told of its train split: labels and which images are clean.
fn labels_sha256(overlay: &Overlay) -> String {
    let mut hash = Sha256::new();
    hash.update((overlay.labels.len() as u64).to_le_bytes());
    overlay
        .labels
        .iter()
        .for_each(|label| hash.update(label.to_le_bytes()));
    overlay
        .meta_index
        .iter()
        .for_each(|id| hash.update(id.to_le_bytes()));
    hex(&hash.finalize())
}

/// Weights of a run as they are now.
fn weights_file<D: Device>(trainer: &Trainer<D>) -> Result<TensorFile> {
    let (device, model) = (&trainer.engine.device, &trainer.engine.model);
    let tensors = state_dict(device, model, trainer.statistics_updates())?;
    Ok(encode(tensors, &trainer.description()))
}

/// What a run came to.
///
/// # Errors
/// Those of the device.
pub fn summary<D: Device>(trainer: &Trainer<D>) -> Result<Summary> {
    let Trainer {
        config,
        task,
        engine,
        state,
        ..
    } = trainer;
    Ok(Summary {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: config.method.name().to_owned(),
        device: engine.device.name(),
        precision: config.precision().name().to_owned(),
        seed: config.seed,
        epochs: state.epoch,
        steps: state.step,
        train_images: task.train.len(),
        clean_images: task.meta.len(),
        test_images: task.test.len(),
        noise_kind: task.overlay.kind.clone(),
        noise_nominal: task.overlay.nominal,
        noise_realised: task.clean_known.then_some(task.overlay.realised),
        best_accuracy: state.best_accuracy,
        best_epoch: state.best_epoch,
        last_accuracy: state.last_accuracy,
        seconds: state.seconds,
        images_per_second: state.train_images as f64 / state.train_seconds,
        peak_bytes: engine.bytes(),
        parameters: engine.model.program.parameter_count(),
        dataset: task.manifest.name.clone(),
        dataset_fingerprint: task.overlay.fingerprint.clone(),
        weights_sha256: weights_file(trainer)?.tensors_sha256(),
    })
}

/// Opens the task of a configuration and completes the configuration with it. Relative paths become absolute, so that
/// a resume does not depend on the working folder.
///
/// # Errors
/// As [`Task::open`] and [`fit_to_task`].
pub fn prepare(config: &mut RunConfig) -> Result<Task> {
    let task = Task::open(config)?;
    fit_to_task(config, &task)?;
    if !config.is_bundled() {
        config.data = fs::canonicalize(&config.data).map_err(|e| Error::io(&config.data, e))?;
    }
    if let Some(labels) = &mut config.labels {
        *labels = fs::canonicalize(&*labels).map_err(|e| Error::io(&*labels, e))?;
    }
    Ok(task)
}
