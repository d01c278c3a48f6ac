//! README's commands on one's own data, typed in their order.

use std::fs;

use super::bench::{Bench, TINY};

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
    bench.ok(&["data", "pack", "idx", "--out", "own"]);
    let noise = bench.ok(&[
        "data",
        "noise",
        "own",
        "--kind",
        "uniform",
        "--rate",
        "0.4",
        "--meta-per-class",
        "10",
        "--out",
        "noisy.safetensors",
    ]);
    assert!(noise.contains("40.00 %") && noise.contains("30"), "{noise}");
    let info = bench.ok(&["data", "info", "own", "--verify", "--labels", "noisy.safetensors"]);
    assert!(
        info.contains("240") && info.contains("noisy.safetensors"),
        "{info}"
    );
    let words = [
        "train",
        "--data",
        "own",
        "--labels",
        "noisy.safetensors",
        "--out",
        "run",
    ];
    let words: Vec<&str> = words.iter().chain(&TINY).copied().collect();
    bench.ok(&words);
    let summary = bench.json("run/summary.json");
    // 240 less the clean images; both rates are in the summary.
    assert_eq!(summary["train_images"], 210);
    assert_eq!(summary["clean_images"], 30);
    assert_eq!(summary["noise_nominal"], 0.4);
    assert!(summary["noise_realised"].as_f64().unwrap() > 0.1);
    let weights = "run/last.safetensors";
    let scores = bench.ok(&["eval", "--weights", weights, "--data", "own"]);
    assert!(scores.contains("balanced") && scores.contains("AUC"), "{scores}");
    let csv = bench.ok(&["predict", "--weights", weights, "--data", "own"]);
    assert_eq!(csv.lines().count(), 31, "{csv}");
}
