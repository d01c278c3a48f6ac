//! Labels files: what `draw` makes is what `load` gives, and everything else is refused.

use crate::common::*;
use l2b::data::dataset::{Dataset, Split};
use l2b::data::labels::Overlay;
use l2b::data::noise::{Noise, NoiseKind};
use l2b::data::source::{Access, Tensor, encode, i64_bytes};
use l2b::data::split::{draw_per_class, train_and_meta};
use safetensors::Dtype;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const NOISE: Noise = Noise {
    kind: NoiseKind::Uniform,
    rate: 0.5,
    seed: 3,
};

fn digits(folder: &TempDir) -> Dataset {
    let path = l2b::data::bundled::unpack_digits(folder.path()).unwrap();
    Dataset::open(&path, Access::Map).unwrap()
}

fn tiny_train(folder: &TempDir) -> Arc<Split> {
    Dataset::open(&tiny(folder), Access::Map)
        .unwrap()
        .split("train")
        .unwrap()
}

#[test]
fn clean_images_stay_out_of_train_and_out_of_the_rate() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = digits(&folder);
    let train = dataset.split("train").unwrap();
    let classes = &dataset.manifest().classes;
    let meta = draw_per_class(train.labels(), classes, 10, 7).unwrap();
    let overlay = Overlay::draw(&train, 10, meta.clone(), Noise { rate: 0.4, ..NOISE }).unwrap();
    let wrong = |&&id: &&u32| overlay.labels[id as usize] != train.labels()[id as usize];
    assert_eq!(meta.iter().filter(wrong).count(), 0);
    let all: Vec<u32> = (0..train.len()).collect();
    assert_eq!(overlay.realised, all.iter().filter(wrong).count() as f64 / 1337.0);
    // Expected 0.36, σ = √(0.36·0.64/1337) = 0.0131; 5σ.
    assert!((overlay.realised - 0.36).abs() < 0.066, "{}", overlay.realised);

    let path = folder.path().join("noise.safetensors");
    overlay.save(&path).unwrap();
    assert_eq!(Overlay::load(&path, &train, 10).unwrap(), overlay);
    assert_error(
        overlay.save(&path),
        2,
        &["noise.safetensors", "does not exist yet"],
    );

    let (noisy, clean) = train_and_meta(&train, &overlay, None).unwrap();
    assert_eq!((noisy.len(), clean.len()), (1337, 100));
    assert!(
        noisy
            .ids()
            .iter()
            .all(|id| !meta.contains(id) && noisy.label(*id) == overlay.labels[*id as usize])
    );
    assert!(
        clean.ids() == meta
            && meta
                .iter()
                .all(|&id| clean.label(id) == train.labels()[id as usize])
    );

    // A named split instead; both at once leave images without a use.
    let test = dataset.split("test").unwrap();
    assert_error(
        train_and_meta(&train, &overlay, Some(test.clone())),
        2,
        &["\"test\" and 100 images"],
    );
    let whole = Overlay::draw(&train, 10, Vec::new(), NOISE).unwrap();
    let (noisy, clean) = train_and_meta(&train, &whole, Some(test)).unwrap();
    assert_eq!((noisy.len(), clean.len()), (1437, 360));
}

#[test]
fn true_labels_are_those_of_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    let train = tiny_train(&folder);
    let v = values(7, 0);
    let none = Overlay::none(&train, vec![1]);
    assert_eq!(none.clean_labels, v.clean_labels);
    assert_eq!(none.labels[1], v.clean_labels[1]);
    let wrong = (0..7)
        .filter(|&i| i != 1 && v.labels[i] != v.clean_labels[i])
        .count();
    assert!(wrong > 0);
    assert_eq!(none.realised, wrong as f64 / 6.0);
    let drawn = Overlay::draw(&train, 3, vec![], Noise { rate: 0.0, ..NOISE }).unwrap();
    assert_eq!((drawn.labels, drawn.realised), (v.clean_labels, 0.0));
    let path = folder.path().join("o");
    none.save(&path).unwrap();
    assert_eq!(Overlay::load(&path, &train, 3).unwrap(), none);
}

#[test]
fn labels_of_another_dataset_are_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dataset = digits(&a);
    let train = dataset.split("train").unwrap();
    let path = a.path().join("noise.safetensors");
    Overlay::draw(&train, 10, vec![], NOISE)
        .unwrap()
        .save(&path)
        .unwrap();
    assert_error(
        Overlay::load(&path, &tiny_train(&b), 3),
        3,
        &["fingerprint", "another dataset"],
    );
    assert_error(
        Overlay::load(&path, &dataset.split("test").unwrap(), 10),
        3,
        &["fingerprint"],
    );
    let shard = dataset.folder().join("train-00000.safetensors");
    assert_error(Overlay::load(&shard, &train, 10), 3, &["tensors"]);
    assert_error(Overlay::split_name(&shard), 3, &["l2b data noise"]);
    assert_error(Overlay::load(&a.path().join("no"), &train, 10), 1, &["no"]);
}

#[test]
fn every_truncation_and_flipped_bit_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let train = tiny_train(&folder);
    let path = folder.path().join("o");
    let overlay = Overlay::draw(&train, 3, vec![2, 5], NOISE).unwrap();
    overlay.save(&path).unwrap();
    for_every_truncation(&path, |_| {
        assert_error(Overlay::load(&path, &train, 3), 3, &["/o: "])
    });
    for_every_flipped_bit(&path, |bit| {
        if let Ok(got) = Overlay::load(&path, &train, 3) {
            assert_eq!(got, overlay, "bit {bit}");
        }
    });
    assert_eq!(Overlay::load(&path, &train, 3).unwrap(), overlay);
}

/// An overlay of the tiny train split from its parts.
fn write(path: &Path, labels: &[i64], clean: &[i64], meta: &[i64], metadata: &[(&str, &str)]) {
    let tensor = |name, values: &[i64]| Tensor {
        name,
        dtype: Dtype::I64,
        shape: vec![values.len()],
        bytes: i64_bytes(values.iter().copied()).into(),
    };
    let tensors = [
        tensor("labels", labels),
        tensor("clean_labels", clean),
        tensor("meta_index", meta),
    ];
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    fs::write(path, encode(&tensors, metadata).unwrap()).unwrap();
}

#[test]
fn dishonest_overlays_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train = tiny_train(&folder);
    let path = folder.path().join("o");
    let clean: Vec<i64> = train
        .clean_labels()
        .unwrap()
        .iter()
        .map(|&l| i64::from(l))
        .collect();
    let mut one_wrong = clean.clone();
    one_wrong[3] = (clean[3] + 1) % 3;
    let print = train.fingerprint().to_owned();
    let fifth = 0.2f64.to_string();
    let honest = [
        ("fingerprint", &*print),
        ("split", "train"),
        ("kind", "human"),
        ("realised", &fifth),
    ];
    let load = || Overlay::load(&path, &train, 3);

    // Written by others: no nominal rate, no seed, no check.
    write(&path, &one_wrong, &clean, &[0, 6], &honest);
    let overlay = load().unwrap();
    assert_eq!(
        (overlay.kind.as_str(), overlay.nominal, overlay.seed),
        ("human", None, None)
    );
    assert_eq!(overlay.realised, 0.2);

    let case = |labels: &[i64], clean: &[i64], meta: &[i64], words: &[&str]| {
        write(&path, labels, clean, meta, &honest);
        assert_error(load(), 3, words);
    };
    case(
        &one_wrong,
        &clean,
        &[0, 7],
        &["meta_index[1]", "1 to 6", "found 7"],
    );
    case(&one_wrong, &clean, &[-1, 6], &["meta_index[0]", "found -1"]);
    case(&one_wrong, &clean, &[6, 0], &["meta_index[1]", "7 to 6"]);
    case(&one_wrong, &clean, &[6, 6], &["meta_index[1]"]);
    case(&one_wrong, &clean, &[0, 1 << 32], &["meta_index[1]"]);
    case(&one_wrong, &clean, &[3, 6], &["labels[3]", "clean images keep"]);
    case(&one_wrong, &clean, &[6], &["realised"]);
    case(
        &one_wrong[1..],
        &clean,
        &[0, 6],
        &["shape of labels", "[7]", "[6]"],
    );
    case(&one_wrong, &clean[1..], &[0, 6], &["shape of clean_labels"]);
    case(
        &one_wrong,
        &one_wrong,
        &[0, 6],
        &["clean_labels[3]", "those of the dataset"],
    );
    case(&[3; 7], &clean, &[0, 6], &["labels[0]", "0 to 2"]);

    for (key, value, words) in [
        ("fingerprint", "0", vec!["fingerprint", "found 0"]),
        ("split", "test", vec!["split", "train"]),
        ("realised", "NaN", vec!["realised", "NaN"]),
        ("realised", "0.3", vec!["realised"]),
        ("nominal", "1.5", vec!["nominal", "0 to 1"]),
        ("nominal", "x", vec!["nominal"]),
        ("seed", "-1", vec!["seed"]),
        ("sead", "1", vec!["metadata", "sead"]),
        ("check", "00000000", vec!["check", "damaged"]),
    ] {
        let mut metadata: HashMap<_, _> = honest.into_iter().collect();
        metadata.insert(key, value);
        write(
            &path,
            &one_wrong,
            &clean,
            &[0, 6],
            &metadata.into_iter().collect::<Vec<_>>(),
        );
        assert_error(load(), 3, &words);
    }
    for missing in 0..honest.len() {
        let mut metadata = honest.to_vec();
        let (key, _) = metadata.remove(missing);
        write(&path, &one_wrong, &clean, &[0, 6], &metadata);
        assert_error(load(), 3, &[key]);
    }
}
