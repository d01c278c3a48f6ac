//! Sources evaluated row by row, their adjoint, and joins.
//!
//! relu(A·(x − M) + C) is decided in one place, [`Values::pre_activation`]: forward value, tangent mask and adjoint mask come
//! from the same rounded A·(x − M) + C. A value that is not a number counts as open, so that it travels on and is noticed.

use std::ops::Range;

use super::super::{Epilogue, Mem, Rows, Source, Tangent, Write};
use super::epilogue::Finish;
use super::{Arena, Cpu, Float, Lend};
use crate::Result;

/// Per-channel pair, each [C]: (B, D) of a slope, (mean, rstd) of statistics.
pub(super) type Pair<'a, T> = (&'a [T], &'a [T]);

/// The affine map of a source, each [C].
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, T> {
    pub scale: &'a [T],
    pub shift: &'a [T],
    pub centre: &'a [T],
}

/// A source whose operands are lent.
#[derive(Clone, Copy)]
pub(super) struct Values<'a, T> {
    pub x: &'a [T],
    pub affine: Option<Affine<'a, T>>,
    pub relu: bool,
    pub channels: usize,
}

/// A tangent whose operands are lent.
#[derive(Clone, Copy)]
pub(super) struct Slopes<'a, T> {
    tx: Option<&'a [T]>,
    slope: Option<Pair<'a, T>>,
}

/// A `Real` [2][C] operand as its two rows.
pub(super) fn pair<'a, T: Float>(
    lend: &mut Lend,
    what: &str,
    span: Mem<'a, Cpu<T>>,
    channels: usize,
) -> Result<Pair<'a, T>> {
    Ok(lend.read::<T>(what, span, 2 * channels)?.split_at(channels))
}

/// A `Real` [3][C] operand as the affine map it holds.
pub(super) fn affine<'a, T: Float>(
    lend: &mut Lend,
    span: Mem<'a, Cpu<T>>,
    channels: usize,
) -> Result<Affine<'a, T>> {
    let (scale, rest) = lend.read::<T>("affine", span, 3 * channels)?.split_at(channels);
    let (shift, centre) = rest.split_at(channels);
    Ok(Affine { scale, shift, centre })
}

impl<'a, T: Float> Values<'a, T> {
    /// Lends a source over a tensor of this shape.
    pub(super) fn lend(lend: &mut Lend, source: Source<'a, Arena>, shape: Rows) -> Result<Self> {
        let channels = shape.channels as usize;
        Ok(Values {
            x: lend.read("source x", source.x, shape.len())?,
            affine: source
                .affine
                .map(|affine| self::affine::<T>(lend, affine, channels))
                .transpose()?,
            relu: source.relu,
            channels,
        })
    }

    /// Whether the value is the stored tensor itself.
    pub(super) fn is_identity(&self) -> bool {
        self.affine.is_none() && !self.relu
    }

    /// The channels that a run of elements from `start` on covers: it holds whole rows or a part of one row.
    #[inline(always)]
    fn columns(&self, start: usize, len: usize) -> Range<usize> {
        let first = start % self.channels;
        first..self.channels.min(first + len)
    }

    /// `f` of every element of `out` and its A·(x − M) + C.
    #[inline(always)]
    fn pre_activation(&self, out: &mut [T], start: usize, f: impl Fn(&mut T, T)) {
        let x = &self.x[start..start + out.len()];
        let Some(Affine { scale, shift, centre }) = self.affine else {
            for (out, &x) in out.iter_mut().zip(x) {
                f(out, x);
            }
            return;
        };
        let columns = self.columns(start, out.len());
        let (a, c, m) = (
            &scale[columns.clone()],
            &shift[columns.clone()],
            &centre[columns.clone()],
        );
        for (out, x) in out
            .chunks_exact_mut(columns.len())
            .zip(x.chunks_exact(columns.len()))
        {
            for ((((out, &x), &a), &c), &m) in out.iter_mut().zip(x).zip(a).zip(c).zip(m) {
                f(out, a * (x - m) + c);
            }
        }
    }

    /// out ← relu(A·(x − M) + C), from element `start` on.
    #[inline(always)]
    pub(super) fn eval(&self, out: &mut [T], start: usize) {
        if self.relu {
            self.pre_activation(out, start, |out, v| *out = if closed(v) { T::ZERO } else { v });
        } else {
            self.pre_activation(out, start, |out, v| *out = v);
        }
    }

    /// Zeroes `out` where the ReLU is closed.
    #[inline(always)]
    pub(super) fn mask(&self, out: &mut [T], start: usize) {
        if self.relu {
            self.pre_activation(out, start, |out, v| *out = if closed(v) { T::ZERO } else { *out });
        }
    }

    /// out ← A·out.
    #[inline(always)]
    fn scale(&self, out: &mut [T], start: usize) {
        let Some(affine) = self.affine else { return };
        let columns = self.columns(start, out.len());
        let a = &affine.scale[columns.clone()];
        for out in out.chunks_exact_mut(columns.len()) {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = a * *out;
            }
        }
    }

    /// out += B·(x − M) + D.
    #[inline(always)]
    fn add_slope(&self, out: &mut [T], start: usize, slope: Option<Pair<T>>) {
        let Some((b, d)) = slope else { return };
        let columns = self.columns(start, out.len());
        let x = &self.x[start..start + out.len()];
        let (b, d) = (&b[columns.clone()], &d[columns.clone()]);
        let m = self.affine.map(|affine| &affine.centre[columns.clone()]);
        let rows = out
            .chunks_exact_mut(columns.len())
            .zip(x.chunks_exact(columns.len()));
        for (out, x) in rows {
            match m {
                Some(m) => {
                    for ((((out, &x), &b), &d), &m) in out.iter_mut().zip(x).zip(b).zip(d).zip(m) {
                        *out += b * (x - m) + d;
                    }
                }
                None => {
                    for (((out, &x), &b), &d) in out.iter_mut().zip(x).zip(b).zip(d) {
                        *out += b * x + d;
                    }
                }
            }
        }
    }

    /// out ← f(u, A·(x − M) + C, A, B·(x − M) + D) in one loop: the case that nearly all elements of a network are.
    #[inline(always)]
    fn fused(
        &self,
        out: &mut [T],
        u: &[T],
        start: usize,
        affine: Affine<T>,
        (b, d): Pair<T>,
        f: impl Fn(T, T, T, T) -> T,
    ) {
        let columns = self.columns(start, out.len());
        let x = &self.x[start..start + out.len()];
        let width = columns.len();
        let [a, c, m, b, d] =
            [affine.scale, affine.shift, affine.centre, b, d].map(|values| &values[columns.clone()][..width]);
        let rows = out.chunks_exact_mut(width);
        for ((out, u), x) in rows.zip(u.chunks_exact(width)).zip(x.chunks_exact(width)) {
            for i in 0..width {
                let centred = x[i] - m[i];
                out[i] = f(u[i], a[i] * centred + c[i], a[i], b[i] * centred + d[i]);
            }
        }
    }

    /// out ← mask·(A·tx + B·(x − M) + D), from element `start` on.
    #[inline(always)]
    pub(super) fn tangent(&self, out: &mut [T], start: usize, slopes: Slopes<T>) {
        if let (true, Some(affine), Some(tx), Some(slope)) = (self.relu, self.affine, slopes.tx, slopes.slope)
        {
            let tx = &tx[start..start + out.len()];
            return self.fused(out, tx, start, affine, slope, |tx, pre, a, shift| {
                if closed(pre) { T::ZERO } else { a * tx + shift }
            });
        }
        match slopes.tx {
            Some(tx) => {
                out.copy_from_slice(&tx[start..start + out.len()]);
                self.scale(out, start);
            }
            // No A·0: an A that overflowed must not make a zero tangent NaN.
            None => out.fill(T::ZERO),
        }
        self.add_slope(out, start, slopes.slope);
        self.mask(out, start);
    }

    /// out ← A·mask·d + B·(x − M) + D, from element `start` on, of both `out` and `d`.
    #[inline(always)]
    fn adjoint(&self, out: &mut [T], d: &[T], start: usize, slope: Option<Pair<T>>) {
        let d = &d[start..start + out.len()];
        if let (true, Some(affine), Some(slope)) = (self.relu, self.affine, slope) {
            return self.fused(out, d, start, affine, slope, |d, pre, a, shift| {
                a * if closed(pre) { T::ZERO } else { d } + shift
            });
        }
        out.copy_from_slice(d);
        self.mask(out, start);
        self.scale(out, start);
        self.add_slope(out, start, slope);
    }
}

impl<'a, T: Float> Slopes<'a, T> {
    pub(super) fn lend(lend: &mut Lend, tangent: Tangent<'a, Arena>, shape: Rows) -> Result<Self> {
        Ok(Slopes {
            tx: tangent
                .tx
                .map(|tx| lend.read("tangent tx", tx, shape.len()))
                .transpose()?,
            slope: tangent
                .slope
                .map(|slope| pair::<T>(lend, "slope", slope, shape.channels as usize))
                .transpose()?,
        })
    }

    /// Whether the tangent is zero everywhere.
    pub(super) fn is_zero(&self) -> bool {
        self.tx.is_none() && self.slope.is_none()
    }

    /// The tangent's tensor where tangent and tensor are one: no slope.
    pub(super) fn stored(&self) -> Option<&'a [T]> {
        if self.slope.is_none() { self.tx } else { None }
    }
}

/// Whether a ReLU blocks this pre-activation.
#[inline(always)]
fn closed<T: Float>(value: T) -> bool {
    value <= T::ZERO
}

/// out += addend.
#[inline(always)]
pub(super) fn add<T: Float>(out: &mut [T], addend: &[T]) {
    for (out, &addend) in out.iter_mut().zip(addend) {
        *out += addend;
    }
}

/// Elements that an addend is made of at a time, on the stack.
const BLOCK: usize = 256;

/// out += what `f` makes of each block of it, from element `start` on. A block is whole rows or a part of one row.
#[inline(always)]
fn accumulate<T: Float>(out: &mut [T], start: usize, channels: usize, f: impl Fn(&mut [T], usize)) {
    let mut addend = [T::ZERO; BLOCK];
    let rows = (BLOCK / channels).max(1);
    let mut at = start;
    for rows in out.chunks_mut(rows * channels) {
        for block in rows.chunks_mut(BLOCK) {
            let addend = &mut addend[..block.len()];
            f(addend, at);
            add(block, addend);
            at += block.len();
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: Float>(
    cpu: &Cpu<T>,
    shape: Rows,
    dx: Mem<Cpu<T>>,
    write: Write,
    d: Mem<Cpu<T>>,
    x: Source<Arena>,
    slope: Option<Mem<Cpu<T>>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("source_backward");
    let dx = lend.write::<T>("dx", dx, shape.len())?;
    let d = lend.read::<T>("d", d, shape.len())?;
    let x = Values::lend(&mut lend, x, shape)?;
    let slope = slope
        .map(|slope| pair::<T>(&mut lend, "slope", slope, x.channels))
        .transpose()?;
    let finish = Finish::lend(&mut lend, epilogue, shape, cpu.rounding)?;
    finish.rows(cpu, dx, |out, start| {
        let adjoint = |out: &mut [T], start: usize| x.adjoint(out, d, start, slope);
        match write {
            Write::Set => adjoint(out, start),
            Write::Add => accumulate(out, start, x.channels, adjoint),
        }
    });
    Ok(())
}

pub(super) fn join_forward<T: Float>(
    cpu: &Cpu<T>,
    shape: Rows,
    y: Mem<Cpu<T>>,
    a: Source<Arena>,
    b: Source<Arena>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("join_forward");
    let y = lend.write::<T>("y", y, shape.len())?;
    let a = Values::<T>::lend(&mut lend, a, shape)?;
    let b = Values::<T>::lend(&mut lend, b, shape)?;
    let finish = Finish::lend(&mut lend, epilogue, shape, cpu.rounding)?;
    finish.rows(cpu, y, |out, start| {
        a.eval(out, start);
        accumulate(out, start, b.channels, |out, start| b.eval(out, start));
    });
    Ok(())
}

pub(super) fn join_tangent<T: Float>(
    cpu: &Cpu<T>,
    shape: Rows,
    ty: Mem<Cpu<T>>,
    a: (Source<Arena>, Tangent<Arena>),
    b: (Source<Arena>, Tangent<Arena>),
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let mut lend = Lend::new("join_tangent");
    let ty = lend.write::<T>("ty", ty, shape.len())?;
    let (a, ta) = (
        Values::<T>::lend(&mut lend, a.0, shape)?,
        Slopes::lend(&mut lend, a.1, shape)?,
    );
    let (b, tb) = (
        Values::<T>::lend(&mut lend, b.0, shape)?,
        Slopes::lend(&mut lend, b.1, shape)?,
    );
    let finish = Finish::lend(&mut lend, epilogue, shape, cpu.rounding)?;
    finish.rows(cpu, ty, |out, start| {
        a.tangent(out, start, ta);
        accumulate(out, start, b.channels, |out, start| b.tangent(out, start, tb));
    });
    Ok(())
}
