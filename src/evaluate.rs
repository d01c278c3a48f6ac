//! Predictions of a network over a set, and what they are worth.

use serde::Serialize;

use crate::data::augment::normalise_table;
use crate::data::loader::{Batch, in_order};
use crate::data::manifest::Manifest;
use crate::data::split::Subset;
use crate::device::{AugmentShape, Device};
use crate::engine::{Engine, Images, KeptSet, Slot};
use crate::{Error, Result};

/// Gives the engine the normalised value of every byte.
///
/// # Errors
/// Those of the device.
pub fn set_table<D: Device>(engine: &Engine<D>, manifest: &Manifest) -> Result<()> {
    engine.set_table(&normalise_table::<D::Real>(manifest))
}

/// Geometry of images that are normalised and nothing else.
pub fn plain(n: usize, [h, w, c]: [usize; 3]) -> AugmentShape {
    AugmentShape {
        n: n as i32,
        h: h as i32,
        w: w as i32,
        c: c as i32,
        pad: 0,
        flip: 0,
        view: 0,
        gather: 0,
    }
}

/// The images of a batch: their bytes, or where they are on the device.
pub fn images(batch: &Batch, kept: Option<KeptSet>, augment: AugmentShape) -> Images<'_> {
    let ids = &batch.ids;
    match kept {
        Some(set) => Images::Kept { set, ids, augment },
        None => Images::Pixels {
            bytes: &batch.images,
            ids,
            augment,
        },
    }
}

/// Batch sizes of a pass over `len` samples: full ones, and the rest.
pub fn batch_sizes(len: u32, batch: u32) -> Vec<usize> {
    let full = if len >= batch { batch } else { 0 };
    [full, len % batch]
        .into_iter()
        .filter(|&n| n > 0)
        .map(|n| n as usize)
        .collect()
}

/// Class probabilities `[n][classes]` of a set, with the running statistics. The engine is planned for [`batch_sizes`];
/// `kept`: its images are on the device.
///
/// # Errors
/// Those of the dataset and the device.
pub fn probabilities<D: Device>(
    engine: &mut Engine<D>,
    set: &Subset,
    batch: u32,
    kept: Option<KeptSet>,
) -> Result<Vec<f64>> {
    let classes = engine.model.program.classes();
    let mut all = Vec::with_capacity(set.len() as usize * classes);
    engine.set_step(&bytemuck::Zeroable::zeroed())?;
    for batch in in_order(set, batch, kept.is_none())? {
        let batch = batch?;
        let augment = plain(batch.len(), set.split().image_shape());
        engine.feed(Slot::Train, images(&batch, kept, augment), &batch.labels)?;
        let logits = engine.logits()?;
        if let Some(value) = logits.iter().copied().find(|z| !z.is_finite()) {
            return Err(Error::Diverged {
                step: 0,
                what: "a logit in evaluation".into(),
                value,
                hint: "the weights are useless: lower --lr, set --clip, or lengthen --warm-up".into(),
            });
        }
        logits.chunks_exact(classes).for_each(|z| all.extend(softmax(z)));
    }
    Ok(all)
}

fn softmax(z: &[f64]) -> impl Iterator<Item = f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
    z.iter().map(move |z| (z - top).exp() / sum)
}

/// Index of the largest probability, the lowest on ties.
pub fn argmax(p: &[f64]) -> usize {
    p.iter()
        .enumerate()
        .fold(0, |best, (i, v)| if *v > p[best] { i } else { best })
}

/// Quality of predictions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    pub samples: usize,
    /// Fraction right.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Fraction right of each class; null for a class without samples.
    pub per_class: Vec<Option<f64>>,
    /// Mean of `per_class` over the classes that have samples.
    pub balanced_accuracy: f64,
    /// Area under the ROC curve, one class against the rest, mean over the classes that have samples and are not all;
    /// null where there is none.
    pub auc: Option<f64>,
    /// [true class][predicted class], counts.
    pub confusion: Vec<Vec<u64>>,
}

impl Scores {
    /// Scores of probabilities `[n][classes]` against labels `[n]`.
    pub fn new(probabilities: &[f64], labels: &[i32], classes: usize) -> Self {
        let mut confusion = vec![vec![0u64; classes]; classes];
        let mut loss = 0.0;
        for (p, &label) in probabilities.chunks_exact(classes).zip(labels) {
            confusion[label as usize][argmax(p)] += 1;
            // A probability that underflows would make the mean infinite.
            loss -= p[label as usize].max(f64::MIN_POSITIVE).ln();
        }
        let n = labels.len();
        let right: u64 = (0..classes).map(|c| confusion[c][c]).sum();
        let per_class: Vec<Option<f64>> = (0..classes)
            .map(|c| {
                let count: u64 = confusion[c].iter().sum();
                (count > 0).then(|| confusion[c][c] as f64 / count as f64)
            })
            .collect();
        let areas: Vec<f64> = (0..classes)
            .filter_map(|c| auc(probabilities, labels, classes, c))
            .collect();
        Scores {
            samples: n,
            accuracy: right as f64 / n.max(1) as f64,
            loss: loss / n.max(1) as f64,
            balanced_accuracy: mean(per_class.iter().flatten().copied()).unwrap_or(0.0),
            auc: mean(areas.into_iter()),
            per_class,
            confusion,
        }
    }
}

/// Mean; None of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

/// Probability that a random sample of the class ranks above a random one of another class, ties counting half
/// (Mann-Whitney). None where either is missing.
fn auc(probabilities: &[f64], labels: &[i32], classes: usize, class: usize) -> Option<f64> {
    let mut ranked: Vec<(f64, bool)> = probabilities
        .chunks_exact(classes)
        .zip(labels)
        .map(|(p, &label)| (p[class], label as usize == class))
        .collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let positives = ranked.iter().filter(|r| r.1).count() as f64;
    let negatives = ranked.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (mut below, mut area) = (0.0, 0.0);
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        let hits = tied.iter().filter(|r| r.1).count() as f64;
        let misses = tied.len() as f64 - hits;
        area += hits * (below + misses / 2.0);
        below += misses;
    }
    Some(area / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_a_small_case_by_hand() {
        // Class 2 has no samples; sample 3 is a tie of classes 0 and 1, and goes to 0.
        #[rustfmt::skip]
        let p = [
            0.7, 0.2, 0.1,
            0.1, 0.8, 0.1,
            0.2, 0.5, 0.3,
            0.4, 0.4, 0.2,
        ];
        let scores = Scores::new(&p, &[0, 1, 0, 1], 3);
        assert_eq!(scores.confusion, [[1, 1, 0], [1, 1, 0], [0, 0, 0]]);
        assert_eq!((scores.accuracy, scores.balanced_accuracy), (0.5, 0.5));
        assert_eq!(scores.per_class, [Some(0.5), Some(0.5), None]);
        let loss = -(0.7f64.ln() + 0.8f64.ln() + 0.2f64.ln() + 0.4f64.ln()) / 4.0;
        assert!((scores.loss - loss).abs() < 1e-15);
        // Class 0 against 1: {.7, .2} over {.1, .4}: 3 of 4 pairs; class 1: {.8, .4} over {.2, .5}: 3 of 4.
        assert_eq!(scores.auc, Some(0.75));
    }

    #[test]
    fn auc_counts_ties_half_and_needs_two_sides() {
        assert_eq!(auc(&[0.5, 0.5, 0.5, 0.5, 0.5, 0.5], &[0, 1, 1], 2, 0), Some(0.5));
        assert_eq!(auc(&[0.9, 0.1, 0.2, 0.8], &[0, 1], 2, 0), Some(1.0));
        assert_eq!(auc(&[0.9, 0.1], &[0], 2, 0), None);
        assert_eq!(Scores::new(&[0.9, 0.1], &[0], 2).auc, None);
    }

    #[test]
    fn sizes_of_a_pass() {
        assert_eq!(batch_sizes(360, 128), [128, 104]);
        assert_eq!(batch_sizes(256, 128), [128]);
        assert_eq!(batch_sizes(5, 128), [5]);
    }
}
