//! Writes a dataset folder: shards with checksums, then the manifest; the folder appears under its name only when
//! everything is on disk, and is never changed afterwards.

use super::dataset::hex;
use super::manifest::{MANIFEST, Manifest, ShardEntry, is_split_name};
use super::source::{self, Tensor, i64_bytes};
use crate::atomic::{self, NewFolder};
use crate::{Error, Result};
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// Images of one shard stay below this: little memory for packing, and few enough files for the largest datasets.
const SHARD_BYTES: usize = 256 << 20;

/// The samples of one shard. Optional tensors are given for all shards of a split or for none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Samples<'a> {
    /// `[N,H,W,C]`
    pub images: &'a [u8],
    /// `[N]`
    pub labels: &'a [i32],
    /// `[N]`
    pub clean_labels: Option<&'a [i32]>,
    /// `[N,H,W]`
    pub masks: Option<&'a [u8]>,
    /// `[N]`
    pub ids: Option<&'a [i64]>,
}

/// A dataset being written; dropped before [`DatasetWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct DatasetWriter {
    folder: NewFolder,
    manifest: Manifest,
}

impl DatasetWriter {
    /// Starts a dataset of no splits: `manifest` gives name, classes and image shape, mean and std if known.
    ///
    /// # Errors
    /// `Config` if `target` exists, `Io`.
    pub fn create(target: &Path, manifest: Manifest) -> Result<Self> {
        let hint =
            "datasets are never changed once written: choose another name, or remove the old one yourself";
        atomic::require_free("--out", target, hint)?;
        let folder = NewFolder::create(target)?;
        let splits = Default::default();
        Ok(DatasetWriter {
            folder,
            manifest: Manifest { splits, ..manifest },
        })
    }

    /// Number of samples for one call of [`DatasetWriter::write_shard`], at least 1.
    pub fn samples_per_shard(&self) -> usize {
        (SHARD_BYTES / self.manifest.image_bytes()).max(1)
    }

    /// Writes the next shard of a split.
    ///
    /// # Errors
    /// `Config` if lengths or labels do not fit the manifest, `Io`.
    pub fn write_shard(&mut self, split: &str, samples: Samples) -> Result<()> {
        if !is_split_name(split) {
            return Err(Error::config(
                "name of a split",
                "letters, digits, - and _",
                format!("{split:?}"),
                "",
            ));
        }
        let n = samples.labels.len();
        let m = &self.manifest;
        let [h, w, c] = [m.height, m.width, m.channels].map(|x| x as usize);
        let check = |what: &str, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            let what = format!("{what} of split {split}");
            Err(Error::config(
                what,
                format!("{expected} values"),
                found.to_string(),
                "",
            ))
        };
        check("images", n * h * w * c, samples.images.len())?;
        let mut tensors = vec![Tensor {
            name: "images",
            dtype: Dtype::U8,
            shape: vec![n, h, w, c],
            bytes: samples.images.into(),
        }];
        let clean = samples.clean_labels.map(|labels| ("clean_labels", labels));
        for (name, labels) in std::iter::once(("labels", samples.labels)).chain(clean) {
            check(name, n, labels.len())?;
            let valid = 0..m.classes.len() as i32;
            if let Some(bad) = labels.iter().find(|l| !valid.contains(l)) {
                let what = format!("{name} of split {split}");
                return Err(Error::config(
                    what,
                    format!("0 to {}", valid.end - 1),
                    bad.to_string(),
                    "",
                ));
            }
            tensors.push(i64_tensor(name, labels.iter().map(|&l| i64::from(l))));
        }
        if let Some(masks) = samples.masks {
            check("masks", n * h * w, masks.len())?;
            let (dtype, shape) = (Dtype::U8, vec![n, h, w]);
            tensors.push(Tensor {
                name: "masks",
                dtype,
                shape,
                bytes: masks.into(),
            });
        }
        if let Some(ids) = samples.ids {
            check("ids", n, ids.len())?;
            tensors.push(i64_tensor("ids", ids.iter().copied()));
        }
        let bytes = source::encode(&tensors, HashMap::new())?;
        let shards = self.manifest.splits.entry(split.to_owned()).or_default();
        let entry = ShardEntry {
            file: format!("{split}-{:05}.safetensors", shards.len()),
            count: n as u32,
            sha256: Some(hex(&Sha256::digest(&bytes))),
        };
        atomic::write_file(&self.folder.path().join(&entry.file), &bytes)?;
        shards.push(entry);
        Ok(())
    }

    /// Writes the manifest and gives the folder its name.
    ///
    /// # Errors
    /// `Data` if the manifest would not pass the checks of a reader, `Io`.
    pub fn finish(self, mean: Vec<f64>, std: Vec<f64>) -> Result<()> {
        let manifest = Manifest {
            mean,
            std,
            ..self.manifest
        };
        manifest.check(&self.folder.target().join(MANIFEST))?;
        let text = toml::to_string(&manifest).map_err(|e| Error::Internal(e.to_string()))?;
        atomic::write_file(&self.folder.path().join(MANIFEST), text.as_bytes())?;
        self.folder.commit()
    }
}

/// A one-dimensional i64 tensor.
pub(super) fn i64_tensor(name: &str, values: impl ExactSizeIterator<Item = i64>) -> Tensor<'_> {
    Tensor {
        name,
        dtype: Dtype::I64,
        shape: vec![values.len()],
        bytes: i64_bytes(values).into(),
    }
}
