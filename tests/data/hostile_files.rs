//! Manifests and IDX files that are missing, damaged or dishonest.

use crate::common::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use l2b::data::dataset::Dataset;
use l2b::data::idx::{self, Idx};
use l2b::data::pack::pack_idx;
use l2b::data::source::Access;
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::Path;

#[test]
fn manifest_faults_name_the_key() {
    // (text to replace, its replacement, words of the error)
    let cases: &[(&str, &str, &[&str])] = &[
        ("name = ", "nam = ", &["unknown field `nam`"]),
        ("name = ", "noise = 1\nname = ", &["unknown field `noise`"]),
        ("count = 4", "count = 4\nsize = 1", &["unknown field `size`"]),
        ("name = \"tiny\"", "name = 3", &["invalid type", "name = 3"]),
        ("name = \"tiny\"\n", "", &["missing field `name`"]),
        ("name = ", "name = = ", &["TOML"]),
        ("\"bee\"", "\"ant\"", &["classes", "\"ant\" again"]),
        ("\"bee\"", "\"\"", &["classes", "empty"]),
        (
            "[\"ant\", \"bee\", \"cat\"]",
            "[\"ant\"]",
            &["classes", "found 1"],
        ),
        ("[\"ant\", \"bee\", \"cat\"]", "[]", &["classes", "found 0"]),
        ("channels = 2", "channels = 0", &["channels", "found 0"]),
        ("channels = 2", "channels = -2", &["channels = -2"]),
        ("channels = 2", "channels = 65", &["channels", "1 to 64"]),
        ("channels = 2", "channels = 1", &["mean", "1 values"]),
        (
            "height = 2",
            "height = 3",
            &["test-00000", "shape of images", "[2, 3, 3, 2]", "[2, 2, 3, 2]"],
        ),
        ("height = 2", "height = 99999999999", &["height"]),
        ("width = 3", "width = 20000", &["width", "1 to 16384"]),
        ("width = 3", "width = 3.0", &["width"]),
        (
            "mean = [0.25, 0.5]",
            "mean = [0.25, nan]",
            &["mean", "finite", "NaN"],
        ),
        ("mean = [0.25, 0.5]", "mean = [0.25, inf]", &["mean", "inf"]),
        ("mean = [0.25, 0.5]", "mean = [0.25, -0.5]", &["mean", "-0.5"]),
        (
            "mean = [0.25, 0.5]",
            "mean = [125.3, 123.0]",
            &["mean", "125.3", "u8 / 255"],
        ),
        ("mean = [0.25, 0.5]", "mean = [0.25]", &["mean", "2 values"]),
        (
            "std = [0.125, 0.375]",
            "std = [0.125, 0.0]",
            &["std", "from 1e-6"],
        ),
        ("std = [0.125, 0.375]", "std = [0.125, nan]", &["std", "NaN"]),
        ("std = [0.125, 0.375]", "std = [0.125, -0.1]", &["std", "-0.1"]),
        ("std = [0.125, 0.375]", "std = [0.125, 1e-320]", &["std"]),
        ("std = [0.125, 0.375]", "std = []", &["std"]),
        (
            "[[splits.train]]",
            "[[splits.\"a/b\"]]",
            &["name of a split", "a/b"],
        ),
        ("[[splits.train]]", "[[splits.\"\"]]", &["name of a split"]),
        (
            "train-00000.safetensors",
            "../set/train-00000.safetensors",
            &["splits.train[0].file", "../set"],
        ),
        (
            "train-00000.safetensors",
            "/etc/passwd",
            &["splits.train[0].file"],
        ),
        ("train-00000.safetensors", "..", &["splits.train[0].file"]),
        ("train-00000.safetensors", ".", &["splits.train[0].file"]),
        ("train-00000.safetensors", "", &["splits.train[0].file"]),
        (
            "train-00000.safetensors",
            "./train-00000.safetensors",
            &["splits.train[0].file"],
        ),
        ("train-00000.safetensors", "x\\\\y", &["splits.train[0].file"]),
        ("train-00000.safetensors", "a\\u0000b", &["splits.train[0].file"]),
        (
            "train-00001.safetensors",
            "train-00000.safetensors",
            &["splits.train[1].file", "again"],
        ),
        (
            "test-00000.safetensors",
            "train-00000.safetensors",
            &["file", "again"],
        ),
        (
            "train-00000.safetensors",
            "dataset.toml",
            &["dataset.toml", "header"],
        ),
        (
            "count = 4",
            "count = 5",
            &["train-00000", "shape of images", "[5, 2, 3, 2]"],
        ),
        ("count = 4", "count = 0", &["splits.train[0].count"]),
        (
            "count = 4",
            "count = 4294967295",
            &["splits.train[0].count", "2^31"],
        ),
        ("count = 4", "count = 4294967296", &["count"]),
        ("count = 4\n", "", &["missing field `count`"]),
        ("sha256 = \"", "sha256 = \"G", &["sha256", "64"]),
    ];
    for (from, to, words) in cases {
        let folder = tempfile::tempdir().unwrap();
        let set = tiny(&folder);
        edit(&set.join("dataset.toml"), |text| {
            assert!(text.contains(from), "{from} in {text}");
            text.replacen(from, to, 1)
        });
        assert_error(Dataset::open(&set, Access::Map), 3, words);
    }
}

#[test]
fn manifests_that_are_no_text_or_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    let path = set.join("dataset.toml");
    let good = fs::read(&path).unwrap();
    // Cut between two lines, the text may be a whole manifest of fewer shards; nothing else opens.
    let mut opened = std::collections::BTreeSet::new();
    for_every_truncation(&path, |length| {
        if length < good.len() - 1
            && let Ok(dataset) = Dataset::open(&set, Access::Read)
        {
            dataset.verify().unwrap();
            opened.insert(dataset.splits().map(|split| split.len()).collect::<Vec<_>>());
        }
    });
    assert_eq!(
        opened.into_iter().collect::<Vec<_>>(),
        [vec![2], vec![2, 4], vec![2, 7]]
    );
    fs::write(&path, [&good[..], &[0xff]].concat()).unwrap();
    assert_error(Dataset::open(&set, Access::Map), 3, &["dataset.toml", "utf-8"]);
    fs::remove_file(&path).unwrap();
    assert_error(
        Dataset::open(&set, Access::Map),
        3,
        &["dataset.toml", "l2b data pack"],
    );
    fs::create_dir(&path).unwrap();
    assert_error(Dataset::open(&set, Access::Map), 3, &["not a file"]);
    assert_error(Dataset::open(&set.join("no"), Access::Map), 3, &["l2b data pack"]);
}

/// An IDX file of unsigned bytes.
pub fn idx_bytes(shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(values);
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_idx(bytes: &[u8], dimensions: usize) -> Result<Idx, l2b::Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some-idx");
    fs::write(&path, bytes).unwrap();
    idx::read(&path, dimensions)
}

#[test]
fn idx_plain_and_gzip() {
    let values: Vec<u8> = (0..24).collect();
    let bytes = idx_bytes(&[2, 3, 4], &values);
    let want = Idx {
        shape: vec![2, 3, 4],
        values,
    };
    assert_eq!(read_idx(&bytes, 3).unwrap(), want);
    assert_eq!(read_idx(&gzip(&bytes), 3).unwrap(), want);
    // gzip files may be concatenated.
    assert_eq!(
        read_idx(&[gzip(&bytes[..10]), gzip(&bytes[10..])].concat(), 3).unwrap(),
        want
    );
}

#[test]
fn idx_faults() {
    let good = idx_bytes(&[2, 3, 4], &[7; 24]);
    let packed = gzip(&good);
    for length in 0..good.len() {
        assert_error(read_idx(&good[..length], 3), 3, &["some-idx"]);
    }
    for length in 0..packed.len() {
        assert_error(read_idx(&packed[..length], 3), 3, &["some-idx"]);
    }
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    for (bytes, words) in [
        (with(0, 1), ["magic number", "[01, 00, 08, 03]"]),
        (with(2, 0x0d), ["magic number", "[00, 00, 0d, 03]"]),
        (with(3, 1), ["magic number", "[00, 00, 08, 01]"]),
        (with(7, 0), ["dimension 0", "found 0"]),
        (with(7, 1), ["values", "found more"]),
        (with(7, 3), ["values", "found 24"]),
        (with(4, 0x80), ["values", "in this file"]),
        ([&good[..], &[0]].concat(), ["values", "more"]),
        (gzip(&[&good[..], &[0]].concat()), ["values", "more"]),
        (gzip(&with(4, 0x80)), ["values", "in this file"]),
        ([&packed[..], b"rubbish"].concat(), ["content", "damaged"]),
    ] {
        assert_error(read_idx(&bytes, 3), 3, &words);
    }
    // Dimensions whose product overflows.
    assert_error(read_idx(&idx_bytes(&[u32::MAX; 3], &[]), 3), 3, &["values"]);
    // Every bit of the gzip file: its own checksum, or the same content.
    let want = read_idx(&packed, 3).unwrap();
    for bit in 0..packed.len() * 8 {
        let mut bad = packed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(got) = read_idx(&bad, 3) {
            assert_eq!(got, want, "bit {bit}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    assert_error(idx::read(&folder.path().join("no"), 3), 1, &["no"]);
}

/// A gzip bomb: 64 MiB of zeros behind a header that announces 24 bytes stop at the 25th, and a header that announces
/// more than the file can hold is refused before anything is read.
#[test]
fn idx_bombs_are_capped() {
    let bomb = gzip(&idx_bytes(&[2, 3, 4], &vec![0; 64 << 20]));
    assert!(bomb.len() < 100_000);
    assert_error(read_idx(&bomb, 3), 3, &["values", "24 for shape", "more"]);
    let liar = gzip(&idx_bytes(&[60_000, 28, 28], &[0; 100]));
    assert_error(read_idx(&liar, 3), 3, &["values", "in this file"]);
}

/// The four files of a dataset of 2×3 images.
pub fn write_idx_set(folder: &Path, train: u32, test: u32, labels: impl Fn(u32) -> u8) {
    for (prefix, n, salt) in [("train", train, 0), ("t10k", test, 100)] {
        let pixels: Vec<u8> = (0..n * 6).map(|i| ((i + salt) * 37 % 256) as u8).collect();
        let labels: Vec<u8> = (0..n).map(&labels).collect();
        fs::write(
            folder.join(format!("{prefix}-images-idx3-ubyte")),
            idx_bytes(&[n, 2, 3], &pixels),
        )
        .unwrap();
        let labels = gzip(&idx_bytes(&[n], &labels));
        fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte.gz")), labels).unwrap();
    }
}

#[test]
fn packing_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    write_idx_set(folder.path(), 50, 9, |i| (i % 5) as u8);
    let out = folder.path().join("out");
    let mut seen = Vec::new();
    pack_idx(folder.path(), &out, "mini", None, |done, total| {
        seen.push((done, total))
    })
    .unwrap();
    assert_eq!(seen, [(50, 59), (59, 59)]);
    let dataset = Dataset::open(&out, Access::Map).unwrap();
    dataset.verify().unwrap();
    assert_eq!(dataset.manifest().classes, ["0", "1", "2", "3", "4"]);
    let train = dataset.split("train").unwrap();
    assert_eq!((train.len(), train.image_shape()), (50, [2, 3, 1]));
    assert!(
        train
            .labels()
            .iter()
            .enumerate()
            .all(|(i, &label)| label == i as i32 % 5)
    );
    let mut images = vec![0; 300];
    train
        .read_images(&(0..50).collect::<Vec<u32>>(), &mut images)
        .unwrap();
    assert!(images.iter().enumerate().all(|(i, &u)| u == (i * 37 % 256) as u8));
    // Mean and deviation the obvious way.
    let x: Vec<f64> = images.iter().map(|&u| f64::from(u) / 255.0).collect();
    let mean = x.iter().sum::<f64>() / 300.0;
    let std = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 300.0).sqrt();
    assert!((dataset.manifest().mean[0] - mean).abs() < 1e-12);
    assert!((dataset.manifest().std[0] - std).abs() < 1e-12);
}

#[test]
fn packing_refuses_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("raw");
    fs::create_dir(&source).unwrap();
    let out = folder.path().join("out");
    let pack = |classes: Option<&[String]>| pack_idx(&source, &out, "mini", classes, |_, _| ());
    assert_error(pack(None), 3, &["train-images-idx3-ubyte", "no such file"]);
    write_idx_set(&source, 50, 9, |i| (i % 5) as u8);
    assert_error(
        pack(Some(&["a".into(), "b".into()])),
        2,
        &["class names", "at least 5"],
    );
    let test = source.join("t10k-images-idx3-ubyte");
    fs::write(&test, idx_bytes(&[9, 3, 2], &[1; 54])).unwrap();
    assert_error(
        pack(None),
        3,
        &["t10k-images", "height and width", "[2, 3]", "[3, 2]"],
    );
    fs::write(&test, idx_bytes(&[8, 2, 3], &[1; 48])).unwrap();
    assert_error(
        pack(None),
        3,
        &["t10k-labels", "8, one for each image", "found 9"],
    );
    // Images that are all the same have no deviation to divide by.
    write_idx_set(&source, 50, 9, |i| (i % 5) as u8);
    fs::write(
        source.join("train-images-idx3-ubyte"),
        idx_bytes(&[50, 2, 3], &[9; 300]),
    )
    .unwrap();
    assert_error(pack(None), 3, &["std", "from 1e-6"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mutated_idx_never_panics(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        packed in any::<bool>(),
    ) {
        let mut bytes = idx_bytes(&[2, 3, 4], &[7; 24]);
        if packed {
            bytes = gzip(&bytes);
        }
        let length = bytes.len();
        for (place, value) in places {
            bytes[place.index(length)] = value;
        }
        if let Ok(idx) = read_idx(&bytes, 3) {
            prop_assert_eq!(idx.shape.iter().product::<usize>(), idx.values.len());
        }
    }

    #[test]
    fn mutated_manifests_never_panic(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let set = tiny(&folder);
        let path = set.join("dataset.toml");
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        for (place, value) in places {
            bytes[place.index(length)] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(dataset) = Dataset::open(&set, Access::Read) {
            prop_assert!(dataset.manifest().check(&path).is_ok());
        }
    }
}
