//! Batch-norm between tensors: partial sums to statistics, A, C and M, slopes B and D. Per channel and in f64: there are few
//! channels, and the differences taken here are the ones that lose digits.

use super::super::{Mem, Norm, Statistics, Write};
use super::epilogue::{TILE_ROWS, partials_len};
use super::source::{affine, pair};
use super::{Arena, Cpu, Float, Lend};
use crate::Result;

/// A, C and M from the batch's statistics or the running ones; METHOD 2.2.
pub(super) fn forward<T: Float>(norm: Norm<Arena>, statistics: Statistics) -> Result<()> {
    let mut lend = Lend::new("norm_forward");
    let channels = norm.shape.channels as usize;
    let rows = norm.shape.rows as usize;
    let gamma = lend.read::<T>("gamma", norm.gamma, channels)?;
    let beta = lend.read::<T>("beta", norm.beta, channels)?;
    let running_mean = lend.write::<T>("running mean", norm.running_mean, channels)?;
    let running_var = lend.write::<T>("running var", norm.running_var, channels)?;
    let (mean_out, rstd_out) = lend
        .write::<T>("statistics", norm.statistics, 2 * channels)?
        .split_at_mut(channels);
    let (a, rest) = lend
        .write::<T>("affine", norm.affine, 3 * channels)?
        .split_at_mut(channels);
    let (c, m) = rest.split_at_mut(channels);
    let partials = match statistics {
        Statistics::Batch { .. } => lend.read::<T>("partials", norm.partials, partials_len(norm.shape))?,
        Statistics::Running => &[],
    };
    for k in 0..channels {
        let (mean, var) = match statistics {
            Statistics::Batch { update } => {
                let (mean, m2) = merge(partials, channels, k, rows);
                if update {
                    let unbiased = m2 / (rows.max(2) - 1) as f64;
                    step_towards(&mut running_mean[k], mean, norm.momentum);
                    step_towards(&mut running_var[k], unbiased, norm.momentum);
                }
                (mean, m2 / rows as f64)
            }
            Statistics::Running => (running_mean[k].to_f64(), running_var[k].to_f64()),
        };
        let rstd = 1.0 / (var + norm.eps).sqrt();
        mean_out[k] = T::from_f64(mean);
        rstd_out[k] = T::from_f64(rstd);
        a[k] = T::from_f64(gamma[k].to_f64() * rstd);
        c[k] = beta[k];
        m[k] = mean_out[k];
    }
    Ok(())
}

/// Mean and Σ(u − mean)² of channel k over all rows, tile after tile (Chan, Golub, LeVeque 1983).
fn merge<T: Float>(partials: &[T], channels: usize, k: usize, rows: usize) -> (f64, f64) {
    let (mut count, mut mean, mut m2) = (0.0, 0.0, 0.0);
    for (tile, sums) in partials.chunks_exact(2 * channels).enumerate() {
        let added = (rows - tile * TILE_ROWS).min(TILE_ROWS) as f64;
        let delta = sums[k].to_f64() - mean;
        let total = count + added;
        mean += delta * (added / total);
        m2 += sums[channels + k].to_f64() + delta * delta * (count * added / total);
        count = total;
    }
    (mean, m2)
}

fn step_towards<T: Float>(running: &mut T, batch: f64, momentum: f64) {
    *running = T::from_f64((1.0 - momentum) * running.to_f64() + momentum * batch);
}

/// Σ u and Σ u·x̂ of channel k, tile after tile.
fn total<T: Float>(partials: &[T], channels: usize, k: usize) -> (f64, f64) {
    partials
        .chunks_exact(2 * channels)
        .fold((0.0, 0.0), |(sum, product), sums| {
            (sum + sums[k].to_f64(), product + sums[channels + k].to_f64())
        })
}

pub(super) fn tangent<T: Float>(
    norm: Norm<Arena>,
    statistics: Statistics,
    tgamma: Mem<Cpu<T>>,
    tbeta: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("norm_tangent");
    let channels = norm.shape.channels as usize;
    let rows = f64::from(norm.shape.rows);
    let gamma = lend.read::<T>("gamma", norm.gamma, channels)?;
    let tgamma = lend.read::<T>("tgamma", tgamma, channels)?;
    let tbeta = lend.read::<T>("tbeta", tbeta, channels)?;
    let (_, rstd) = pair::<T>(&mut lend, "statistics", norm.statistics, channels)?;
    let a = affine::<T>(&mut lend, norm.affine, channels)?.scale;
    let (b, d) = lend
        .write::<T>("slope", norm.slope, 2 * channels)?
        .split_at_mut(channels);
    let partials = match statistics {
        Statistics::Batch { .. } => lend.read::<T>("partials", norm.partials, partials_len(norm.shape))?,
        Statistics::Running => &[],
    };
    for k in 0..channels {
        let (sum, product) = total(partials, channels, k);
        let (m1, m2) = (sum / rows, product / rows);
        let rstd = rstd[k].to_f64();
        b[k] = T::from_f64((tgamma[k].to_f64() - gamma[k].to_f64() * rstd * m2) * rstd);
        d[k] = T::from_f64(tbeta[k].to_f64() - a[k].to_f64() * m1);
    }
    Ok(())
}

pub(super) fn backward<T: Float>(
    norm: Norm<Arena>,
    statistics: Statistics,
    dgamma: Mem<Cpu<T>>,
    dbeta: Mem<Cpu<T>>,
    write: Write,
) -> Result<()> {
    let mut lend = Lend::new("norm_backward");
    let channels = norm.shape.channels as usize;
    let rows = f64::from(norm.shape.rows);
    let dgamma = lend.write::<T>("dgamma", dgamma, channels)?;
    let dbeta = lend.write::<T>("dbeta", dbeta, channels)?;
    let (_, rstd) = pair::<T>(&mut lend, "statistics", norm.statistics, channels)?;
    let a = affine::<T>(&mut lend, norm.affine, channels)?.scale;
    let (b, d) = lend
        .write::<T>("slope", norm.slope, 2 * channels)?
        .split_at_mut(channels);
    let partials = lend.read::<T>("partials", norm.partials, partials_len(norm.shape))?;
    for k in 0..channels {
        let (sum, product) = total(partials, channels, k);
        match statistics {
            Statistics::Batch { .. } => {
                let (rstd, a) = (rstd[k].to_f64(), a[k].to_f64());
                b[k] = T::from_f64(-a * rstd * product / rows);
                d[k] = T::from_f64(-a * sum / rows);
            }
            Statistics::Running => (b[k], d[k]) = (T::ZERO, T::ZERO),
        }
        let (old_gamma, old_beta) = match write {
            Write::Set => (0.0, 0.0),
            Write::Add => (dgamma[k].to_f64(), dbeta[k].to_f64()),
        };
        dgamma[k] = T::from_f64(old_gamma + product);
        dbeta[k] = T::from_f64(old_beta + sum);
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(super) fn contract<T: Float>(
    cpu: &Cpu<T>,
    norm: Norm<Arena>,
    samples: usize,
    out: Mem<Cpu<T>>,
    x: Mem<Cpu<T>>,
    d: Mem<Cpu<T>>,
    tgamma: Mem<Cpu<T>>,
    tbeta: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("norm_contract");
    let channels = norm.shape.channels as usize;
    let out = lend.write::<T>("out", out, samples)?;
    let x = lend.read::<T>("x", x, norm.shape.len())?;
    let d = lend.read::<T>("d", d, norm.shape.len())?;
    let tgamma = lend.read::<T>("tgamma", tgamma, channels)?;
    let tbeta = lend.read::<T>("tbeta", tbeta, channels)?;
    let (mean, rstd) = pair::<T>(&mut lend, "statistics", norm.statistics, channels)?;
    let sample = norm.shape.len() / samples.max(1);
    let items = out
        .iter_mut()
        .zip(x.chunks_exact(sample).zip(d.chunks_exact(sample)));
    cpu.threads.each(norm.shape.len(), items, |(out, (x, d))| {
        let mut sum = 0.0;
        for (x, d) in x.chunks_exact(channels).zip(d.chunks_exact(channels)) {
            for k in 0..channels {
                let value = tgamma[k] * ((x[k] - mean[k]) * rstd[k]) + tbeta[k];
                sum += (d[k] * value).to_f64();
            }
        }
        *out = T::from_f64(out.to_f64() + sum);
    });
    Ok(())
}
