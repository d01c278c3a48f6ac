//! What a comparison comes to, over the seeds: a cell for each variant and noise rate, and paired differences.

use serde::Serialize;

use super::plan::{Plan, Variant};
use super::{Failure, Row};
use crate::config::Method;
use crate::run_folder::Summary;

/// Mean, sample standard deviation (null for one value) and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub n: usize,
    pub mean: f64,
    pub std: Option<f64>,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        Some(Spread {
            n,
            mean,
            std: (n > 1).then(|| (square / (n - 1) as f64).sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// One variant at one noise rate, over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub variant: String,
    #[serde(flatten)]
    pub what: Variant,
    /// Nominal; null where the labels are those of a file.
    pub noise: Option<f64>,
    /// Fraction of wrong labels; null where it is not known.
    pub noise_realised: Option<Spread>,
    /// Accuracies, 0 to 1, of the runs that ended; null where none did.
    pub last: Option<Spread>,
    pub best: Option<Spread>,
    pub seconds: Option<Spread>,
    /// Runs that failed.
    pub failed: usize,
}

/// Accuracy of one variant less that of another in the last epoch, over the seeds in which both ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub variant: String,
    pub against: String,
    pub noise: Option<f64>,
    pub last: Spread,
    /// Seeds in which the first is ahead.
    pub ahead: usize,
}

/// The cells of a plan, and its differences, of the runs so far.
pub(super) fn tabulate(plan: &Plan, runs: &[Row], failures: &[Failure]) -> (Vec<Cell>, Vec<Difference>) {
    let variants = plan.variants();
    let (mut table, mut differences) = (Vec::new(), Vec::new());
    for &noise in &plan.noise {
        // Of the runs of one variant, in the order of the seeds, which is that of `runs`.
        let of = |variant: &Variant| -> Vec<&Summary> {
            let name = variant.name();
            let rows = runs
                .iter()
                .filter(|row| row.variant == name && row.noise == noise);
            rows.map(|row| &row.summary).collect()
        };
        let cell = |what: &Variant| {
            let (variant, ended) = (what.name(), of(what));
            let spread = |get: fn(&Summary) -> f64| -> Option<Spread> {
                Spread::of(&ended.iter().map(|s| get(s)).collect::<Vec<_>>())
            };
            let realised: Option<Vec<f64>> = ended.iter().map(|s| s.noise_realised).collect();
            let failed = failures
                .iter()
                .filter(|f| f.variant == variant && f.noise == noise);
            Cell {
                what: *what,
                noise,
                noise_realised: realised.and_then(|realised| Spread::of(&realised)),
                last: spread(|s| s.last_accuracy),
                best: spread(|s| s.best_accuracy),
                seconds: spread(|s| s.seconds),
                failed: failed.count(),
                variant,
            }
        };
        table.extend(variants.iter().map(cell));
        // L2B, at its first budget, against the other methods; its other budgets against the first.
        let Some(l2b) = variants.iter().find(|v| v.method == Method::L2b) else {
            continue;
        };
        for other in variants.iter().filter(|v| *v != l2b) {
            let (variant, against) = match other.method {
                Method::L2b => (other, l2b),
                _ => (l2b, other),
            };
            let second = of(against);
            let paired = of(variant).into_iter().filter_map(|a| {
                let b = second.iter().find(|b| b.seed == a.seed)?;
                Some(a.last_accuracy - b.last_accuracy)
            });
            let paired: Vec<f64> = paired.collect();
            differences.extend(Spread::of(&paired).map(|last| Difference {
                variant: variant.name(),
                against: against.name(),
                noise,
                last,
                ahead: paired.iter().filter(|d| **d > 0.0).count(),
            }));
        }
    }
    (table, differences)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::RunConfig;

    fn row(method: Method, seed: u64, accuracy: f64) -> Row {
        let summary = json!({
            "version": "", "method": "", "device": "", "precision": "", "seed": seed, "epochs": 1, "steps": 1,
            "train_images": 1, "clean_images": 1, "test_images": 1, "noise_kind": "", "noise_nominal": null,
            "noise_realised": null, "best_accuracy": accuracy, "best_epoch": 1, "last_accuracy": accuracy, "seconds": 1.0,
            "images_per_second": 1.0, "peak_bytes": 1, "parameters": 1, "dataset": "", "dataset_fingerprint": "",
            "weights_sha256": ""
        });
        Row {
            variant: Variant::from(method).name(),
            noise: None,
            summary: serde_json::from_value(summary).unwrap(),
        }
    }

    #[test]
    fn pairs_are_of_the_seeds_in_which_both_ended() {
        let plan = Plan {
            base: RunConfig::default(),
            methods: vec![Method::Ce, Method::L2b, Method::Clean],
            meta_budgets: vec![],
            meta_batches: vec![],
            meta_draws: vec![],
            meta_depths: vec![],
            noise: vec![None],
            seeds: 3,
        };
        let runs = [
            row(Method::Ce, 0, 0.5),
            row(Method::L2b, 0, 0.75),
            row(Method::Ce, 1, 0.25),
            row(Method::Ce, 2, 0.5),
            row(Method::L2b, 2, 0.25),
        ];
        let failure = |method, seed| Failure {
            variant: Variant::from(method).name(),
            noise: None,
            seed,
            failure: String::new(),
        };
        let failures = [failure(Method::L2b, 1), failure(Method::Clean, 0)];
        let (table, differences) = tabulate(&plan, &runs, &failures);
        let counts: Vec<_> = table
            .iter()
            .map(|cell| (cell.last.map(|s| s.n), cell.failed))
            .collect();
        assert_eq!(counts, [(Some(3), 0), (Some(2), 1), (None, 1)]);
        // None against the method of which no run ended.
        assert_eq!(differences.len(), 1);
        let l2b_ce = &differences[0];
        assert_eq!((l2b_ce.variant.as_str(), l2b_ce.against.as_str()), ("l2b", "ce"));
        assert_eq!(
            (l2b_ce.last.n, l2b_ce.last.min, l2b_ce.last.max),
            (2, -0.25, 0.25)
        );
        assert_eq!(l2b_ce.ahead, 1);
    }

    #[test]
    fn spread_by_hand() {
        let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!(
            (spread.n, spread.mean, spread.min, spread.max),
            (3, 3.0, 1.0, 6.0)
        );
        assert_eq!(spread.std, Some(7f64.sqrt()));
        assert_eq!(Spread::of(&[4.0]).unwrap().std, None);
        assert_eq!(Spread::of(&[]), None);
    }
}
