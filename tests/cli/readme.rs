//! README's commands on one's own data, as they stand there, in their order.

use std::fs;

use l2b::tensor_file::{Stored, encode};
use safetensors::Dtype;
use serde_json::Value;

use super::bench::{Bench, TINY, text};

const README: &str = include_str!("../../README.md");

/// Runs a line of README, its capitals and the elided name of a run filled in, with more options behind; standard output.
fn typed(bench: &Bench, line: &str, names: &[(&str, &str)], more: &[&str]) -> String {
    let stands = |shown: &str| shown.split('#').next().unwrap().trim_end() == line;
    assert!(README.lines().any(stands), "README no longer says: {line}");
    let line = names
        .iter()
        .fold(line.to_owned(), |line, (name, value)| line.replace(name, value));
    let words: Vec<&str> = line.split(' ').skip(1).chain(more.iter().copied()).collect();
    bench.ok(&words)
}

/// An IDX file: `dims` and as many bytes.
fn idx(dims: &[u32], byte: impl Fn(usize) -> u8) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|d| file.extend(d.to_be_bytes()));
    let count: u32 = dims.iter().product();
    file.extend((0..count as usize).map(byte));
    file
}

#[test]
fn own_data_from_idx_files_to_predictions() {
    let bench = Bench::new();
    fs::create_dir(bench.path("idx")).unwrap();
    // Three classes of 6x5 images, told apart by their brightness.
    for (name, count) in [("train", 240u32), ("t10k", 30)] {
        let images = idx(&[count, 6, 5], |i| (60 * (i / 30 % 3) + 3 * (i % 11)) as u8);
        let labels = idx(&[count], |i| (i % 3) as u8);
        fs::write(bench.path(&format!("idx/{name}-images-idx3-ubyte")), images).unwrap();
        fs::write(bench.path(&format!("idx/{name}-labels-idx1-ubyte")), labels).unwrap();
    }
    let names = [("FOLDER", "idx"), ("DATASET", "own"), ("runs/…", "run")];
    let typed = |line, more: &[&str]| typed(&bench, line, &names, more);
    typed("l2b data pack FOLDER --out DATASET", &[]);
    let noise = typed(
        "l2b data noise DATASET --kind uniform --rate 0.4 --meta-per-class 10 --out noisy.safetensors",
        &[],
    );
    assert!(noise.contains("40.00 %") && noise.contains("30"), "{noise}");
    let info = typed(
        "l2b data info DATASET --verify",
        &["--labels", "noisy.safetensors"],
    );
    assert!(
        info.contains("240") && info.contains("noisy.safetensors"),
        "{info}"
    );
    typed(
        "l2b train --data DATASET --labels noisy.safetensors --epochs 30",
        &small("run"),
    );
    let summary = bench.json("run/summary.json");
    // 240 less the clean images; both rates are in the summary.
    assert_eq!(summary["train_images"], 210);
    assert_eq!(summary["clean_images"], 30);
    assert_eq!(summary["noise_nominal"], 0.4);
    assert!(summary["noise_realised"].as_f64().unwrap() > 0.1);
    typed(
        "l2b compare --data DATASET --noise 0.4,0.6 --seeds 5",
        &[
            &small("compared")[..],
            &["--epochs", "1", "--warm-up", "0", "--methods", "l2b,ce"],
        ]
        .concat(),
    );
    let runs = bench.json("compared/compare.json")["runs"].clone();
    assert_eq!(runs.as_array().unwrap().len(), 20);
    assert_eq!(runs[0]["dataset"], "own");
    let scores = typed("l2b eval --weights runs/…/last.safetensors --data DATASET", &[]);
    assert!(scores.contains("balanced") && scores.contains("AUC"), "{scores}");
}

/// [`TINY`] without its epochs, which README's lines give.
fn small(out: &str) -> Vec<&str> {
    let mut words = TINY.to_vec();
    words.drain(4..6);
    words.extend(["--out", out]);
    words
}

/// A dataset of coloured images as README's Python writes it: no checksums, no hashes. Every fourth label of train is wrong.
fn coloured(bench: &Bench, trusted: bool) {
    fs::create_dir(bench.path("colour")).unwrap();
    let mut manifest = "name = 'own'\nclasses = ['red', 'blue']\nchannels = 3\nheight = 6\nwidth = 6\n\
                        mean = [0.3, 0.2, 0.3]\nstd = [0.2, 0.1, 0.2]\n"
        .to_owned();
    for (split, n) in [("train", 120), ("trusted", 16), ("test", 20)] {
        if split == "trusted" && !trusted {
            continue;
        }
        let pixel = |i: usize| [[150, 40, 10], [10, 40, 150]][i / 36 % 2].map(|v: u8| v + (i % 7) as u8);
        let images = Stored {
            dtype: Dtype::U8,
            shape: vec![n, 6, 6, 3],
            bytes: (0..n * 36).flat_map(pixel).collect(),
        };
        let wrong = |i: usize| usize::from(split == "train" && i.is_multiple_of(4));
        let labels = Stored::integers(&[n], (0..n).map(|i| ((i + wrong(i)) % 2) as i64));
        let tensors = [("images".to_owned(), images), ("labels".to_owned(), labels)].into();
        let file = format!("{split}.safetensors");
        fs::write(bench.path("colour").join(&file), encode(&tensors, None).unwrap()).unwrap();
        manifest += &format!("[[splits.{split}]]\nfile = '{file}'\ncount = {n}\n");
    }
    fs::write(bench.path("colour/dataset.toml"), manifest).unwrap();
}

#[test]
fn labels_as_they_came_with_a_trusted_split() {
    let bench = Bench::new();
    coloured(&bench, true);
    let names = [("DATASET", "colour"), ("runs/…", "run")];
    let typed = |line, more: &[&str]| typed(&bench, line, &names, more);
    let info = typed("l2b data info DATASET --verify", &[]);
    assert!(info.contains("the others carry neither"), "{info}");
    let fingerprints = info
        .split_whitespace()
        .filter(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(fingerprints.count(), 3, "{info}");
    typed(
        "l2b train --data DATASET --meta-split trusted --epochs 30",
        &small("run"),
    );
    let summary = bench.json("run/summary.json");
    assert_eq!(
        (&summary["clean_images"], &summary["train_images"]),
        (&16.into(), &120.into())
    );
    // Nobody knows how many of the labels are wrong.
    assert_eq!(summary["noise_realised"], Value::Null);
    let like_cifar =
        "l2b train --data DATASET --meta-split trusted --pad 4 --flip --width 64 --blocks 2,2,2,2";
    let once = [
        "--epochs",
        "1",
        "--warm-up",
        "0",
        "--batch",
        "60",
        "--device",
        "cpu",
        "--out",
        "cifar",
    ];
    typed(like_cifar, &once);
    let csv = typed(
        "l2b predict --weights runs/…/last.safetensors --data DATASET --split train",
        &[],
    );
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("id,label,p0,p1,given"));
    for (id, line) in lines.enumerate() {
        let given = (id + usize::from(id.is_multiple_of(4))) % 2;
        assert!(
            line.starts_with(&format!("{id},")) && line.ends_with(&format!(",{given}")),
            "{line}"
        );
    }
}

/// Labels that nobody vouches for guide no training in silence.
#[test]
fn given_labels_are_clean_only_on_request() {
    let bench = Bench::new();
    coloured(&bench, false);
    let run = |out, more: &[&str]| {
        let words = [
            &["train", "--data", "colour"],
            &small(out)[..],
            &["--epochs", "1", "--warm-up", "0"],
            more,
        ];
        bench.run(&words.concat())
    };
    for method in ["l2b", "l2rw", "clean"] {
        let output = run("refused", &["--method", method]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        for part in [method, "--meta-split", "--meta-per-class"] {
            assert!(error.contains(part), "{error}");
        }
    }
    let words = [
        "compare",
        "--data",
        "colour",
        "--methods",
        "ce,l2b",
        "--out",
        "refused",
    ];
    let error = text(&bench.run(&words).stderr);
    assert!(
        error.contains("clean images for l2b") && !error.contains("seed"),
        "{error}"
    );
    assert!(!bench.path("refused").exists());

    // No clean images are needed, and none are taken.
    for method in ["ce", "bootstrap"] {
        let output = run(method, &["--method", method]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary = bench.json(&format!("{method}/summary.json"));
        assert_eq!(
            (&summary["train_images"], &summary["clean_images"]),
            (&120.into(), &0.into())
        );
    }
    let told = "clean   10 images of each class by their given labels, which are taken as right";
    let shown = run("asked", &["--meta-per-class", "10", "--meta-batch", "8"]);
    assert!(text(&shown.stdout).contains(told), "{}", text(&shown.stderr));
    // To draw noise over labels is to take them as the truth.
    let shown = run("noisy", &["--noise", "0.4", "--meta-batch", "8"]);
    assert!(shown.status.success() && !text(&shown.stdout).contains("taken as right"));
    assert_eq!(bench.json("noisy/summary.json")["clean_images"], 20);
}
