//! Damaged and dishonest shards: each is refused with file, field, expected and found, or proven harmless.

use crate::common::*;
use l2b::data::dataset::Dataset;
use l2b::data::source::Access;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

/// Every prefix of every shard is refused, and so is anything appended.
#[test]
fn every_truncation_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    without_hashes(&set);
    for name in ["train-00000.safetensors", "test-00000.safetensors"] {
        let path = set.join(name);
        for_every_truncation(&path, |length| {
            assert_error(Dataset::open(&set, ACCESS[length % 2]), 3, &[name]);
        });
        let good = fs::read(&path).unwrap();
        fs::write(&path, [&good[..], &[0]].concat()).unwrap();
        assert_error(Dataset::open(&set, Access::Map), 3, &[name, "size"]);
        fs::remove_file(&path).unwrap();
        assert_error(Dataset::open(&set, Access::Map), 1, &[name]);
        fs::write(&path, good).unwrap();
    }
    read_all(&set, Access::Map).unwrap();
}

/// Every flipped bit is found without the manifest's hashes, or everything reads as before.
#[test]
fn every_flipped_bit_is_found_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    without_hashes(&set);
    let want = read_all(&set, Access::Map).unwrap();
    let path = set.join("train-00001.safetensors");
    let good = fs::read(&path).unwrap();
    let payload = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut harmless = Vec::new();
    for_every_flipped_bit(&path, |bit| match read_all(&set, ACCESS[bit % 2]) {
        Ok(got) => {
            assert_eq!(got, want, "bit {bit} changes what is read and is not found");
            harmless.push(bit);
        }
        Err(error) => assert!(error.to_string().contains("train-00001"), "{error}"),
    });
    assert_eq!(fs::read(&path).unwrap(), good);
    // Checksums cover the payload and their own tables.
    assert_eq!(harmless.iter().filter(|&&bit| bit / 8 >= payload).count(), 0);
    println!("{} bits, harmless: {harmless:?}", good.len() * 8);
}

/// Without a call of `verify`, the first read of a damaged block finds it.
#[test]
fn damage_is_found_at_first_touch() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    let path = set.join("train-00001.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let want = values(7, 0).images;
    let at = bytes
        .windows(IMAGE)
        .position(|w| *w == want[5 * IMAGE..6 * IMAGE])
        .unwrap();
    bytes[at] ^= 4;
    fs::write(&path, bytes).unwrap();
    for access in ACCESS {
        let dataset = Dataset::open(&set, access).unwrap();
        let train = dataset.split("train").unwrap();
        train.read_images(&[0, 3], &mut [0; 2 * IMAGE]).unwrap();
        let words = ["train-00001", "images", "checksum of block 0", "hint"];
        assert_error(train.read_images(&[5], &mut [0; IMAGE]), 3, &words);
        assert_error(dataset.verify(), 3, &words);
    }
    // With the checksum recomputed, the manifest's hash still tells.
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (set, other) = (tiny(&a), tiny(&b));
    edit(&set.join("dataset.toml"), |text| {
        text.replacen("sha256 = \"", "sha256 = \"0", 1)
    });
    assert_error(Dataset::open(&set, Access::Map), 3, &["sha256"]);
    let zero = "0".repeat(64);
    let one_hash = |text: String| {
        let at = text.find("sha256 = \"").unwrap() + 10;
        format!("{}{zero}{}", &text[..at], &text[at + 64..])
    };
    edit(&other.join("dataset.toml"), one_hash);
    assert_error(
        Dataset::open(&other, Access::Map).unwrap().verify(),
        3,
        &["sha256", &zero],
    );
}

#[test]
fn a_shard_cut_while_open_is_an_error() {
    for access in ACCESS {
        let folder = tempfile::tempdir().unwrap();
        let set = tiny(&folder);
        let dataset = Dataset::open(&set, access).unwrap();
        let train = dataset.split("train").unwrap();
        fs::File::options()
            .write(true)
            .open(set.join("train-00000.safetensors"))
            .unwrap()
            .set_len(64)
            .unwrap();
        assert_error(
            train.read_images(&[1], &mut [0; IMAGE]),
            3,
            &["train-00000", "64 bytes", "while it was open"],
        );
        train.read_images(&[6], &mut [0; IMAGE]).unwrap();
    }
}

/// Cut in the middle of reading, at a moment of chance: samples or an error, never a signal.
#[test]
fn a_shard_cut_under_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let n = 200_000;
    let header = format!(
        r#"{{"images":{{"dtype":"U8","shape":[{n},2,3,2],"data_offsets":[0,{}]}},"labels":{{"dtype":"I64","shape":[{n}],"data_offsets":[{},{}]}}}}"#,
        n * IMAGE,
        n * IMAGE,
        n * (IMAGE + 8)
    );
    let bytes = raw_safetensors(&header, &vec![0; n * (IMAGE + 8)]);
    let manifest = RAW_MANIFEST.replace("count = 2", &format!("count = {n}"));
    fs::write(folder.path().join("dataset.toml"), manifest).unwrap();
    for round in 0..20u64 {
        fs::write(&path, &bytes).unwrap();
        let dataset = Dataset::open(folder.path(), Access::Map).unwrap();
        let train = dataset.split("train").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut image = [0; IMAGE];
                (0..n as u32).try_for_each(|sample| train.read_images(&[sample], &mut image))
            });
            std::thread::yield_now();
            file.set_len(round * 100_000).unwrap();
            if let Err(error) = reader.join().unwrap() {
                assert!(
                    error.exit_code() == 3 && error.to_string().contains("a.safetensors"),
                    "{error}"
                );
            }
        });
        assert_error(
            train.read_images(&[n as u32 - 1], &mut [0; IMAGE]),
            3,
            &["a.safetensors"],
        );
        fs::remove_file(&path).unwrap();
    }
}

const RAW_MANIFEST: &str = "name = \"raw\"\nclasses = [\"0\", \"1\", \"2\"]\nchannels = 2\nheight = 2\nwidth = 3\n\
                            mean = [0.5, 0.5]\nstd = [0.1, 0.1]\n[[splits.train]]\nfile = \"a.safetensors\"\ncount = 2\n";

/// Writes a split of two samples from a hand-made shard and tries to open it.
fn open_raw(bytes: &[u8]) -> Result<Vec<String>, l2b::Error> {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path();
    fs::write(set.join("a.safetensors"), bytes).unwrap();
    fs::write(set.join("dataset.toml"), RAW_MANIFEST).unwrap();
    let results = ACCESS.map(|access| read_all(set, access));
    assert_eq!(results[0].is_ok(), results[1].is_ok());
    results.into_iter().next().unwrap()
}

const IMAGES: &str = r#""images":{"dtype":"U8","shape":[2,2,3,2],"data_offsets":[0,24]}"#;
const LABELS: &str = r#""labels":{"dtype":"I64","shape":[2],"data_offsets":[24,40]}"#;

fn payload(labels: [i64; 2]) -> Vec<u8> {
    let labels = labels.into_iter().flat_map(i64::to_le_bytes);
    (1..25).chain(labels).collect()
}

/// A shard as a few lines of Python write it: no checksums, labels behind the images, odd payload alignment.
#[test]
fn plain_and_misaligned_shards_are_read() {
    for padding in 0..9 {
        let header = format!("{{{IMAGES},{LABELS}}}{}", " ".repeat(padding));
        let all = open_raw(&raw_safetensors(&header, &payload([2, 1]))).unwrap();
        assert!(
            all[1].contains("[2, 1]") && all[1].contains("[1, 2, 3, 4"),
            "{all:?}"
        );
    }
}

#[test]
fn dishonest_headers_are_refused() {
    let case = |images: &str, labels: &str, words: &[&str]| {
        let header = format!("{{{images},{labels}}}");
        assert_error(
            open_raw(&raw_safetensors(&header, &payload([0, 1]))),
            3,
            &[&["a.safetensors"], words].concat(),
        );
    };
    let images = |from: &str, to: &str| IMAGES.replace(from, to);
    let labels = |from: &str, to: &str| LABELS.replace(from, to);
    case(&images("U8", "I8"), LABELS, &["type of images", "U8", "I8"]);
    case(&images("U8", "X9"), LABELS, &["header"]);
    case(
        &images("[2,2,3,2]", "[2,3,2,2]"),
        LABELS,
        &["shape of images", "[2, 2, 3, 2]", "[2, 3, 2, 2]"],
    );
    case(&images("[2,2,3,2]", "[24]"), LABELS, &["shape of images"]);
    case(&images("[2,2,3,2]", "[2,2,3,3]"), LABELS, &["header"]);
    case(&images("[2,2,3,2]", "[2,2,3,-2]"), LABELS, &["header"]);
    case(
        &images("[2,2,3,2]", "[4294967296,4294967296,4294967296]"),
        LABELS,
        &["header"],
    );
    case(&images("images", "image"), LABELS, &["tensors", "\"image\""]);
    case(&images("images", "masks"), LABELS, &["tensors", "\"images\""]);
    case(IMAGES, &labels("I64", "F64"), &["type of labels", "I64", "F64"]);
    case(
        IMAGES,
        &labels("I64\",\"shape\":[2]", "I32\",\"shape\":[4]"),
        &["type of labels"],
    );
    case(IMAGES, &labels("[2]", "[2,1]"), &["shape of labels"]);
    case(IMAGES, &labels("[24,40]", "[16,32]"), &["header"]); // overlap
    case(IMAGES, &labels("[24,40]", "[32,48]"), &["header"]); // hole
    case(IMAGES, &labels("[24,40]", "[40,24]"), &["header"]);
    case(
        IMAGES,
        &labels("[24,40]", "[24,18446744073709551615]"),
        &["header"],
    );
    case(
        IMAGES,
        &labels("[24,40]", "[24,99999999999999999999999]"),
        &["header"],
    );
    case(IMAGES, &labels("labels", "images"), &["header"]); // one name twice
    case(
        IMAGES,
        "\"crc32.images\":{\"dtype\":\"U32\",\"shape\":[4],\"data_offsets\":[24,40]}",
        &["crc32.images", "[1]"],
    );
    case(
        IMAGES,
        "\"crc32.labels\":{\"dtype\":\"U32\",\"shape\":[4],\"data_offsets\":[24,40]}",
        &["labels"],
    );
    case(IMAGES, "\"__metadata__\":{\"a\":1}", &["header"]);
    case(IMAGES, "\"labels\":null", &["header"]);

    for (values, words) in [
        ([0, 3], ["labels[1]", "0 to 2", "found 3"]),
        ([-1, 0], ["labels[0]", "0 to 2", "found -1"]),
    ] {
        let bytes = raw_safetensors(&format!("{{{IMAGES},{LABELS}}}"), &payload(values));
        assert_error(open_raw(&bytes), 3, &words);
    }
    let huge = i64::from(i32::MAX) + 1 + (1 << 32);
    let bytes = raw_safetensors(&format!("{{{IMAGES},{LABELS}}}"), &payload([0, huge]));
    assert_error(open_raw(&bytes), 3, &["labels[1]"]);

    for length in [0, 1, 1 << 20, 100_000_001, u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut bytes = raw_safetensors(&format!("{{{IMAGES},{LABELS}}}"), &payload([0, 1]));
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert_error(open_raw(&bytes), 3, &["header"]);
    }
    for header in ["", "{", "[]", "null", "{}", "\u{feff}{}", "{\"\u{0}\":1}"] {
        assert_error(open_raw(&raw_safetensors(header, &[])), 3, &["a.safetensors"]);
    }
    // Nested deeper than any stack.
    assert_error(
        open_raw(&raw_safetensors(&"[".repeat(100_000), &[])),
        3,
        &["header"],
    );
    let deep = format!("{{\"a\":{}", "{\"a\":".repeat(100_000));
    assert_error(open_raw(&raw_safetensors(&deep, &[])), 3, &["header"]);
}

#[test]
fn shards_of_a_split_agree() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny(&folder);
    without_hashes(&set);
    // A shard without the optional tensors in the place of the second of train.
    edit(&set.join("dataset.toml"), |text| {
        text.replace("train-00001", "X")
            .replace("test-00000", "train-00001")
            .replace("X", "test-00000")
    });
    assert_error(Dataset::open(&set, Access::Map), 3, &["safetensors"]);
    edit(&set.join("dataset.toml"), |text| {
        text.replace("count = 2", "count = Y")
            .replace("count = 3", "count = 2")
            .replace("count = Y", "count = 3")
    });
    assert_error(
        Dataset::open(&set, Access::Map),
        3,
        &["test-00000", "tensors", "train-00000"],
    );
}

fn mutated(path: &Path, places: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let length = bytes.len();
    for (place, value) in places {
        bytes[place.index(length)] = *value;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Mutations of several bytes, in the header above all: an error or the same content, never a panic.
    #[test]
    fn mutated_shards_never_panic(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let set = tiny(&folder);
        without_hashes(&set);
        let want = read_all(&set, Access::Map).unwrap();
        let path = set.join("test-00000.safetensors");
        fs::write(&path, mutated(&path, &places)).unwrap();
        for access in ACCESS {
            if let Ok(got) = read_all(&set, access) {
                prop_assert_eq!(&got, &want);
            }
        }
    }
}
