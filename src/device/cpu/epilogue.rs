//! What follows every accumulated tensor: a residual, mask, rounding, then per-channel sums of the stored values, tile by tile.
//!
//! Partials are `Real` [tiles][2][C]; a tile is [`TILE_ROWS`] rows whatever the call, so the merge order is fixed.

use super::super::{Epilogue, Rows, Sums};
use super::source::{Pair, Values, pair};
use super::{Arena, Cpu, Float, Lend, Rounding};
use crate::Result;

/// Rows whose sums are formed in one go; short enough that a plain sum in f32 loses nothing that matters.
pub(super) const TILE_ROWS: usize = 128;

/// Elements that one piece of elementwise work holds, about: 64 KiB of f32.
const PIECE: usize = 1 << 14;

/// Length of the partials of a tensor.
pub(super) fn partials_len(shape: Rows) -> usize {
    (shape.rows as usize).div_ceil(TILE_ROWS) * 2 * shape.channels as usize
}

/// An epilogue whose operands are lent.
pub(super) struct Finish<'a, T> {
    addend: Option<&'a [T]>,
    mask: Option<Values<'a, T>>,
    sums: Lent<'a, T>,
    channels: usize,
    rounding: Rounding,
}

enum Lent<'a, T> {
    None,
    Moments {
        partials: &'a mut [T],
    },
    Dot {
        x: &'a [T],
        /// mean, rstd
        statistics: Pair<'a, T>,
        partials: &'a mut [T],
    },
}

/// The kind of sums, apart from where they go.
#[derive(Clone, Copy)]
enum Kind<'a, T> {
    None,
    Moments,
    Dot(&'a [T], Pair<'a, T>),
}

impl<'a, T: Float> Finish<'a, T> {
    pub(super) fn lend(
        lend: &mut Lend,
        epilogue: Epilogue<'a, Arena>,
        shape: Rows,
        rounding: Rounding,
    ) -> Result<Self> {
        let channels = shape.channels as usize;
        let addend = epilogue
            .addend
            .map(|addend| lend.read("addend", addend, shape.len()))
            .transpose()?;
        let mask = epilogue
            .mask
            .map(|source| Values::lend(lend, source, shape))
            .transpose()?;
        let sums = match epilogue.sums {
            Sums::None => Lent::None,
            Sums::Moments { partials } => Lent::Moments {
                partials: lend.write("partials", partials, partials_len(shape))?,
            },
            Sums::Dot {
                x,
                statistics,
                partials,
            } => Lent::Dot {
                x: lend.read("sums x", x, shape.len())?,
                statistics: pair::<T>(lend, "statistics", statistics, channels)?,
                partials: lend.write("partials", partials, partials_len(shape))?,
            },
        };
        Ok(Finish {
            addend,
            mask,
            sums,
            channels,
            rounding,
        })
    }

    /// What to do with pieces of `len` values, each whole tiles, and the partials of each in order.
    pub(super) fn pieces(self, len: usize) -> (Ending<'a, T>, impl Iterator<Item = &'a mut [T]>) {
        let tile = TILE_ROWS * self.channels;
        let (kind, partials) = match self.sums {
            Lent::None => (Kind::None, [].as_mut_slice()),
            Lent::Moments { partials } => (Kind::Moments, partials),
            Lent::Dot {
                x,
                statistics,
                partials,
            } => (Kind::Dot(x, statistics), partials),
        };
        let ending = Ending {
            addend: self.addend,
            mask: self.mask,
            kind,
            channels: self.channels,
            rounding: self.rounding,
        };
        // Without sums there are no partials: an endless supply of empty pieces stands in for them.
        let partials = partials
            .chunks_mut(len.div_ceil(tile) * 2 * self.channels)
            .chain(std::iter::repeat_with(|| [].as_mut_slice()));
        (ending, partials)
    }

    /// Fills `out` [rows][C] piece by piece with `f(piece, first element)`, then masks, rounds and sums each piece while
    /// it is in the cache.
    pub(super) fn rows(self, cpu: &Cpu<T>, out: &mut [T], f: impl Fn(&mut [T], usize) + Sync) {
        let tile = TILE_ROWS * self.channels;
        let len = (PIECE / tile).max(1) * tile;
        let work = out.len();
        let (ending, partials) = self.pieces(len);
        let pieces = out.chunks_mut(len).zip(partials).enumerate();
        cpu.threads.each(work, pieces, |(i, (out, partials))| {
            f(out, i * len);
            ending.apply(out, i * len, partials);
        });
    }
}

/// What is done with values that have been accumulated: add, mask, round, sum.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a, T> {
    addend: Option<&'a [T]>,
    mask: Option<Values<'a, T>>,
    kind: Kind<'a, T>,
    channels: usize,
    rounding: Rounding,
}

impl<T: Float> Ending<'_, T> {
    /// Ends `out`, whole tiles from element `start` on.
    #[inline(always)]
    pub(super) fn apply(&self, out: &mut [T], start: usize, partials: &mut [T]) {
        if let Some(addend) = self.addend {
            for (out, &addend) in out.iter_mut().zip(&addend[start..]) {
                *out += addend;
            }
        }
        if let Some(mask) = self.mask {
            mask.mask(out, start);
        }
        self.rounding.stored(out);
        let tile = TILE_ROWS * self.channels;
        let sums = partials.chunks_exact_mut(2 * self.channels);
        for (t, (values, sums)) in out.chunks(tile).zip(sums).enumerate() {
            let (first, second) = sums.split_at_mut(self.channels);
            match self.kind {
                Kind::None => {}
                Kind::Moments => moments(first, second, values),
                Kind::Dot(x, statistics) => {
                    let x = &x[start + t * tile..][..values.len()];
                    dot(first, second, values, x, statistics);
                }
            }
        }
    }
}

/// (mean, Σ(u − mean)²) of each channel of `values`.
#[inline(always)]
fn moments<T: Float>(mean: &mut [T], m2: &mut [T], values: &[T]) {
    let channels = mean.len();
    let scale = T::ONE / T::from_f64((values.len() / channels) as f64);
    mean.fill(T::ZERO);
    m2.fill(T::ZERO);
    for row in values.chunks_exact(channels) {
        for (mean, &u) in mean.iter_mut().zip(row) {
            *mean += u;
        }
    }
    for mean in mean.iter_mut() {
        *mean *= scale;
    }
    for row in values.chunks_exact(channels) {
        for ((m2, &u), &mean) in m2.iter_mut().zip(row).zip(&*mean) {
            *m2 += (u - mean) * (u - mean);
        }
    }
}

/// (Σ u, Σ u·x̂) of each channel.
#[inline(always)]
fn dot<T: Float>(sum: &mut [T], product: &mut [T], values: &[T], x: &[T], statistics: Pair<T>) {
    let channels = sum.len();
    let (mean, rstd) = statistics;
    sum.fill(T::ZERO);
    product.fill(T::ZERO);
    for (row, x) in values.chunks_exact(channels).zip(x.chunks_exact(channels)) {
        for (((sum, product), (&u, &x)), (&mean, &rstd)) in sum
            .iter_mut()
            .zip(product.iter_mut())
            .zip(row.iter().zip(x))
            .zip(mean.iter().zip(rstd))
        {
            *sum += u;
            *product += u * ((x - mean) * rstd);
        }
    }
}
