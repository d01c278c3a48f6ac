//! Average pooling over windows that do not overlap.

use super::super::{Epilogue, Mem, PoolShape, Rows, Source, Tangent, Write};
use super::epilogue::Finish;
use super::source::{Slopes, Values, add};
use super::{Arena, Cpu, Float, Lend};
use crate::Result;

/// The input as rows of channels.
fn input_rows(shape: &PoolShape) -> Rows {
    Rows {
        rows: shape.n * shape.h * shape.w,
        channels: shape.c,
    }
}

pub(super) fn forward<T: Float>(
    cpu: &Cpu<T>,
    shape: PoolShape,
    y: Mem<Cpu<T>>,
    x: Source<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("pool_forward");
    let y = lend.write::<T>("y", y, shape.y_len())?;
    let x = Values::<T>::lend(&mut lend, x, input_rows(&shape))?;
    window_means(cpu, shape, y, |out, start| x.eval(out, start));
    Ok(())
}

pub(super) fn tangent<T: Float>(
    cpu: &Cpu<T>,
    shape: PoolShape,
    ty: Mem<Cpu<T>>,
    x: Source<Arena>,
    tx: Tangent<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("pool_tangent");
    let ty = lend.write::<T>("ty", ty, shape.y_len())?;
    let x = Values::<T>::lend(&mut lend, x, input_rows(&shape))?;
    let tx = Slopes::lend(&mut lend, tx, input_rows(&shape))?;
    window_means(cpu, shape, ty, |out, start| x.tangent(out, start, tx));
    Ok(())
}

/// y ← mean of each window of what `fill(piece, first element)` gives; pieces are parts of one pixel.
fn window_means<T: Float>(
    cpu: &Cpu<T>,
    shape: PoolShape,
    y: &mut [T],
    fill: impl Fn(&mut [T], usize) + Sync,
) {
    const BLOCK: usize = 256;
    let [h, w, c, r, s] = [shape.h, shape.w, shape.c, shape.r, shape.s].map(|v| v as usize);
    let (p, q) = (shape.p() as usize, shape.q() as usize);
    let scale = T::ONE / T::from_f64((r * s) as f64);
    let images = y.chunks_exact_mut((p * q * c).max(1)).enumerate();
    cpu.threads.each(shape.x_len(), images, |(n, y)| {
        let mut values = [T::ZERO; BLOCK];
        for (pixel, y) in y.chunks_exact_mut(c).enumerate() {
            let (first_row, first_column) = (pixel / q * r, pixel % q * s);
            y.fill(T::ZERO);
            for i in 0..r * s {
                let x = ((n * h + first_row + i / s) * w + first_column + i % s) * c;
                for (b, y) in y.chunks_mut(BLOCK).enumerate() {
                    let values = &mut values[..y.len()];
                    fill(values, x + b * BLOCK);
                    add(y, values);
                }
            }
            for y in y {
                *y *= scale;
            }
        }
    });
}

pub(super) fn backward<T: Float>(
    cpu: &Cpu<T>,
    shape: PoolShape,
    d: Mem<Cpu<T>>,
    write: Write,
    dy: Mem<Cpu<T>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("pool_backward");
    let d = lend.write::<T>("d", d, shape.x_len())?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let finish = Finish::lend(&mut lend, epilogue, input_rows(&shape), cpu.rounding)?;
    let [h, w, c, r, s] = [shape.h, shape.w, shape.c, shape.r, shape.s].map(|v| v as usize);
    let (p, q) = (shape.p() as usize, shape.q() as usize);
    let scale = T::ONE / T::from_f64((r * s) as f64);
    finish.rows(cpu, d, |out, start| {
        for (i, out) in out.chunks_exact_mut(c).enumerate() {
            let pixel = start / c + i;
            let (n, row, column) = (pixel / (h * w), pixel / w % h / r, pixel % w / s);
            if write == Write::Set {
                out.fill(T::ZERO);
            }
            if row < p && column < q {
                let dy = &dy[((n * p + row) * q + column) * c..][..c];
                for (out, &dy) in out.iter_mut().zip(dy) {
                    *out += dy * scale;
                }
            }
        }
    });
    Ok(())
}
