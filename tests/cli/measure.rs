//! `l2b bench`: records, comparison, one operation alone, steps on request. No figure is asserted but that it is one.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::bench::{Bench, text};

const SMALL: [&str; 14] = [
    "bench",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--width",
    "4",
    "--blocks",
    "1,1",
    "--image",
    "8,8,1",
    "--batch",
    "6",
    "--windows",
];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL[..], &["3"], more].concat()
}

/// Every number in a record that is a time or a rate is one.
fn assert_spread(spread: &Value) {
    let at = |key: &str| spread[key].as_f64().unwrap();
    assert!(
        at("p10") > 0.0 && at("p10") <= at("median") && at("median") <= at("p90"),
        "{spread}"
    );
    assert_eq!(spread["windows"], 3);
}

#[test]
fn a_record_holds_every_part_and_compares_with_another() {
    let bench = Bench::new();
    let shown = bench.ok(&small(&[
        "--meta-batch",
        "3",
        "--seconds",
        "0",
        "--out",
        "a.json",
    ]));
    for part in [
        "ceilings",
        "conv_tangent",
        "meta backward",
        "images/s",
        "planned",
        "mapped shards",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let record = bench.json("a.json");
    assert_eq!(
        (&record["schema"], &record["complete"]),
        (&json!(2), &json!(true))
    );
    assert_eq!(record["machine"]["name"], "cpu");
    assert_eq!(record["machine"]["threads"], 1);
    assert_eq!(record["settings"]["precision"], "f32");
    assert_eq!(record["settings"]["image"], json!([8, 8, 1]));
    assert_eq!(
        (&record["settings"]["batch"], &record["settings"]["meta_batch"]),
        (&json!(6), &json!(3))
    );
    assert_eq!(record["clocks"], Value::Null);
    assert!(record["date"].as_str().unwrap().starts_with("20"));
    let commit = record["commit"].as_str().unwrap();
    assert!(commit == "unknown" || commit.len() == 40, "{commit}");
    for key in ["matrix", "copy"] {
        assert_spread(&record["ceilings"][key]);
    }
    let instruction = record["ceilings"]["instruction"].as_str().unwrap();
    assert!(!instruction.is_empty() && shown.contains(instruction));
    let rows = |key: &str| record[key].as_array().unwrap().clone();
    assert!(rows("operations").len() > 40);
    for row in rows("operations")
        .iter()
        .chain(&rows("phases"))
        .chain(&rows("steps"))
    {
        assert_spread(&row["seconds"]);
    }
    let names = |key: &str, field: &str| -> Vec<String> {
        rows(key)
            .iter()
            .map(|row| row[field].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names("phases", "phase"),
        [
            "meta_forward",
            "meta_backward",
            "train_forward",
            "tangent",
            "weights",
            "backward",
            "optimizer"
        ]
    );
    for key in ["steps", "memory"] {
        assert_eq!(names(key, "objective"), ["ce", "l2rw", "l2b"]);
    }
    // Cross-entropy alone needs less memory than the step with a meta batch.
    let bytes = |i: usize| rows("memory")[i]["planned_bytes"].as_u64().unwrap();
    assert!(0 < bytes(0) && bytes(0) < bytes(2) && bytes(1) == bytes(2));
    assert_spread(&record["loader"]["images_per_second"]);

    let again = small(&[
        "--meta-batch",
        "3",
        "--seconds",
        "0",
        "--parts",
        "steps",
        "--compare",
        "a.json",
    ]);
    let shown = bench.ok(&again);
    for part in ["new / old", "step: l2b", "ceiling: copy", "5 figures"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("conv_tangent"), "{shown}");
}

#[test]
fn bad_input_is_refused_by_name() {
    let bench = Bench::new();
    fs::write(bench.path("taken.json"), "{}").unwrap();
    fs::write(bench.path("junk"), "not a batch").unwrap();
    bench.ok(&small(&[
        "--seconds",
        "0",
        "--parts",
        "loader",
        "--out",
        "old.json",
    ]));
    let kernel = |name: &'static str, shape: &'static str| ["--kernel", name, "--shape", shape];
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &kernel("conv_forward", "1,2,3"),
            2,
            &["--shape of conv_forward", "n,h,w,c,k,r,stride,pad"],
        ),
        (&kernel("conv_forward", "1,8,8,4,4,3,x,1"), 2, &["--shape"]),
        (&kernel("sgd", "0"), 2, &["--shape of sgd"]),
        (&kernel("conv_forwards", "1"), 2, &["conv_forwards"]),
        (&["--kernel", "sgd"], 2, &["--shape"]),
        (&["--shape", "5"], 2, &["--kernel"]),
        (
            &["--kernel", "sgd", "--shape", "64", "--form", "shiny"],
            2,
            &["shiny", "pending"],
        ),
        (
            &["--kernel", "sgd", "--shape", "64", "--repeat", "0"],
            2,
            &["--repeat"],
        ),
        (&["--blocks", "1,0"], 2, &["blocks"]),
        (&["--meta-depth", "7"], 2, &["--meta-depth"]),
        (&["--meta-batch", "0"], 2, &["--meta-batch"]),
        (&["--seconds", "nan"], 2, &["--seconds"]),
        (&["--parts", "everything"], 2, &["everything", "operations"]),
        (&["--out", "taken.json"], 2, &["--out", "taken.json"]),
        (&["--compare", "none.json"], 1, &["none.json"]),
        (&["--compare", "junk"], 3, &["junk", "l2b bench"]),
        (&["--compare", "taken.json"], 3, &["taken.json", "schema"]),
        (
            &["--compare", "old.json", "--meta-batch", "5"],
            2,
            &["old.json", "batch"],
        ),
        (&["--data", "nowhere", "--parts", "loader"], 3, &["nowhere"]),
    ];
    for (more, code, parts) in cases {
        let output = bench.run(&small(more));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{more:?}: {error}");
        for part in *parts {
            assert!(error.contains(part), "{more:?}: {part:?} is not in: {error}");
        }
        assert!(!error.contains("internal error"), "{more:?}: {error}");
    }
    for (more, code, parts) in [
        (
            &["--serve", "--batch-file", "junk"][..],
            3,
            ["junk", "safetensors"],
        ),
        (&["--batch-file", "junk"], 2, ["--serve", "required"]),
        (&["--image", "8,8"], 2, ["--image", "height,width,channels"]),
        (&["--image", "8,8,0"], 2, ["in_channels", "1 to"]),
    ] {
        let output = bench.run(&[&["bench", "--device", "cpu"], more].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{more:?}: {part:?} is not in: {error}");
        }
    }
}

#[test]
fn one_operation_alone() {
    let bench = Bench::new();
    let mut devices = vec!["cpu"];
    if cfg!(feature = "emulator") {
        devices.push("emulator");
    }
    for device in devices {
        let shape = ["--kernel", "conv_backward_input", "--shape", "2,5,6,4,8,3,2,1"];
        let words = [
            &["bench", "--device", device][..],
            &shape,
            &["--form", "add+mask", "--repeat", "2"],
        ]
        .concat();
        let shown = bench.ok(&words);
        assert_eq!(
            shown,
            "conv_backward_input 2,5,6,4,8,3,2,1 add+mask: called 2 times\n"
        );
    }
    let words = small(&["--kernel", "conv_forward", "--shape", "2,5,6,4,8,3,1,1"]);
    let shown = bench.ok(&words);
    assert!(
        shown.contains("conv_forward 2,5,6,4,8,3,1,1 pending+sums"),
        "{shown}"
    );
}

#[test]
fn steps_on_request() {
    let bench = Bench::new();
    let file = format!(
        "{}/tests/fixtures/batch-momentum-w4.input.safetensors",
        env!("CARGO_MANIFEST_DIR")
    );
    let words = [
        "bench",
        "--device",
        "cpu",
        "--precision",
        "f64",
        "--serve",
        "--batch-file",
        &file,
    ];
    let mut child = bench
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"{\"objective\": \"l2b\", \"steps\": 2}\n{\"objective\": 5}\n{\"quit\": true}\n")
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let shown = text(&output.stdout);
    let answers: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 3, "{shown}");
    assert_eq!(answers[0]["ready"], true);
    assert_eq!(
        (&answers[0]["device"], &answers[0]["precision"]),
        (&json!("cpu"), &json!("f64"))
    );
    assert!(answers[0]["n"].as_u64().unwrap() > 0 && answers[0]["m"].as_u64().unwrap() > 0);
    assert_eq!(
        (&answers[1]["objective"], &answers[1]["steps"]),
        (&json!("l2b"), &json!(2))
    );
    for key in ["seconds", "device_seconds", "peak_bytes"] {
        assert!(answers[1][key].as_f64().unwrap() > 0.0, "{shown}");
    }
    assert!(
        answers[2]["error"].as_str().unwrap().contains("objective"),
        "{shown}"
    );
}

#[test]
fn numerics_compares_each_precision_with_f64() {
    let bench = Bench::new();
    let words = |more: &[&'static str]| -> Vec<&'static str> {
        let run = ["numerics", "--epochs", "2", "--warm-up", "1", "--batches", "2"];
        [
            &run[..],
            &["--width", "4", "--blocks", "1,1", "--device", "cpu"],
            more,
        ]
        .concat()
    };
    let shown = bench.ok(&words(&["--out", "a.json"]));
    assert!(shown.contains("| bf16 | pseudo-labels flipped |"), "{shown}");
    let record = bench.json("a.json");
    let rows = record["rows"].as_array().unwrap();
    // Three states, three precisions, six quantities.
    assert_eq!(rows.len(), 54);
    assert_eq!(record["flips"].as_array().unwrap().len(), 9);
    let mut epochs: Vec<u64> = rows.iter().map(|row| row["epoch"].as_u64().unwrap()).collect();
    epochs.dedup();
    assert_eq!(epochs, [0, 1, 2]);
    for row in rows {
        let at = |key: &str| row[key].as_f64().unwrap();
        // A flipped pseudo-label moves everything behind it: bounds far above what one sees.
        let (most, least) = match row["precision"].as_str().unwrap() {
            "f32" => (1e-3, 0.0),
            "tf32" => (0.2, 1e-6),
            _ => (0.5, 1e-5),
        };
        assert!(at("relative_error") <= most, "{row}");
        // Weights may all be zero, gradients are not: what was rounded shows in them.
        assert!(
            row["quantity"] != "gradient" || at("relative_error") >= least,
            "{row}"
        );
        assert!(
            at("cosine") > 0.85 && at("cosine") < 1.0 + 1e-9 && at("sign") > 0.8,
            "{row}"
        );
    }

    let refused = |words: &[&str], why: &str| {
        let output = bench.run(words);
        assert_eq!(output.status.code(), Some(2), "{why}");
        let error = text(&output.stderr);
        assert!(error.contains(why), "{error}");
    };
    refused(&words(&["--out", "a.json"]), "a path that does not exist yet");
    bench.ok(&[&["train", "--out", "run"], &super::bench::TINY[..]].concat());
    refused(
        &["numerics", "--run", "run", "--width", "4"],
        "--width beside --run",
    );
    let of_run = [
        "numerics",
        "--run",
        "run",
        "--batches",
        "1",
        "--precisions",
        "bf16",
        "--device",
        "cpu",
    ];
    let shown = bench.ok(&of_run);
    assert!(shown.contains("after epoch 3"), "{shown}");
}
