//! Label noise, METHOD 3.1: what it does to each label, and how many labels it changes.
//!
//! Every draw is a pure function of (seed, sample id): sample i reads u ∈ [0,1) and then, where the kind needs one, a
//! target class from `Stream(seed, Noise).index(i)`. A kind selects samples either *independently* (u < r) or as an
//! *exact count* (the ⌊r·n⌋ samples of smallest u: every subset of that size equally likely). Noise of a higher rate
//! therefore changes a superset of the samples of a lower one.

use crate::random::{Purpose, Stream};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Rule by which labels go wrong. n samples, C classes, nominal rate r; p_c is the share of class c.
///
/// | kind | selected | new label | expected fraction changed |
/// |---|---|---|---|
/// | `uniform` | u < r | uniform over all C, the true one included | r(C−1)/C |
/// | `uniform-exact` | ⌊rn⌋ | uniform over all C, the true one included | ⌊rn⌋/n · (C−1)/C |
/// | `uniform-other` | ⌊rn⌋ | uniform over the C−1 wrong ones | ⌊rn⌋/n, exactly |
/// | `asymmetric` | ⌊rn⌋ | CIFAR-10 map 9→1, 2→0, 3↔5, 4→7; others keep theirs (C = 10) | ⌊rn⌋/n · (p₂+p₃+p₄+p₅+p₉) |
/// | `asymmetric-block` | u < r | next in its block of 5 classes, the last wraps (C a multiple of 5) | r |
/// | `flip` | u < r | one other class, fixed for each class | r |
/// | `flip2` | u < r | one of two other classes, fixed for each class (C ≥ 3) | r |
/// | `pair` | u < r | next class, the last wraps | r |
///
/// The targets of `flip` and `flip2` are drawn with seed 1 whatever the seed of the noise (METHOD 3.1), so that runs
/// with different seeds share one noise model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Any class at random, independently for each sample
    Uniform,
    /// Any class at random, for an exact number of samples
    UniformExact,
    /// A wrong class at random, for an exact number of samples
    UniformOther,
    /// Look-alike classes of CIFAR-10, for an exact number of samples
    Asymmetric,
    /// The next class within blocks of five
    AsymmetricBlock,
    /// One fixed other class
    Flip,
    /// Two fixed other classes
    Flip2,
    /// The next class
    Pair,
}

/// A noise model with its nominal rate and seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub kind: NoiseKind,
    /// r of the table, in [0, 1]; not the fraction of labels that change.
    pub rate: f64,
    pub seed: u64,
}

/// Where each class of CIFAR-10 goes; itself for none.
const CIFAR10_MAP: [i32; 10] = [0, 1, 0, 5, 7, 3, 6, 7, 8, 1];

/// Classes per block of `asymmetric-block`.
const BLOCK: i32 = 5;

/// Seed of the targets of `flip` and `flip2`.
const TARGET_SEED: u64 = 1;

/// View of the targets, apart from the samples' own draws.
const TARGET_VIEW: u16 = 1;

impl NoiseKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            NoiseKind::Uniform => "uniform",
            NoiseKind::UniformExact => "uniform-exact",
            NoiseKind::UniformOther => "uniform-other",
            NoiseKind::Asymmetric => "asymmetric",
            NoiseKind::AsymmetricBlock => "asymmetric-block",
            NoiseKind::Flip => "flip",
            NoiseKind::Flip2 => "flip2",
            NoiseKind::Pair => "pair",
        }
    }

    fn exact_count(self) -> bool {
        matches!(
            self,
            NoiseKind::UniformExact | NoiseKind::UniformOther | NoiseKind::Asymmetric
        )
    }
}

impl Noise {
    /// Checks the rate and that the kind is defined for this number of classes.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, n_classes: u32) -> Result<()> {
        // Written so that NaN fails.
        if !(0.0..=1.0).contains(&self.rate) {
            let found = self.rate.to_string();
            return Err(Error::config(
                "noise rate",
                "a number from 0 to 1",
                found,
                "40 % is 0.4",
            ));
        }
        let (fits, expected) = match self.kind {
            NoiseKind::Asymmetric => (n_classes == 10, "10 classes in CIFAR-10's order"),
            NoiseKind::AsymmetricBlock => (n_classes.is_multiple_of(BLOCK as u32), "a multiple of 5 classes"),
            NoiseKind::Flip2 => (n_classes >= 3, "at least 3 classes"),
            _ => (n_classes >= 2, "at least 2 classes"),
        };
        if fits {
            return Ok(());
        }
        let what = format!("noise kind {}", self.kind.name());
        Err(Error::config(
            what,
            expected,
            format!("{n_classes} classes"),
            "choose another kind",
        ))
    }

    /// Noisy copy of `clean` (a label per sample of the split); only `samples` may change, and only they count.
    ///
    /// # Errors
    /// `Config` as [`Noise::check`]; `Internal` for a sample outside `clean`.
    pub fn apply(&self, clean: &[i32], samples: &[u32], n_classes: u32) -> Result<Vec<i32>> {
        self.check(n_classes)?;
        if samples.iter().any(|&s| s as usize >= clean.len()) {
            return Err(Error::Internal(format!(
                "noise on a sample beyond {}",
                clean.len()
            )));
        }
        let stream = |sample: u32| Stream::new(self.seed, Purpose::Noise).index(sample);
        let mut drawn: Vec<(f64, u32)> = samples.iter().map(|&s| (stream(s).uniform_f64(), s)).collect();
        if self.kind.exact_count() {
            // Equal draws are ordered by sample id.
            drawn.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            drawn.truncate(self.exact_count(samples.len()));
        } else {
            drawn.retain(|&(u, _)| u < self.rate);
        }
        let targets = self.targets(n_classes);
        let mut labels = clean.to_vec();
        for (_, sample) in drawn {
            let mut stream = stream(sample);
            stream.uniform_f64(); // u, already used
            let label = &mut labels[sample as usize];
            *label = self.target(*label, n_classes, &targets, &mut stream);
        }
        Ok(labels)
    }

    /// Expected fraction of labels changed, by the table of [`NoiseKind`], for the class shares of these samples.
    pub fn expected_rate(&self, clean: &[i32], samples: &[u32], n_classes: u32) -> f64 {
        let n = samples.len().max(1) as f64;
        let exact = self.exact_count(samples.len()) as f64 / n;
        let keep_none = f64::from(n_classes - 1) / f64::from(n_classes);
        match self.kind {
            NoiseKind::Uniform => self.rate * keep_none,
            NoiseKind::UniformExact => exact * keep_none,
            NoiseKind::UniformOther => exact,
            NoiseKind::Asymmetric => {
                let moves = |&&s: &&u32| {
                    let label = clean[s as usize];
                    CIFAR10_MAP[label as usize] != label
                };
                exact * samples.iter().filter(moves).count() as f64 / n
            }
            NoiseKind::AsymmetricBlock | NoiseKind::Flip | NoiseKind::Flip2 | NoiseKind::Pair => self.rate,
        }
    }

    /// ⌊r·n⌋; the small excess keeps 0.3 · 10 at 3 although 0.3 is below 3/10 in binary.
    fn exact_count(&self, n: usize) -> usize {
        ((self.rate * n as f64 * (1.0 + 1e-12)).floor() as usize).min(n)
    }

    /// The fixed other classes of `flip` (one per class) and `flip2` (two); empty for other kinds.
    fn targets(&self, n_classes: u32) -> Vec<Vec<i32>> {
        let many = match self.kind {
            NoiseKind::Flip => 1,
            NoiseKind::Flip2 => 2,
            _ => return Vec::new(),
        };
        let others = |class: u32| {
            let mut stream = Stream::new(TARGET_SEED, Purpose::Noise)
                .index(class)
                .view(TARGET_VIEW);
            let steps = stream.choose(n_classes - 1, many);
            steps
                .into_iter()
                .map(|step| ((class + 1 + step) % n_classes) as i32)
                .collect()
        };
        (0..n_classes).map(others).collect()
    }

    fn target(&self, label: i32, n_classes: u32, targets: &[Vec<i32>], stream: &mut Stream) -> i32 {
        let c = n_classes as i32;
        match self.kind {
            NoiseKind::Uniform | NoiseKind::UniformExact => stream.below(n_classes) as i32,
            NoiseKind::UniformOther => (label + 1 + stream.below(n_classes - 1) as i32) % c,
            NoiseKind::Asymmetric => CIFAR10_MAP[label as usize],
            NoiseKind::AsymmetricBlock => label / BLOCK * BLOCK + (label % BLOCK + 1) % BLOCK,
            NoiseKind::Flip | NoiseKind::Flip2 => {
                let targets = &targets[label as usize];
                targets[stream.below(targets.len() as u32) as usize]
            }
            NoiseKind::Pair => (label + 1) % c,
        }
    }
}

/// Number of `samples` whose label differs from the clean one.
pub fn changed(labels: &[i32], clean: &[i32], samples: &[u32]) -> usize {
    samples
        .iter()
        .filter(|&&s| labels[s as usize] != clean[s as usize])
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    const N: u32 = 20_000;

    fn clean(n_classes: u32) -> Vec<i32> {
        (0..N).map(|i| (i * 3 % n_classes) as i32).collect()
    }

    fn noise(kind: NoiseKind, rate: f64) -> Noise {
        Noise { kind, rate, seed: 17 }
    }

    /// Row-normalised transition counts, [true class][observed class].
    fn transitions(noise: Noise, n_classes: u32) -> Vec<Vec<f64>> {
        let clean = clean(n_classes);
        let samples: Vec<u32> = (0..N).collect();
        let labels = noise.apply(&clean, &samples, n_classes).unwrap();
        let mut counts = vec![vec![0.0; n_classes as usize]; n_classes as usize];
        for (&from, &to) in clean.iter().zip(&labels) {
            counts[from as usize][to as usize] += f64::from(n_classes) / f64::from(N);
        }
        counts
    }

    #[test]
    fn every_kind_changes_what_it_should() {
        let samples: Vec<u32> = (0..N).collect();
        for kind in NoiseKind::value_variants().iter().copied() {
            for rate in [0.0, 0.2, 0.45, 1.0] {
                let (noise, clean) = (noise(kind, rate), clean(10));
                let labels = noise.apply(&clean, &samples, 10).unwrap();
                assert!(labels.iter().all(|l| (0..10).contains(l)));
                let expected = noise.expected_rate(&clean, &samples, 10);
                let found = changed(&labels, &clean, &samples) as f64 / f64::from(N);
                let sigma = match kind {
                    NoiseKind::UniformOther => 0.0,
                    _ => (expected * (1.0 - expected) / f64::from(N)).sqrt(),
                };
                assert!(
                    (found - expected).abs() <= 5.0 * sigma + 1e-12,
                    "{kind:?} {rate}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn rows_of_the_matrices() {
        // σ of one entry is below √(0.25/2000) = 0.0112; 5σ.
        let near = |a: f64, b: f64| (a - b).abs() < 0.056;
        for (i, row) in transitions(noise(NoiseKind::Uniform, 0.4), 10).iter().enumerate() {
            for (j, &p) in row.iter().enumerate() {
                assert!(near(p, if i == j { 0.64 } else { 0.04 }), "{i} {j} {p}");
            }
        }
        for (kind, targets, share) in [(NoiseKind::Flip, 1, 0.4), (NoiseKind::Flip2, 2, 0.2)] {
            for (i, row) in transitions(noise(kind, 0.4), 10).iter().enumerate() {
                assert!(near(row[i], 0.6));
                let others: Vec<f64> = row
                    .iter()
                    .enumerate()
                    .filter(|&(j, _)| j != i)
                    .map(|(_, &p)| p)
                    .collect();
                let used: Vec<f64> = others.into_iter().filter(|&p| p > 0.0).collect();
                assert_eq!(used.len(), targets, "{kind:?} class {i}");
                assert!(used.into_iter().all(|p| near(p, share)));
            }
        }
        for (i, row) in transitions(noise(NoiseKind::Pair, 0.3), 7).iter().enumerate() {
            assert!(near(row[i], 0.7) && near(row[(i + 1) % 7], 0.3));
        }
        for (i, row) in transitions(noise(NoiseKind::AsymmetricBlock, 1.0), 10)
            .iter()
            .enumerate()
        {
            assert!(row[[1, 2, 3, 4, 0, 6, 7, 8, 9, 5][i]] > 1.0 - 1e-9);
        }
        for (i, row) in transitions(noise(NoiseKind::Asymmetric, 1.0), 10)
            .iter()
            .enumerate()
        {
            assert!(row[CIFAR10_MAP[i] as usize] > 1.0 - 1e-9);
        }
        let wrong_only = transitions(noise(NoiseKind::UniformOther, 1.0), 10);
        assert!((0..10).all(|i| wrong_only[i][i] == 0.0));
    }

    #[test]
    fn exact_kinds_select_the_exact_count() {
        // With two classes and the true one excluded, every selected label changes.
        let samples: Vec<u32> = (0..10).collect();
        for (rate, count) in [(0.3, 3), (0.6, 6), (0.29, 2), (0.7, 7), (0.999, 9)] {
            let labels = noise(NoiseKind::UniformOther, rate)
                .apply(&[0; 10], &samples, 2)
                .unwrap();
            assert_eq!(changed(&labels, &[0; 10], &samples), count, "{rate}");
        }
    }

    #[test]
    fn depends_on_seed_and_sample_id_alone() {
        let clean = clean(10);
        let all: Vec<u32> = (0..N).collect();
        let some: Vec<u32> = (0..N).rev().filter(|i| i % 3 != 0).collect();
        let uniform = noise(NoiseKind::Uniform, 0.5);
        let (a, b) = (
            uniform.apply(&clean, &all, 10).unwrap(),
            uniform.apply(&clean, &some, 10).unwrap(),
        );
        for i in 0..N as usize {
            assert_eq!(b[i], if i % 3 == 0 { clean[i] } else { a[i] });
        }
        let other = Noise { seed: 18, ..uniform }.apply(&clean, &all, 10).unwrap();
        assert_ne!(a, other);
        // A higher rate changes a superset.
        let higher = Noise { rate: 0.7, ..uniform }.apply(&clean, &all, 10).unwrap();
        assert!((0..N as usize).all(|i| a[i] == clean[i] || a[i] == higher[i]));
    }

    #[test]
    fn refuses_what_is_not_defined() {
        for (kind, rate, classes) in [
            (NoiseKind::Uniform, f64::NAN, 10),
            (NoiseKind::Uniform, -0.1, 10),
            (NoiseKind::Uniform, 1.1, 10),
            (NoiseKind::Asymmetric, 0.4, 9),
            (NoiseKind::AsymmetricBlock, 0.4, 12),
            (NoiseKind::Flip2, 0.4, 2),
        ] {
            let error = noise(kind, rate).apply(&[0], &[0], classes).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}
