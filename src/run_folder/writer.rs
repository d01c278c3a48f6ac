//! Writing the folder of a run: by one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::{
    BEST, CHECKPOINT, CONFIG, EVENTS, FINGERPRINT, LABELS, LAST, METRICS, MOMENTUM, PREVIOUS, RUNS,
    RunFolder, SAMPLE_WEIGHTS, STATE, SUMMARY, Summary, labels_sha256, summary, weights_file,
};
use crate::atomic::{self, NewFolder};
use crate::config::RunConfig;
use crate::device::Device;
use crate::epoch_log::EpochRecord;
use crate::events;
use crate::tensor_file::TensorFile;
use crate::train::Trainer;
use crate::weights::{state_dict, stored};
use crate::{Error, Result};

/// The folder of a run that this process trains.
#[derive(Debug)]
pub struct RunWriter {
    folder: RunFolder,
    /// `config.toml`, locked until this is dropped or the process ends, in whatever way.
    _lock: File,
}

impl RunWriter {
    /// A new folder with the configuration and a checkpoint of the start, there only when both are: that of the
    /// configuration, or else `runs/METHOD-SEED-N` for the lowest N from 1 that is free.
    ///
    /// # Errors
    /// `Io`, also if the path is taken; those of the device.
    pub fn create<D: Device>(trainer: &Trainer<D>) -> Result<Self> {
        let config = &trainer.config;
        let base = Path::new(RUNS).join(format!("{}-{}", config.method.name(), config.seed));
        let new = NewFolder::create(config.out.as_ref().unwrap_or(&base))?;
        let inside = RunFolder {
            path: new.path().to_owned(),
        };
        let path = inside.file(CONFIG);
        atomic::write_file(&path, config.to_toml()?.as_bytes())?;
        let mut writer = RunWriter {
            folder: inside,
            _lock: lock(&path)?,
        };
        writer.save_checkpoint(trainer)?;
        writer.folder.path = match &config.out {
            Some(out) => new.commit_first([out.clone()])?,
            None => new.commit_first(atomic::numbered(&base))?,
        };
        Ok(writer)
    }

    /// Takes over the folder of a run that nobody trains, and removes what a killed process was writing.
    ///
    /// # Errors
    /// As [`RunFolder::open`]; `Config` where another process trains it.
    pub fn open(path: &Path) -> Result<(Self, RunConfig)> {
        let (folder, config) = RunFolder::open("--resume", path)?;
        let writer = RunWriter {
            _lock: lock(&folder.file(CONFIG))?,
            folder,
        };
        writer.remove_temporary()?;
        Ok((writer, config))
    }

    /// Removes temporary files, see `atomic.rs`.
    fn remove_temporary(&self) -> Result<()> {
        let io = |e| Error::io(self.path(), e);
        for entry in fs::read_dir(self.path()).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') && name.contains(".tmp-") {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// As [`RunFolder::restore`]. A newer checkpoint that is damaged gives way to the one before it.
    ///
    /// # Errors
    /// As [`RunFolder::restore`], `Io`.
    pub fn restore<D: Device>(&self, trainer: &mut Trainer<D>) -> Result<()> {
        let taken = self.folder.restore(trainer)?;
        let path = self.folder.file(CHECKPOINT);
        if taken != path {
            // The next checkpoint moves this one aside: that must be the good one.
            fs::rename(&taken, &path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }

    /// Files of an epoch that has just been done.
    ///
    /// # Errors
    /// `Io`, those of the device.
    pub fn save_epoch<D: Device>(&self, trainer: &Trainer<D>, record: &EpochRecord) -> Result<()> {
        let weights = weights_file(trainer)?;
        if trainer.state.best_epoch == trainer.state.epoch {
            weights.save(&self.folder.file(BEST))?;
        }
        weights.save(&self.folder.file(LAST))?;
        self.save_metrics(record)?;
        if trainer.is_done() {
            trainer
                .sample_weights
                .encode()
                .save(&self.folder.file(SAMPLE_WEIGHTS))?;
        }
        self.save_checkpoint(trainer)
    }

    /// Rewrites the metrics with one line more, without lines of epochs that a resume does again, and brings the events
    /// along.
    fn save_metrics(&self, record: &EpochRecord) -> Result<()> {
        let earlier = self.folder.metrics()?;
        let mut records = earlier.clone();
        records.retain(|r| r.epoch < record.epoch);
        let again = records.len() < earlier.len();
        records.push(record.clone());
        let mut text = String::new();
        for record in &records {
            let line =
                serde_json::to_string(record).map_err(|e| Error::Internal(format!("{METRICS}: {e}")))?;
            text.push_str(&line);
            text.push('\n');
        }
        atomic::write_file(&self.folder.file(METRICS), text.as_bytes())?;
        if again {
            events::rewrite(&self.folder.file(EVENTS), &records)
        } else {
            events::append(&self.folder.file(EVENTS), record)
        }
    }

    fn save_checkpoint<D: Device>(&self, trainer: &Trainer<D>) -> Result<()> {
        let (device, model) = (&trainer.engine.device, &trainer.engine.model);
        let mut tensors = state_dict(device, model, trainer.statistics_updates())?;
        for (name, tensor) in model.read_flat(device, &model.momentum)? {
            tensors.insert(format!("{MOMENTUM}{name}"), stored::<D>(&tensor));
        }
        let mut file = TensorFile {
            tensors,
            ..TensorFile::default()
        };
        let state = serde_json::to_string(&trainer.state).map_err(|e| Error::Internal(e.to_string()))?;
        file.metadata.insert(STATE.into(), state);
        file.metadata
            .insert(FINGERPRINT.into(), trainer.task.overlay.fingerprint.clone());
        file.metadata
            .insert(LABELS.into(), labels_sha256(&trainer.task.overlay));
        let path = self.folder.file(CHECKPOINT);
        if path.exists() {
            // From here to the end of `save` the previous one is the only one; `resume` knows it.
            let previous = self.folder.file(PREVIOUS);
            fs::rename(&path, &previous).map_err(|e| Error::io(&previous, e))?;
        }
        file.save(&path)
    }

    /// Writes the summary of a finished run.
    ///
    /// # Errors
    /// `Io`, those of the device.
    pub fn finish<D: Device>(&self, trainer: &Trainer<D>) -> Result<Summary> {
        let summary = summary(trainer)?;
        let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::Internal(e.to_string()))?;
        atomic::write_file(&self.folder.file(SUMMARY), format!("{text}\n").as_bytes())?;
        Ok(summary)
    }
}

/// Locks a file of a run's folder for this process. The lock is the open file's: a rename of the folder keeps it.
fn lock(path: &Path) -> Result<File> {
    let file = File::options().write(true).open(path);
    let file = file.map_err(|e| Error::io(path, e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::config(
            "--resume",
            "a run that no process trains",
            format!("{}, which one does", path.parent().unwrap_or(path).display()),
            "wait for it, or stop it first",
        )),
        // Some network file systems have no locks, and are no reason not to train.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}
