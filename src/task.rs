//! What a run learns from and is tested on: a dataset with its clean set, its noise and its test split.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{BUNDLED, Method, RunConfig};
use crate::data::bundled;
use crate::data::dataset::{Dataset, Split};
use crate::data::labels::Overlay;
use crate::data::manifest::Manifest;
use crate::data::noise::Noise;
use crate::data::source::Access;
use crate::data::split::{Subset, draw_per_class, train_and_meta};
use crate::{Error, Result};

/// Splits that every dataset to train on has.
pub(crate) const TRAIN: &str = "train";
const TEST: &str = "test";

/// A dataset, prepared for a run.
#[derive(Debug)]
pub struct Task {
    pub manifest: Manifest,
    /// Noisy labels, without the clean images.
    pub train: Subset,
    /// Clean images; empty where the method needs none and the data name none.
    pub meta: Subset,
    pub test: Subset,
    pub overlay: Overlay,
    /// Whether the overlay's clean labels are more than a copy of the given ones.
    pub clean_known: bool,
    /// Whether `meta` takes the place of `train`: method `clean`.
    pub trains_on_clean: bool,
}

/// Opens a dataset by the name that `--data` takes.
///
/// # Errors
/// `Io`, `Data`.
pub fn open(data: &std::path::Path, no_mmap: bool) -> Result<Dataset> {
    let folder: PathBuf = if data == std::path::Path::new(BUNDLED) {
        bundled::digits()?
    } else {
        data.to_owned()
    };
    let access = if no_mmap { Access::Read } else { Access::Map };
    Dataset::open(&folder, access)
}

impl Task {
    /// Opens the dataset of a resolved configuration, takes the clean images out of train, then draws the noise.
    ///
    /// # Errors
    /// `Config`, `Data`, `Io`.
    pub fn open(config: &RunConfig) -> Result<Self> {
        let dataset = open(&config.data, config.no_mmap)?;
        let manifest = dataset.manifest().clone();
        let split = dataset.split(TRAIN)?;
        let named = config
            .meta_split
            .as_deref()
            .map(|name| dataset.split(name))
            .transpose()?;
        if let Some(named) = &named
            && [TRAIN, TEST].contains(&named.name())
        {
            let hint = "a clean set inside train or test would count its images twice";
            return Err(Error::config(
                "--meta-split",
                "a split of its own",
                format!("{:?}", named.name()),
                hint,
            ));
        }
        let overlay = overlay(config, &split, &manifest)?;
        let (train, meta) = train_and_meta(&split, &overlay, named)?;
        if meta.is_empty() && config.method.needs_clean() {
            let hint =
                "name a --meta-split, or make labels with clean images: l2b data noise --meta-per-class";
            let what = format!("clean images for {}", config.method.name());
            return Err(Error::config(what, "at least one", "none", hint));
        }
        Ok(Task {
            clean_known: overlay.nominal.is_some() || split.clean_labels().is_some(),
            trains_on_clean: config.method == Method::Clean,
            test: Subset::clean(dataset.split(TEST)?),
            manifest,
            train,
            meta,
            overlay,
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.manifest.classes.len()
    }

    /// True label of a train sample, where it is known.
    pub fn clean_label(&self, id: u32) -> Option<i32> {
        self.clean_known.then(|| self.overlay.clean_labels[id as usize])
    }
}

fn overlay(config: &RunConfig, split: &Arc<Split>, manifest: &Manifest) -> Result<Overlay> {
    let classes = manifest.classes.len() as u32;
    if let Some(path) = &config.labels {
        return Overlay::load(path, split, classes);
    }
    let clean = split.clean_labels().unwrap_or(split.labels());
    let meta_index = match config.meta_per_class {
        Some(k) => draw_per_class(clean, &manifest.classes, k, config.seed)?,
        None => Vec::new(),
    };
    match config.noise {
        Some(rate) if rate > 0.0 => Overlay::draw(
            split,
            classes,
            meta_index,
            Noise {
                kind: config.noise_kind,
                rate,
                seed: config.seed,
            },
        ),
        _ => Ok(Overlay::none(split, meta_index)),
    }
}
