//! What a run learns from and is tested on: a dataset with its clean set, its noise and its test split.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{BUNDLED, DEFAULT_META_PER_CLASS, Method, RunConfig};
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
    /// How many images of each class were taken out of train as the clean ones; none where a labels file or a split names them.
    pub meta_per_class: Option<u32>,
    /// Whether the overlay's clean labels are the truth: more than a copy of given ones that may be wrong.
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
        let meta_per_class = meta_per_class(config, &split);
        let overlay = overlay(config, meta_per_class, &split, &manifest)?;
        let (train, meta) = train_and_meta(&split, &overlay, named)?;
        if meta.is_empty() && config.method.needs_clean() {
            let hint = "name a split of verified images by --meta-split, or give --meta-per-class if the given labels are right";
            let what = format!("clean images for {}", config.method.name());
            return Err(Error::config(what, "at least one", "none", hint));
        }
        // A labels file that repeats the dataset's labels only names clean images: nothing says that the others are right.
        let clean_known = config.is_bundled()
            || split.clean_labels().is_some()
            || overlay.nominal.is_some()
            || overlay.labels != split.labels();
        Ok(Task {
            meta_per_class,
            clean_known,
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

    /// Whether given labels that nobody vouches for but the user were taken as those of the clean images.
    pub fn trusts_given_labels(&self) -> bool {
        self.meta_per_class.is_some() && !self.clean_known
    }

    /// True label of a train sample, where it is known.
    pub fn clean_label(&self, id: u32) -> Option<i32> {
        self.clean_known.then(|| self.overlay.clean_labels[id as usize])
    }
}

/// Clean images per class to take out of a split. Given labels that may be wrong make no clean set unless asked for.
fn meta_per_class(config: &RunConfig, split: &Split) -> Option<u32> {
    let elsewhere = config.labels.is_some() || config.meta_split.is_some();
    let usual = split.clean_labels().filter(|_| !elsewhere);
    config.meta_per_class.or(usual.map(|_| DEFAULT_META_PER_CLASS))
}

fn overlay(
    config: &RunConfig,
    meta_per_class: Option<u32>,
    split: &Arc<Split>,
    manifest: &Manifest,
) -> Result<Overlay> {
    let classes = manifest.classes.len() as u32;
    if let Some(path) = &config.labels {
        return Overlay::load(path, split, classes);
    }
    let clean = split.clean_labels().unwrap_or(split.labels());
    let meta_index = match meta_per_class {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::writer::{DatasetWriter, Samples};
    use crate::run_folder::prepare;

    /// Two classes of 2×2 images: 24 to train on, every third label wrong, 2 to test on.
    fn dataset(folder: &std::path::Path, clean_labels: bool) -> PathBuf {
        let path = folder.join(format!("clean labels {clean_labels}"));
        let manifest = Manifest {
            name: "small".into(),
            classes: vec!["a".into(), "b".into()],
            channels: 1,
            height: 2,
            width: 2,
            mean: vec![],
            std: vec![],
            splits: Default::default(),
        };
        let mut writer = DatasetWriter::create(&path, manifest).unwrap();
        let clean: Vec<i32> = (0..24).map(|i| i % 2).collect();
        let labels: Vec<i32> = (0..24).map(|i| (i + i32::from(i % 3 == 0)) % 2).collect();
        for (split, n) in [(TRAIN, 24), (TEST, 2)] {
            let samples = Samples {
                images: &[7; 96][..4 * n],
                labels: &labels[..n],
                clean_labels: clean_labels.then_some(&clean[..n]),
                ..Samples::default()
            };
            writer.write_shard(split, samples).unwrap();
        }
        writer.finish(vec![0.5], vec![0.5]).unwrap();
        path
    }

    fn config(data: &std::path::Path, method: Method) -> RunConfig {
        RunConfig {
            data: data.to_owned(),
            method,
            ..RunConfig::default()
        }
    }

    #[test]
    fn the_truth_is_known_where_something_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let data = dataset(folder.path(), false);
        let known = |config: RunConfig| {
            let task = Task::open(&config.resolve().unwrap()).unwrap();
            assert_eq!(
                task.clean_label(3),
                task.clean_known.then(|| task.overlay.clean_labels[3])
            );
            (task.clean_known, task.overlay.realised)
        };
        let ce = |data: &std::path::Path| config(data, Method::Ce);
        assert!(!known(ce(&data)).0);
        assert!(known(ce(&dataset(folder.path(), true))).0);
        assert_eq!(
            known(RunConfig {
                noise: Some(0.0),
                ..ce(BUNDLED.as_ref())
            }),
            (true, 0.0)
        );
        // Human labels over labels that are the truth: no nominal rate.
        let train = open(&data, false).unwrap().split(TRAIN).unwrap();
        let copy = Overlay::none(&train, vec![]);
        let mut human = Overlay {
            kind: "human".into(),
            realised: 2.0 / 24.0,
            ..copy.clone()
        };
        human.labels[3] = 1 - human.labels[3];
        human.labels[8] = 1 - human.labels[8];
        for (name, overlay, want) in [("human", human, (true, 2.0 / 24.0)), ("copy", copy, (false, 0.0))] {
            let path = folder.path().join(name);
            overlay.save(&path).unwrap();
            let labels = Some(path);
            assert_eq!(known(RunConfig { labels, ..ce(&data) }), want, "{name}");
        }
    }

    #[test]
    fn clean_images_come_from_labels_that_are_known_to_be_right() {
        let folder = tempfile::tempdir().unwrap();
        let (given, clean) = (dataset(folder.path(), false), dataset(folder.path(), true));
        let l2b = |data: &std::path::Path| config(data, Method::L2b).resolve().unwrap();
        // From true labels, and the configuration says how many.
        let mut config = l2b(&clean);
        config.batch = 4;
        let task = prepare(&mut config).unwrap();
        assert_eq!((task.meta.len(), config.meta_per_class), (20, Some(10)));
        assert!(
            task.meta
                .ids()
                .iter()
                .all(|&id| task.meta.label(id) == (id % 2) as i32)
        );
        assert!(!task.trusts_given_labels());
        // From given ones on request alone.
        let error = Task::open(&l2b(&given)).unwrap_err().to_string();
        assert!(
            error.contains("--meta-split") && error.contains("--meta-per-class"),
            "{error}"
        );
        let asked = RunConfig {
            meta_per_class: Some(3),
            ..l2b(&given)
        };
        let task = Task::open(&asked).unwrap();
        assert!(task.meta.len() == 6 && task.trusts_given_labels());
    }
}
