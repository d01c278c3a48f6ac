//! Cross-entropy, its derivatives, pseudo labels and the weights. Entries are few and short: plain loops, and sums over
//! them in f64.

use super::super::{LossShape, Mem, Normalise, StepParams, Targets};
use super::{Arena, Cpu, Float, Lend};
use crate::{Error, Result};

/// Targets whose operand is lent.
enum Labels<'a, T> {
    Hard(&'a [i32]),
    Soft(&'a [T]),
}

impl<'a, T: Float> Labels<'a, T> {
    fn lend(lend: &mut Lend, targets: Targets<'a, Arena>, shape: LossShape) -> Result<Self> {
        let (entries, classes) = (shape.entries as usize, shape.classes as usize);
        Ok(match targets {
            Targets::Hard(labels) => {
                let labels = lend.read::<i32>("labels", labels, entries)?;
                if let Some(label) = labels.iter().find(|label| !(0..shape.classes).contains(label)) {
                    return Err(Error::Internal(format!("label {label} outside 0..{classes}")));
                }
                Labels::Hard(labels)
            }
            Targets::Soft(rows) => Labels::Soft(lend.read("targets", rows, entries * classes)?),
        })
    }

    /// Share of class c in entry i. Hard and soft targets run through the same sums, so a one-hot row gives the same
    /// bits as its label, and equal labels equal bits (METHOD 1.8, P3).
    fn share(&self, i: usize, c: usize, classes: usize) -> T {
        match self {
            Labels::Hard(labels) if labels[i] as usize == c => T::ONE,
            Labels::Hard(_) => T::ZERO,
            Labels::Soft(rows) => rows[i * classes + c],
        }
    }
}

/// The largest logit, and Σ exp(z − largest).
fn exponentials<T: Float>(z: &[T]) -> (T, T) {
    let largest = z[1..].iter().fold(z[0], |a, &b| if b > a { b } else { a });
    let sum = z.iter().fold(T::ZERO, |sum, &z| sum + (z - largest).exp());
    (largest, sum)
}

pub(super) fn pseudo_labels<T: Float>(shape: LossShape, labels: Mem<Cpu<T>>, z: Mem<Cpu<T>>) -> Result<()> {
    let mut lend = Lend::new("pseudo_labels");
    let (entries, classes) = (shape.entries as usize, shape.classes as usize);
    let labels = lend.write::<i32>("labels", labels, entries)?;
    let z = lend.read::<T>("z", z, entries * classes)?;
    for (label, z) in labels.iter_mut().zip(z.chunks_exact(classes)) {
        let best = (1..classes).fold(0, |best, c| if z[c] > z[best] { c } else { best });
        *label = best as i32;
    }
    Ok(())
}

pub(super) fn cross_entropy<T: Float>(
    shape: LossShape,
    loss: Mem<Cpu<T>>,
    z: Mem<Cpu<T>>,
    targets: Targets<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("cross_entropy");
    let (entries, classes) = (shape.entries as usize, shape.classes as usize);
    let loss = lend.write::<T>("loss", loss, entries)?;
    let z = lend.read::<T>("z", z, entries * classes)?;
    let targets = Labels::<T>::lend(&mut lend, targets, shape)?;
    for (i, (loss, z)) in loss.iter_mut().zip(z.chunks_exact(classes)).enumerate() {
        let (largest, sum) = exponentials(z);
        let log_sum = sum.ln();
        // −Σ t·log p with log p = (z − largest) − log Σ: no large terms cancel.
        *loss = (0..classes).fold(T::ZERO, |loss, c| {
            let share = targets.share(i, c, classes);
            // A share of 0 adds nothing, even where log p is −∞.
            if share == T::ZERO {
                loss
            } else {
                loss + share * (log_sum - (z[c] - largest))
            }
        });
    }
    Ok(())
}

pub(super) fn backward<T: Float>(
    shape: LossShape,
    dz: Mem<Cpu<T>>,
    z: Mem<Cpu<T>>,
    first: (Targets<Arena>, Mem<Cpu<T>>),
    second: Option<(Targets<Arena>, Mem<Cpu<T>>)>,
) -> Result<()> {
    let mut lend = Lend::new("cross_entropy_backward");
    let (entries, classes) = (shape.entries as usize, shape.classes as usize);
    let dz = lend.write::<T>("dz", dz, entries * classes)?;
    let z = lend.read::<T>("z", z, entries * classes)?;
    let mut term = |(targets, weights)| -> Result<_> {
        Ok((
            Labels::<T>::lend(&mut lend, targets, shape)?,
            lend.read::<T>("weights", weights, entries)?,
        ))
    };
    let first = term(first)?;
    let second = second.map(term).transpose()?;
    for (i, (dz, z)) in dz
        .chunks_exact_mut(classes)
        .zip(z.chunks_exact(classes))
        .enumerate()
    {
        let (largest, sum) = exponentials(z);
        for (c, dz) in dz.iter_mut().enumerate() {
            let p = (z[c] - largest).exp() / sum;
            *dz = first.1[i] * (p - first.0.share(i, c, classes));
            if let Some((targets, weights)) = &second {
                *dz += weights[i] * (p - targets.share(i, c, classes));
            }
        }
    }
    Ok(())
}

/// Σ_c p_c·(tz_c − t·tz), which equals (p − t)·tz where the targets sum to 1, and keeps its digits where p is close to t.
pub(super) fn tangent_dot<T: Float>(
    shape: LossShape,
    raw: Mem<Cpu<T>>,
    z: Mem<Cpu<T>>,
    tz: Mem<Cpu<T>>,
    targets: Targets<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("tangent_dot");
    let (entries, classes) = (shape.entries as usize, shape.classes as usize);
    let raw = lend.write::<T>("raw", raw, entries)?;
    let z = lend.read::<T>("z", z, entries * classes)?;
    let tz = lend.read::<T>("tz", tz, entries * classes)?;
    let targets = Labels::<T>::lend(&mut lend, targets, shape)?;
    let rows = z.chunks_exact(classes).zip(tz.chunks_exact(classes));
    for (i, (raw, (z, tz))) in raw.iter_mut().zip(rows).enumerate() {
        let (largest, sum) = exponentials(z);
        let at_target = (0..classes).fold(T::ZERO, |at, c| at + targets.share(i, c, classes) * tz[c]);
        *raw = (0..classes).fold(T::ZERO, |raw, c| {
            raw + (z[c] - largest).exp() / sum * (tz[c] - at_target)
        });
    }
    Ok(())
}

pub(super) fn weights<T: Float>(
    weights: Mem<Cpu<T>>,
    raw: Mem<Cpu<T>>,
    normalise: Normalise,
    step: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("weights");
    let len = raw.bytes / size_of::<T>();
    let weights = lend.write::<T>("weights", weights, len)?;
    let raw = lend.write::<T>("raw", raw, len)?;
    let [step] = lend.read::<StepParams>("step", step, 1)? else {
        unreachable!("one step was asked for");
    };
    for raw in raw.iter_mut() {
        *raw = T::from_f64(step.eta * step.lambda * raw.to_f64());
    }
    let raw = &*raw;
    // A raw weight that is not a number must reach the weights, where the step's check finds it.
    let positive = |r: f64| if r <= 0.0 { 0.0 } else { r };
    let sigmoid = |r: f64| 1.0 / (1.0 + (-r).exp());
    let largest = raw.iter().fold(f64::NEG_INFINITY, |a, r| a.max(r.to_f64()));
    let sum = |f: &dyn Fn(f64) -> f64| raw.iter().map(|r| f(r.to_f64())).sum::<f64>();
    let mut set = |f: &dyn Fn(f64) -> f64| {
        for (weight, raw) in weights.iter_mut().zip(raw) {
            *weight = T::from_f64(f(raw.to_f64()));
        }
    };
    match normalise {
        Normalise::Rectify => {
            let sum = sum(&positive) + 1e-10;
            set(&|r| positive(r) / sum);
        }
        Normalise::Softmax { temperature } => {
            let exp = |r: f64| ((r - largest) / temperature).exp();
            let sum = sum(&exp);
            set(&|r| exp(r) / sum);
        }
        Normalise::Sigmoid => {
            let sum = sum(&sigmoid);
            set(&|r| sigmoid(r) / sum);
        }
        Normalise::RectifiedSigmoid => {
            let sigmoid = |r: f64| sigmoid(positive(r));
            let sum = sum(&sigmoid) + 1e-10;
            set(&|r| sigmoid(r) / sum);
        }
        Normalise::Hard { threshold } => {
            let exp = |r: f64| (r - largest).exp();
            let sum = sum(&exp);
            set(&|r| {
                let weight = exp(r) / sum;
                if weight <= threshold { 0.0 } else { weight }
            });
        }
    }
    Ok(())
}
