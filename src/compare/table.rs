//! What a comparison comes to, over the seeds: a cell for each variant and noise rate, and paired differences.

use serde::Serialize;

use super::{Plan, Row, Variant};
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
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        Spread {
            n,
            mean,
            std: (n > 1).then(|| (square / (n - 1) as f64).sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// One variant at one noise rate, over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub variant: String,
    #[serde(flatten)]
    pub what: Variant,
    pub noise: f64,
    /// Fraction of wrong labels.
    pub noise_realised: Option<Spread>,
    /// Accuracies, 0 to 1.
    pub last: Spread,
    pub best: Spread,
    pub seconds: Spread,
}

/// Accuracy of one variant less that of another in the last epoch, seed by seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub variant: String,
    pub against: String,
    pub noise: f64,
    pub last: Spread,
    /// Seeds in which the first is ahead.
    pub ahead: usize,
}

impl Plan {
    pub(super) fn tabulate(&self, runs: &[Row]) -> (Vec<Cell>, Vec<Difference>) {
        // In the order of the seeds, which is that of `runs`.
        let of = |variant: &Variant, noise: f64, get: fn(&Summary) -> f64| -> Vec<f64> {
            let name = variant.name();
            runs.iter()
                .filter(|r| r.variant == name && r.noise == noise)
                .map(|r| get(&r.summary))
                .collect()
        };
        let variants = self.variants();
        let (mut table, mut differences) = (Vec::new(), Vec::new());
        for &noise in &self.noise {
            for what in &variants {
                let realised = of(what, noise, |s| s.noise_realised.unwrap_or(f64::NAN));
                table.push(Cell {
                    variant: what.name(),
                    what: *what,
                    noise,
                    noise_realised: realised
                        .iter()
                        .all(|r| r.is_finite())
                        .then(|| Spread::of(&realised)),
                    last: Spread::of(&of(what, noise, |s| s.last_accuracy)),
                    best: Spread::of(&of(what, noise, |s| s.best_accuracy)),
                    seconds: Spread::of(&of(what, noise, |s| s.seconds)),
                });
            }
            // L2B, at its first budget, against the other methods; its other budgets against the first.
            let Some(l2b) = variants.iter().find(|v| v.method == Method::L2b) else {
                continue;
            };
            for other in variants.iter().filter(|v| *v != l2b) {
                let (variant, against) = if other.method == Method::L2b {
                    (other, l2b)
                } else {
                    (l2b, other)
                };
                let first = of(variant, noise, |s| s.last_accuracy);
                let second = of(against, noise, |s| s.last_accuracy);
                let paired: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a - b).collect();
                differences.push(Difference {
                    variant: variant.name(),
                    against: against.name(),
                    noise,
                    last: Spread::of(&paired),
                    ahead: paired.iter().filter(|d| **d > 0.0).count(),
                });
            }
        }
        (table, differences)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_by_hand() {
        let spread = Spread::of(&[1.0, 2.0, 6.0]);
        assert_eq!(
            (spread.n, spread.mean, spread.min, spread.max),
            (3, 3.0, 1.0, 6.0)
        );
        assert_eq!(spread.std, Some(7f64.sqrt()));
        assert_eq!(Spread::of(&[4.0]).std, None);
    }
}
