//! What is written is read back, whatever the access; nothing half-written is left; the bundled digits.

use crate::common::*;
use l2b::data::bundled::unpack_digits;
use l2b::data::dataset::{Dataset, Verified};
use l2b::data::source::Access;
use l2b::data::writer::{DatasetWriter, Samples};
use proptest::prelude::*;
use std::fs;

#[test]
fn samples_are_found_across_shards() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    let want = values(7, 0);
    for access in ACCESS {
        let dataset = Dataset::open(&set, access).unwrap();
        let train = dataset.split("train").unwrap();
        assert_eq!((train.len(), train.image_shape()), (7, [2, 3, 2]));
        assert_eq!(train.labels(), want.labels);
        assert_eq!(train.clean_labels(), Some(&want.clean_labels[..]));
        assert_eq!(train.ids(), Some(&want.ids[..]));
        let samples = [6, 0, 3, 4, 4];
        let (mut images, mut masks) = (vec![0; 5 * IMAGE], vec![0; 5 * MASK]);
        train.read_images(&samples, &mut images).unwrap();
        train.read_masks(&samples, &mut masks).unwrap();
        for (place, &sample) in samples.iter().enumerate() {
            assert_eq!(
                images[place * IMAGE..][..IMAGE],
                want.images[sample as usize * IMAGE..][..IMAGE]
            );
            assert_eq!(
                masks[place * MASK..][..MASK],
                want.masks[sample as usize * MASK..][..MASK]
            );
        }
        let test = dataset.split("test").unwrap();
        assert!(test.clean_labels().is_none() && test.ids().is_none() && !test.has_masks());
        assert_eq!(
            dataset.verify().unwrap(),
            Verified {
                shards: 3,
                hashed: 3,
                checksummed: 3
            }
        );

        assert_error(train.read_images(&[7], &mut [0; IMAGE]), 1, &["sample 7 of 7"]);
        assert_error(train.read_images(&[0], &mut [0; IMAGE - 1]), 1, &[]);
        assert_error(test.read_masks(&[0], &mut [0; MASK]), 1, &[]);
        assert_error(dataset.split("val"), 2, &["test, train", "\"val\""]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_dataset_round_trips(
        shards in prop::collection::vec(1usize..6, 1..4),
        (channels, height, width) in (1u32..5, 1u32..6, 1u32..6),
        bytes in prop::collection::vec(any::<u8>(), 2048),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        let shape = l2b::data::manifest::Manifest { channels, height, width, ..manifest() };
        let size = shape.image_bytes();
        let n: usize = shards.iter().sum();
        let images: Vec<u8> = bytes.iter().cycle().take(n * size).copied().collect();
        let labels: Vec<i32> = bytes.iter().take(n).map(|b| i32::from(b % 3)).collect();
        let mut writer = DatasetWriter::create(&path, shape).unwrap();
        let mut first = 0;
        for count in shards {
            let images = &images[first * size..(first + count) * size];
            let labels = &labels[first..first + count];
            writer.write_shard("a", Samples { images, labels, ..Samples::default() }).unwrap();
            first += count;
        }
        writer.finish(vec![0.5; channels as usize], vec![0.1; channels as usize]).unwrap();
        for access in ACCESS {
            let split = Dataset::open(&path, access).unwrap().split("a").unwrap();
            let samples: Vec<u32> = (0..n as u32).rev().collect();
            let mut out = vec![0; images.len()];
            split.read_images(&samples, &mut out).unwrap();
            let back: Vec<u8> = out.chunks(size).rev().flatten().copied().collect();
            prop_assert_eq!(&back, &images);
            prop_assert_eq!(split.labels(), &labels);
        }
    }
}

#[test]
fn fingerprint_names_the_content() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (tiny(&a), tiny(&b));
    let print = |set: &std::path::Path, split: &str| {
        let dataset = Dataset::open(set, Access::Read).unwrap();
        dataset.split(split).unwrap().fingerprint().to_owned()
    };
    assert_eq!(print(&one, "train"), print(&two, "train"));
    assert_ne!(print(&one, "train"), print(&one, "test"));
    // Another image, same labels.
    let path = b.path().join("other");
    let mut writer = DatasetWriter::create(&path, manifest()).unwrap();
    let mut other = values(7, 0);
    other.images[5] ^= 1;
    writer.write_shard("train", other.shard(0..4, true)).unwrap();
    writer.write_shard("train", other.shard(4..7, true)).unwrap();
    writer.finish(vec![0.25, 0.5], vec![0.125, 0.375]).unwrap();
    assert_ne!(print(&one, "train"), print(&path, "train"));
}

#[test]
fn writer_refuses_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set");
    let v = values(3, 0);
    let good = v.shard(0..3, false);
    for (bad, word) in [
        (
            Samples {
                images: &v.images[1..],
                ..good
            },
            "images",
        ),
        (
            Samples {
                clean_labels: Some(&[0, 1]),
                ..good
            },
            "clean_labels",
        ),
        (
            Samples {
                labels: &[0, 1, 3],
                ..good
            },
            "0 to 2",
        ),
        (
            Samples {
                labels: &[0, 1, -1],
                ..good
            },
            "-1",
        ),
        (
            Samples {
                masks: Some(&[0]),
                ..good
            },
            "masks",
        ),
        (
            Samples {
                ids: Some(&[0]),
                ..good
            },
            "ids",
        ),
    ] {
        let mut writer = DatasetWriter::create(&path, manifest()).unwrap();
        assert_error(writer.write_shard("train", bad), 2, &[word]);
    }
    for (mean, std) in [
        (vec![0.5, f64::NAN], vec![0.1, 0.1]),
        (vec![0.5, 0.5], vec![0.1, 0.0]),
        (vec![0.5], vec![0.1, 0.1]),
    ] {
        let mut writer = DatasetWriter::create(&path, manifest()).unwrap();
        writer.write_shard("train", good).unwrap();
        assert_error(writer.finish(mean, std), 3, &["dataset.toml"]);
    }
    for split in ["../train", "", "a/b", "é"] {
        let mut writer = DatasetWriter::create(&path, manifest()).unwrap();
        assert_error(writer.write_shard(split, good), 2, &["name of a split"]);
    }
    let writer = DatasetWriter::create(&path, manifest()).unwrap();
    assert_error(writer.finish(vec![0.5; 2], vec![0.1; 2]), 3, &["splits"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    tiny(&folder);
    assert_error(
        DatasetWriter::create(&path, manifest()),
        2,
        &["--out", "does not exist yet", "datasets"],
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn bundled_digits() {
    let root = tempfile::tempdir().unwrap();
    let folder = unpack_digits(root.path()).unwrap();
    let dataset = Dataset::open(&folder, Access::Map).unwrap();
    assert_eq!(
        dataset.verify().unwrap(),
        Verified {
            shards: 2,
            hashed: 2,
            checksummed: 2
        }
    );
    let (train, test) = (dataset.split("train").unwrap(), dataset.split("test").unwrap());
    assert_eq!(
        (train.len(), test.len(), train.image_shape()),
        (1437, 360, [8, 8, 1])
    );
    // Every row of the source is in exactly one split.
    let mut rows = [train.ids().unwrap(), test.ids().unwrap()].concat();
    rows.sort_unstable();
    assert!(rows.iter().copied().eq(0..1797));
    let mut images = vec![0; 1437 * 64];
    train
        .read_images(&(0..1437).collect::<Vec<u32>>(), &mut images)
        .unwrap();
    let (mean, std) = l2b::data::pack::mean_std(&images, 1);
    let m = dataset.manifest();
    assert!(
        (mean[0] - m.mean[0]).abs() < 1e-6 && (std[0] - m.std[0]).abs() < 1e-6,
        "{mean:?} {std:?}"
    );
    assert!(
        images
            .iter()
            .all(|&u| (0..=16u32).any(|v| (v * 255 * 2 + 16) / 32 == u32::from(u)))
    );

    // Damage of every kind is repaired, and others' files are left alone.
    fs::write(folder.join("mine"), "x").unwrap();
    let shard = folder.join("train-00000.safetensors");
    let good = fs::read(&shard).unwrap();
    fs::write(&shard, &good[..1000]).unwrap();
    fs::write(folder.join("dataset.toml"), "").unwrap();
    fs::remove_file(folder.join("test-00000.safetensors")).unwrap();
    assert_eq!(unpack_digits(root.path()).unwrap(), folder);
    assert_eq!(fs::read(&shard).unwrap(), good);
    Dataset::open(&folder, Access::Map).unwrap().verify().unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 5);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn many_processes_may_unpack_at_once() {
    let root = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| unpack_digits(root.path()).unwrap()))
            .collect();
        for folder in all {
            Dataset::open(&folder.join().unwrap(), Access::Map).unwrap();
        }
    });
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}
