//! The loader: order, determinism, errors from its thread, its end.

use crate::common::*;
use l2b::data::dataset::Dataset;
use l2b::data::labels::Overlay;
use l2b::data::loader::{Batch, Loader, LoaderConfig, Step, epoch_order, in_order};
use l2b::data::meta_draw::MetaDraw;
use l2b::data::source::Access;
use l2b::data::split::{Subset, train_and_meta};
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;

const CONFIG: LoaderConfig = LoaderConfig {
    seed: 5,
    batch: 2,
    meta_batch: 2,
    meta_draw: MetaDraw::Uniform,
    meta_from: 1,
    epochs: 3,
    train_images: true,
    meta_images: true,
};

/// Train of ids 0, 2, 4, 5, 6 and meta of 1, 3 of the tiny set.
fn subsets(folder: &TempDir) -> (Subset, Subset) {
    let train = Dataset::open(&folder.path().join("set"), Access::Map)
        .unwrap()
        .split("train")
        .unwrap();
    train_and_meta(&train, &Overlay::none(&train, vec![1, 3]), None).unwrap()
}

fn collect(loader: &mut Loader, recycle: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = loader.next_step().unwrap() {
        steps.push(step.clone());
        if recycle {
            loader.recycle(step);
        }
    }
    steps
}

fn check_batch(batch: &Batch, subset: &Subset, images: &[u8]) {
    assert_eq!(
        batch.labels,
        batch.ids.iter().map(|&id| subset.label(id)).collect::<Vec<_>>()
    );
    let want: Vec<u8> = batch
        .ids
        .iter()
        .flat_map(|&id| images[id as usize * IMAGE..][..IMAGE].to_vec())
        .collect();
    assert_eq!(batch.images, want);
}

#[test]
fn epochs_cover_train_once_and_meta_is_a_fresh_subset() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder);
    let (train, meta) = subsets(&folder);
    let images = values(7, 0).images;
    let mut loader = Loader::start(train.clone(), meta.clone(), CONFIG, 0).unwrap();
    assert_eq!(loader.steps_per_epoch(), 3);
    let steps = collect(&mut loader, true);
    assert!(loader.next_step().unwrap().is_none());
    assert_eq!(steps.len(), 9);
    let mut orders = BTreeSet::new();
    for (epoch, steps) in (0..).zip(steps.chunks(3)) {
        let order: Vec<u32> = steps.iter().flat_map(|s| s.train.ids.clone()).collect();
        assert_eq!(order, epoch_order(5, epoch, train.ids()));
        assert_eq!(
            order.iter().copied().collect::<BTreeSet<_>>(),
            train.ids().iter().copied().collect()
        );
        assert_eq!(steps.iter().map(|s| s.train.len()).collect::<Vec<_>>(), [2, 2, 1]);
        orders.insert(order);
        for step in steps {
            assert_eq!(step.epoch, epoch);
            check_batch(&step.train, &train, &images);
            match &step.meta {
                None => assert_eq!(epoch, 0),
                Some(batch) => {
                    assert!(epoch >= 1);
                    assert_eq!(batch.ids, MetaDraw::Uniform.ids(5, step.step, &meta, 2));
                    check_batch(batch, &meta, &images);
                }
            }
        }
    }
    assert!(orders.len() > 1, "one order for all epochs");
    assert!(steps.iter().map(|s| s.step).eq(0..9));
}

#[test]
fn any_step_can_be_the_first_and_recycling_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder);
    let (train, meta) = subsets(&folder);
    let start = |config, from| Loader::start(train.clone(), meta.clone(), config, from).unwrap();
    let whole = collect(&mut start(CONFIG, 0), false);
    assert_eq!(whole, collect(&mut start(CONFIG, 0), true));
    for from in 0..=9 {
        assert_eq!(collect(&mut start(CONFIG, from), true), whole[from as usize..]);
    }
    assert!(collect(&mut start(CONFIG, 100), true).is_empty());
    assert_ne!(
        whole,
        collect(&mut start(LoaderConfig { seed: 6, ..CONFIG }, 0), true)
    );
    let in_one: Vec<_> = in_order(&train, 3, true)
        .unwrap()
        .map(|b| b.unwrap().ids)
        .collect();
    assert_eq!(in_one, [vec![0, 2, 4], vec![5, 6]]);
    assert_error(in_order(&train, 0, true).map(|_| ()), 2, &["batch"]);
}

#[test]
fn images_that_nobody_wants_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder);
    let (train, meta) = subsets(&folder);
    for (train_images, meta_images) in [(false, true), (true, false), (false, false)] {
        let config = LoaderConfig {
            train_images,
            meta_images,
            ..CONFIG
        };
        let mut loader = Loader::start(train.clone(), meta.clone(), config, 3).unwrap();
        let step = loader.next_step().unwrap().unwrap();
        let bytes = |batch: &Batch, wanted| if wanted { batch.len() * IMAGE } else { 0 };
        assert_eq!(step.train.images.len(), bytes(&step.train, train_images));
        let meta = step.meta.unwrap();
        assert_eq!(meta.images.len(), bytes(&meta, meta_images));
        assert_eq!((step.train.labels.len(), meta.labels.len()), (2, 2));
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder);
    let (train, meta) = subsets(&folder);
    let start = |config| Loader::start(train.clone(), meta.clone(), config, 0);
    for (config, words) in [
        (LoaderConfig { batch: 6, ..CONFIG }, ["batch", "1 to 5"]),
        (LoaderConfig { batch: 0, ..CONFIG }, ["batch", "found 0"]),
        (
            LoaderConfig {
                meta_batch: 3,
                ..CONFIG
            },
            ["meta batch", "1 to 2"],
        ),
        (
            LoaderConfig {
                meta_batch: 0,
                ..CONFIG
            },
            ["meta batch", "found 0"],
        ),
        (
            LoaderConfig {
                epochs: u32::MAX,
                ..CONFIG
            },
            ["epochs", "2^32"],
        ),
    ] {
        assert_error(start(config), 2, &words);
    }
    // Without clean images their number does not matter.
    let config = LoaderConfig {
        meta_batch: 0,
        meta_from: 3,
        ..CONFIG
    };
    assert!(
        collect(&mut start(config).unwrap(), true)
            .iter()
            .all(|step| step.meta.is_none())
    );
}

#[test]
fn errors_of_the_thread_reach_the_caller_and_end_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    let (train, meta) = subsets(&folder);
    let shard = set.join("train-00001.safetensors");
    fs::File::options()
        .write(true)
        .open(shard)
        .unwrap()
        .set_len(9)
        .unwrap();
    let mut loader = Loader::start(train, meta, CONFIG, 0).unwrap();
    let error = loop {
        match loader.next_step() {
            Ok(step) => assert!(step.unwrap().train.ids.iter().all(|&id| id < 4)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("train-00001"), "{error}");
    assert!(loader.next_step().unwrap().is_none());
}

/// Dropping waits for the thread, which is blocked on a full queue: this test hangs if it does not end.
#[test]
fn dropping_early_ends_the_thread() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder);
    let (train, meta) = subsets(&folder);
    let split = std::sync::Arc::downgrade(train.split());
    let config = LoaderConfig {
        epochs: 100_000,
        ..CONFIG
    };
    for used in 0..4 {
        let mut loader = Loader::start(train.clone(), meta.clone(), config, 0).unwrap();
        for _ in 0..used {
            loader.next_step().unwrap();
        }
    }
    drop((train, meta));
    assert!(split.upgrade().is_none(), "a thread still holds the dataset");
}
