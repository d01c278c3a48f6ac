//! `l2b compare`.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::bench::{Bench, TINY, hash, text};

/// Words of a comparison of tiny runs.
fn compare(options: &str) -> Vec<&str> {
    ["compare"]
        .into_iter()
        .chain(options.split(' '))
        .chain(TINY)
        .collect()
}

fn list<'a>(comparison: &'a Value, key: &str) -> &'a [Value] {
    comparison[key].as_array().unwrap()
}

#[test]
fn compare_tabulates_the_same_runs() {
    let bench = Bench::new();
    let shown = bench.ok(&compare("--methods ce,l2b --noise 0.2,0.6 --seeds 2 --out c"));
    assert!(
        shown.contains("| 60 % |") && shown.contains("l2b − ce"),
        "{shown}"
    );
    assert_eq!(bench.names("c"), ["compare.csv", "compare.json", "compare.md"]);
    let comparison = bench.json("c/compare.json");
    let runs = list(&comparison, "runs");
    assert_eq!((runs.len(), list(&comparison, "table").len()), (8, 4));
    assert_eq!(
        fs::read_to_string(bench.path("c/compare.csv"))
            .unwrap()
            .lines()
            .count(),
        9
    );
    // Alone or side by side with others: the same bits.
    let alone = bench.train("alone", &["--noise", "0.6", "--seed", "1"]);
    let same = |r: &&Value| r["method"] == "l2b" && r["noise"] == 0.6 && r["seed"] == 1;
    let row = runs.iter().find(same).unwrap();
    assert_eq!(hash(row), hash(&alone));
    // Both methods of a seed saw the same labels.
    let realised: Vec<f64> = runs
        .iter()
        .filter(|r| r["noise"] == 0.6 && r["seed"] == 1)
        .map(|r| r["noise_realised"].as_f64().unwrap())
        .collect();
    assert_eq!((realised.len(), realised[0]), (2, realised[1]));
}

#[test]
fn compare_tabulates_budgets_with_their_cost() {
    let bench = Bench::new();
    let words = compare("--methods l2b,ce --seeds 1 --meta-batch 8 --meta-depth all,0 --out c");
    let shown = bench.ok(&words);
    for part in [
        "l2b, m = 8, head − l2b, m = 8, all",
        "l2b, m = 8, all − ce",
        "ordinary steps",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let comparison = bench.json("c/compare.json");
    let list = |key: &str| list(&comparison, key);
    assert_eq!(
        (list("runs").len(), list("table").len(), list("costs").len()),
        (3, 3, 2)
    );
    assert_eq!(
        (&list("table")[1]["meta_batch"], &list("table")[1]["meta_depth"]),
        (&8.into(), &0.into())
    );
    let operations: Vec<f64> = list("costs")
        .iter()
        .map(|c| c["operations"].as_f64().unwrap())
        .collect();
    assert!(
        operations[0] > operations[1] && operations[1] > 1.0,
        "{operations:?}"
    );
    assert!(list("costs").iter().all(|c| c["ratio"].as_f64().unwrap() > 0.0));
    // A row is the run of that budget alone, by its numbers.
    let alone = |out: &str, depth: &str| bench.train(out, &["--meta-batch", "8", "--meta-depth", depth]);
    assert_eq!(hash(&list("runs")[0]), hash(&alone("all", "all")));
    assert_eq!(hash(&list("runs")[1]), hash(&alone("head", "0")));
    assert_ne!(hash(&list("runs")[0]), hash(&list("runs")[1]));
}

/// Seeds of a comparison on labels of a file are those of runs with it.
#[test]
fn compare_takes_labels_of_a_file() {
    let bench = Bench::new();
    let noise = "data noise --out labels --rate 0.5 --meta-per-class 5 --seed 7";
    bench.ok(&noise.split(' ').collect::<Vec<_>>());
    let shown = bench.ok(&compare("--labels labels --methods ce,l2b --seeds 2 --out c"));
    let comparison = bench.json("c/compare.json");
    let runs = list(&comparison, "runs");
    assert_eq!(runs.len(), 4);
    let alone = bench.train("alone", &["--labels", "labels", "--seed", "1"]);
    let same = |r: &&Value| r["method"] == "l2b" && r["seed"] == 1;
    assert_eq!(hash(runs.iter().find(same).unwrap()), hash(&alone));
    // The rate is that of the file, whatever the seed.
    for run in runs {
        assert_eq!(
            (&run["noise"], &run["noise_nominal"]),
            (&Value::Null, &Value::from(0.5))
        );
        assert_eq!(run["noise_realised"], alone["noise_realised"]);
    }
    assert_ne!(hash(&runs[1]), hash(&runs[3]));
    let rate = 100.0 * alone["noise_realised"].as_f64().unwrap();
    assert!(shown.contains(&format!("| - | {rate:.1} % | l2b |")), "{shown}");
    let both = bench.run(&compare("--labels labels --noise 0.2 --methods ce"));
    assert_eq!(both.status.code(), Some(2));
    assert!(text(&both.stderr).contains("--noise"));
}

/// What clean images are trained on alone does not depend on lists for the methods with a meta pass.
#[test]
fn clean_is_the_same_beside_any_budgets() {
    let bench = Bench::new();
    let clean = bench.train("clean", &["--method", "clean"]);
    for (out, lists) in [
        ("a", "--meta-batch 16,64 --meta-budget fast,full"),
        ("b", "--meta-batch 8 --meta-draw stratified,uniform"),
    ] {
        bench.ok(&compare(&format!(
            "--methods clean --seeds 1 --out {out} {lists}"
        )));
        let comparison = bench.json(&format!("{out}/compare.json"));
        assert_eq!(hash(&list(&comparison, "runs")[0]), hash(&clean), "{lists}");
    }
}

/// A method that diverges costs the others nothing.
#[test]
fn a_run_that_diverges_is_a_row() {
    let bench = Bench::new();
    let output = bench.run(&compare("--methods ce,l2b --seeds 2 --eta 1e300 --out c"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    let comparison = bench.json("c/compare.json");
    let failures = list(&comparison, "failures");
    assert_eq!((list(&comparison, "runs").len(), failures.len()), (2, 2));
    for failure in failures {
        assert_eq!(
            (&failure["variant"], &failure["noise"]),
            (&"l2b".into(), &0.4.into())
        );
        let why = failure["failure"].as_str().unwrap();
        assert!(
            why.starts_with("diverged at step") && !why.contains("hint"),
            "{why}"
        );
        for place in [
            &shown,
            &told,
            &fs::read_to_string(bench.path("c/compare.csv")).unwrap(),
        ] {
            assert!(place.contains(why), "{why}: {place}");
        }
    }
    let table = list(&comparison, "table");
    assert_eq!(
        (&table[0]["last"]["n"], &table[0]["failed"]),
        (&2.into(), &0.into())
    );
    assert_eq!(
        (&table[1]["last"], &table[1]["failed"]),
        (&Value::Null, &2.into())
    );
    assert!(shown.contains("| l2b | - | - | 0, 2 failed | - |"), "{shown}");
    assert!(list(&comparison, "differences").is_empty() && !shown.contains("Not complete"));
    // Every line has the cells of the first.
    let csv = fs::read_to_string(bench.path("c/compare.csv")).unwrap();
    let cells: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(cells, [10; 5]);

    // Nor does a step that cannot be measured.
    bench.ok(&compare(
        "--methods l2b --seeds 1 --meta-depth 0,1 --eta 1e300 --out d",
    ));
    let comparison = bench.json("d/compare.json");
    assert_eq!(
        (
            list(&comparison, "failures").len(),
            list(&comparison, "costs").len()
        ),
        (2, 0)
    );
}

/// A comparison under way, killed when it goes out of scope.
struct UnderWay(Child);

impl UnderWay {
    /// Started, and waited for until `file` is there.
    fn start(bench: &Bench, words: &[&str], file: &str) -> Self {
        let mut command = bench.command(words);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut under_way = UnderWay(child);
        while !bench.path(file).exists() {
            assert!(under_way.0.try_wait().unwrap().is_none(), "it ended");
            std::thread::yield_now();
        }
        under_way
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A comparison that is killed keeps what has ended; one started beside it gets a folder of its own.
#[test]
fn what_has_ended_is_kept() {
    let bench = Bench::new();
    let long = compare("--methods ce,l2b --seeds 500");
    let under_way = UnderWay::start(&bench, &long, "runs/compare-1/compare.csv");
    bench.ok(&compare("--methods ce --seeds 1"));
    drop(under_way);
    assert_eq!(bench.names("runs"), ["compare-1", "compare-2"]);
    assert_eq!(list(&bench.json("runs/compare-2/compare.json"), "runs").len(), 1);
    let kept = bench.json("runs/compare-1/compare.json");
    assert_eq!(kept["planned"], 1000);
    let runs = list(&kept, "runs");
    assert!(!runs.is_empty() && runs.len() < 1000, "{}", runs.len());
    let ended: u64 = list(&kept, "table")
        .iter()
        .filter_map(|cell| cell["last"]["n"].as_u64())
        .sum();
    assert_eq!(ended, runs.len() as u64);
    let markdown = fs::read_to_string(bench.path("runs/compare-1/compare.md")).unwrap();
    assert!(markdown.contains("of 1000 runs"), "{markdown}");
}

/// Tables are shown also where they could not be saved, and the error is not kept quiet.
#[test]
fn tables_are_shown_whatever_happens_to_the_folder() {
    let bench = Bench::new();
    let words = compare("--methods ce --seeds 40 --out c");
    let mut child = bench.command(&words);
    let child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !bench.path("c").exists() {
        std::thread::yield_now();
    }
    fs::rename(bench.path("c"), bench.path("elsewhere")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    assert!(shown.contains("| 40 % |") && shown.contains("| 40 |"), "{shown}");
    assert!(told.contains("not saved: c/compare.md"), "{told}");
}
