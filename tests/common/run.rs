//! Runs on a tiny dataset, and the same steps one call at a time.

use std::path::Path;

use l2b::Error;
use l2b::config::{Method, RunConfig};
use l2b::data::loader::{Batch, Loader, LoaderConfig, epoch_order};
use l2b::data::manifest::Manifest;
use l2b::data::writer::{DatasetWriter, Samples};
use l2b::device::{AugmentShape, Device, StepParams};
use l2b::engine::{Images, Slot};
use l2b::epoch_log::EpochRecord;
use l2b::evaluate::plain;
use l2b::model::read;
use l2b::random::{META_VIEW, TRAIN_VIEW};
use l2b::run_folder::prepare;
use l2b::step::Objective;
use l2b::tensor_file::TensorFile;
use l2b::train::Trainer;

/// Train, test and clean images, each split of its own; one train image alone holds the byte 255.
pub const SIZES: [(&str, usize); 3] = [("train", 11), ("test", 6), ("trusted", 30)];
pub const BRIGHT: u32 = 7;

/// Writes the dataset: two classes of 4×4 images, dark and bright.
pub fn dataset(folder: &Path) {
    let manifest = Manifest {
        name: "three splits".into(),
        classes: vec!["dark".into(), "bright".into()],
        channels: 1,
        height: 4,
        width: 4,
        mean: vec![],
        std: vec![],
        splits: Default::default(),
    };
    let mut writer = DatasetWriter::create(folder, manifest).unwrap();
    for (split, count) in SIZES {
        let labels: Vec<i32> = (0..count as i32).map(|i| i % 2).collect();
        let mut images: Vec<u8> = (0..count * 16)
            .map(|i| (i / 16 % 2 * 150 + i % 97) as u8)
            .collect();
        if split == "train" {
            images[BRIGHT as usize * 16 + 5] = 255;
        }
        let samples = Samples {
            images: &images,
            labels: &labels,
            ..Samples::default()
        };
        writer.write_shard(split, samples).unwrap();
    }
    writer.finish(vec![0.5], vec![0.25]).unwrap();
}

/// One epoch of warm-up, two of the method, more steps in each than are under way at once, with a partial last batch: four
/// kinds of step.
pub fn config(data: &Path, method: Method) -> RunConfig {
    let mut config = RunConfig {
        data: data.to_owned(),
        method,
        meta_split: Some("trusted".into()),
        noise: Some(0.3),
        flip: true,
        pad: 1,
        epochs: 3,
        warm_up: Some(1),
        batch: 2,
        meta_batch: Some(2),
        eval_batch: 4,
        blocks: vec![1],
        width: 4,
        ..RunConfig::default()
    }
    .resolve()
    .unwrap();
    prepare(&mut config).unwrap();
    config
}

pub fn trainer<D: Device>(device: D, config: &RunConfig, keep: bool) -> Trainer<D> {
    let task = l2b::task::Task::open(config).unwrap();
    Trainer::with(device, config.clone(), task, keep).unwrap()
}

/// Bits of everything that a run learns: parameters, momentum, running statistics.
pub type Learned = [Vec<u64>; 3];

pub fn learned<D: Device>(trainer: &Trainer<D>) -> Learned {
    let model = &trainer.engine.model;
    [model.theta(), model.buf(), model.running()].map(|span| {
        let values = read::<D>(&trainer.engine.device, span).unwrap();
        values.into_iter().map(f64::to_bits).collect()
    })
}

/// What a whole run leaves.
pub struct Run {
    pub learned: Learned,
    pub weights: TensorFile,
    /// Without times.
    pub records: Vec<EpochRecord>,
    pub recorded: usize,
    pub progress: usize,
}

pub fn run<D: Device>(device: D, config: &RunConfig, keep: bool) -> Run {
    let mut trainer = trainer(device, config, keep);
    let (mut records, mut progress) = (Vec::new(), 0);
    while !trainer.is_done() {
        let record = trainer.epoch(|images| progress += images).unwrap();
        records.push(EpochRecord {
            images_per_second: 0.0,
            seconds: 0.0,
            ..record
        });
    }
    Run {
        learned: learned(&trainer),
        weights: trainer.sample_weights.encode(),
        recorded: trainer.engine.recorded(),
        records,
        progress,
    }
}

/// The first `steps` steps of the run, one call at a time, everything uploaded and waited for.
pub fn directly<D: Device>(device: D, config: &RunConfig, steps: u32) -> Learned {
    let mut trainer = trainer(device, config, false);
    let clean = config.method.needs_clean();
    let sizes = LoaderConfig {
        seed: config.seed,
        batch: config.batch,
        meta_batch: config.meta_batch.unwrap_or(0),
        meta_draw: config.draw(),
        meta_from: if clean {
            config.warm_up_epochs()
        } else {
            config.epochs
        },
        epochs: config.epochs,
        train_images: true,
        meta_images: true,
    };
    let task = &trainer.task;
    let mut loader = Loader::start(task.train.clone(), task.meta.clone(), sizes, 0).unwrap();
    for number in 0..steps {
        let step = loader.next_step().unwrap().unwrap();
        let mut feed = |slot, batch: &Batch, view: u16| {
            let augment = AugmentShape {
                pad: config.pad as i32,
                flip: i32::from(config.flip),
                view: i32::from(view),
                ..plain(batch.len(), [4, 4, 1])
            };
            let images = Images::Pixels {
                bytes: &batch.images,
                ids: &batch.ids,
                augment,
            };
            trainer.engine.feed(slot, images, &batch.labels).unwrap();
        };
        feed(Slot::Train, &step.train, TRAIN_VIEW);
        if let Some(meta) = &step.meta {
            feed(Slot::Meta, meta, META_VIEW);
        }
        let objective = match step.epoch < config.warm_up_epochs() {
            true => Objective::CrossEntropy,
            false => config.method.objective(),
        };
        let lr = config.lr_at(step.epoch);
        let params = StepParams {
            lr,
            lambda: lr,
            eta: config.eta,
            mu: config.momentum,
            weight_decay: config.weight_decay,
            clip: config.clip,
            seed: config.seed,
            step: number,
            reserved: 0,
        };
        trainer.engine.set_step(&params).unwrap();
        trainer.engine.step_directly(objective).unwrap();
    }
    learned(&trainer)
}

/// Recorded or not, images kept or sent: the same bits as one call at a time. `kinds`: recordings of a run of L2B.
pub fn all_ways_agree<D: Device>(device: impl Fn() -> D, kinds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    dataset(&data);
    for method in [Method::L2b, Method::Bootstrap] {
        let config = config(&data, method);
        let (kept, sent) = (run(device(), &config, true), run(device(), &config, false));
        let steps = 3 * (SIZES[0].1 as u32).div_ceil(config.batch);
        let want = directly(device(), &config, steps);
        assert!(kept.learned == want, "{method:?}: images kept");
        assert!(sent.learned == want, "{method:?}: images sent");
        assert_eq!(kept.records, sent.records);
        assert_eq!(kept.weights.tensors_sha256(), sent.weights.tensors_sha256());
        assert_eq!(kept.records[2].step, steps);
        assert_eq!((kept.progress, sent.progress), (33, 33));
        assert_eq!((kept.recorded, sent.recorded), (kinds, kinds), "{method:?}");
    }
}

/// A step with a number that is none is named with its layer, and leaves parameters and momentum as the step before it did.
pub fn divergence_is_named_and_undone<D: Device>(device: impl Fn() -> D) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    dataset(&data);
    let ids: Vec<u32> = (0..SIZES[0].1 as u32).collect();
    for (keep, epoch) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
        let mut config = RunConfig {
            pad: 0,
            ..config(&data, Method::L2b)
        };
        // Steps before it, and more steps after it than are under way.
        let within = |seed| {
            let order = epoch_order(seed, epoch, &ids);
            order.iter().position(|&id| id == BRIGHT).unwrap() as u32 / config.batch
        };
        config.seed = (0..).find(|&seed| within(seed) == 1).unwrap();
        let bad = epoch * ids.len().div_ceil(2) as u32 + 1;
        let mut trainer = trainer(device(), &config, keep);
        for _ in 0..epoch {
            trainer.epoch(|_| ()).unwrap();
        }
        // Only one train image looks this entry of the table up.
        let mut table = l2b::data::augment::normalise_table::<D::Real>(&trainer.task.manifest);
        table[255] = l2b::device::Element::from_f64(f64::NAN);
        trainer.engine.set_table(&table).unwrap();
        let mut seen = 0;
        let error = trainer.epoch(|images| seen += images).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Diverged { step, .. } if step == u64::from(bad) + 1),
            "{text}"
        );
        assert!(
            text.contains("train loss") && text.contains("conv1.weight"),
            "{text}"
        );
        assert_eq!(seen, config.batch as usize);
        let (got, want) = (learned(&trainer), directly(device(), &config, bad));
        assert!(got[..2] == want[..2], "parameters or momentum, kept: {keep}");
    }
}
