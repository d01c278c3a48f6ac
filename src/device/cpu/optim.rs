//! SGD with momentum, weight decay and clipping; the look-ahead of the virtual step. METHOD 2.5 and 1.5.

use super::super::{Mem, StepParams};
use super::{Cpu, Float, Lend};
use crate::Result;

/// Values per piece of work, and per partial sum of the norm.
const CHUNK: usize = 1 << 14;

/// Partial sums of the norm of `len` values.
pub(super) fn norm_chunks(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

fn step_params<'a>(lend: &mut Lend, step: Mem<'a, Cpu<f32>>) -> Result<&'a StepParams> {
    Ok(&lend.read::<StepParams>("step", step, 1)?[0])
}

pub(super) fn lookahead<T: Float>(
    cpu: &Cpu<T>,
    out: Mem<Cpu<T>>,
    theta: Mem<Cpu<T>>,
    buf: Mem<Cpu<T>>,
    step: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("lookahead");
    let len = theta.bytes / size_of::<T>();
    let out = lend.write::<T>("out", out, len)?;
    let theta = lend.read::<T>("theta", theta, len)?;
    let buf = lend.read::<T>("buf", buf, len)?;
    let step = step_params(&mut lend, step)?;
    let [lambda, mu, decay] = [step.lambda, step.mu, step.weight_decay].map(T::from_f64);
    let chunks = out
        .chunks_mut(CHUNK)
        .zip(theta.chunks(CHUNK).zip(buf.chunks(CHUNK)));
    cpu.threads.each(len, chunks, |(out, (theta, buf))| {
        for ((out, &theta), &buf) in out.iter_mut().zip(theta).zip(buf) {
            *out = theta - lambda * (mu * buf + decay * theta);
        }
    });
    Ok(())
}

pub(super) fn gradient_norm<T: Float>(
    cpu: &Cpu<T>,
    norm: Mem<Cpu<T>>,
    g: Mem<Cpu<T>>,
    scratch: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("gradient_norm");
    let len = g.bytes / size_of::<T>();
    let norm = lend.write::<T>("norm", norm, 1)?;
    let g = lend.read::<T>("g", g, len)?;
    let sums = lend.scratch::<f64>(scratch, norm_chunks(len))?;
    let chunks = sums.iter_mut().zip(g.chunks(CHUNK));
    cpu.threads.each(len, chunks, |(sum, g)| {
        // Eight running sums, so that the loop is not one long chain of additions.
        let mut lanes = [0.0; 8];
        for g in g.chunks(8) {
            for (lane, g) in lanes.iter_mut().zip(g) {
                *lane += g.to_f64() * g.to_f64();
            }
        }
        *sum = lanes.iter().sum();
    });
    norm[0] = T::from_f64(sums.iter().sum::<f64>().sqrt());
    Ok(())
}

pub(super) fn watch<T: Float>(stopped: Mem<Cpu<T>>, values: &[Mem<Cpu<T>>], step: Mem<Cpu<T>>) -> Result<()> {
    let mut lend = Lend::new("watch");
    let stopped = &mut lend.write::<u32>("stopped", stopped, 1)?[0];
    let step = step_params(&mut lend, step)?.step;
    for &value in values {
        let values = lend.read::<T>("values", value, value.bytes / size_of::<T>())?;
        if *stopped == 0 && values.iter().any(|value| !value.to_f64().is_finite()) {
            *stopped = step + 1;
        }
    }
    Ok(())
}

pub(super) fn sgd<T: Float>(
    cpu: &Cpu<T>,
    theta: Mem<Cpu<T>>,
    buf: Mem<Cpu<T>>,
    g: Mem<Cpu<T>>,
    norm: Mem<Cpu<T>>,
    stopped: Mem<Cpu<T>>,
    step: Mem<Cpu<T>>,
) -> Result<()> {
    let mut lend = Lend::new("sgd");
    let len = theta.bytes / size_of::<T>();
    let theta = lend.write::<T>("theta", theta, len)?;
    let buf = lend.write::<T>("buf", buf, len)?;
    let g = lend.read::<T>("g", g, len)?;
    let norm = lend.read::<T>("norm", norm, 1)?[0].to_f64();
    let step = step_params(&mut lend, step)?;
    if lend.read::<u32>("stopped", stopped, 1)?[0] != 0 {
        return Ok(());
    }
    let factor = step.clip / (norm + 1e-6);
    // Written so that a norm that is not a number gives a factor that is not one either.
    let factor = if step.clip == 0.0 || factor >= 1.0 {
        1.0
    } else {
        factor
    };
    let [factor, lr, mu, decay] = [factor, step.lr, step.mu, step.weight_decay].map(T::from_f64);
    let chunks = theta
        .chunks_mut(CHUNK)
        .zip(buf.chunks_mut(CHUNK))
        .zip(g.chunks(CHUNK));
    cpu.threads.each(len, chunks, |((theta, buf), g)| {
        for ((theta, buf), &g) in theta.iter_mut().zip(buf).zip(g) {
            let d = factor * g + decay * *theta;
            *buf = mu * *buf + d;
            *theta -= lr * *buf;
        }
    });
    Ok(())
}
