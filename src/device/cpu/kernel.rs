//! The one inner loop of every product: a tile of up to [`ROWS`] × four vectors of the result stays in registers while its
//! depth runs by. Rows of the result may lie anywhere, and so may the depth: a convolution reads the image's own pixels,
//! tap by tap, with neither patches nor zeros around the image written out.
//!
//! Compiled for each instruction set that `pulp` knows; the device picks one when it is made.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

use super::Float;

/// Rows of the result that a tile holds at most. With four vectors a row: at six the compiler gives up keeping them in
/// registers, at four it reaches 98 % of the machine's peak.
pub(super) const ROWS: usize = 4;

/// A stretch of depth: its steps lie `a_step` apart in a and `b_step` apart in b.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    /// Element of a, beside the row's own.
    pub a: usize,
    /// Element of b.
    pub b: usize,
    pub len: usize,
}

/// Where a row of the result lies. Sums with a run's `a` wrap: a row above an image's first is a row below zero.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    pub a: usize,
    pub out: usize,
}

/// out[row.out + j] ← or += Σ over the runs and their steps t of a[row.a + run.a + t·a_step] · b[run.b + t·b_step + j].
pub(super) struct Product<'a, T> {
    a: &'a [T],
    a_step: usize,
    b: &'a [T],
    b_step: usize,
    pub runs: &'a [Run],
    /// Values of a row, at most four vectors. The last vector of b is read whole, whatever it holds behind them.
    columns: usize,
    pub add: bool,
    /// The columns in whole vectors.
    width: usize,
    /// The least and the largest element of a that a run adds to a row's own.
    reach: Option<(isize, isize)>,
}

/// Values of one vector.
#[inline(always)]
pub(super) const fn lanes<T: Float, S: Simd>() -> usize {
    size_of::<T::Vector<S>>() / size_of::<T>()
}

/// Vectors that a tile's row holds at most.
#[inline(always)]
pub(super) const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Widths that depend on the instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widths {
    /// Values of one vector.
    pub lanes: usize,
    /// Values of a tile's row at most.
    pub columns: usize,
}

impl Widths {
    pub(super) fn of<T: Float>(arch: pulp::Arch) -> Self {
        struct Ask<T>(std::marker::PhantomData<T>);
        impl<T: Float> WithSimd for Ask<T> {
            type Output = Widths;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Widths {
                Widths {
                    lanes: lanes::<T, S>(),
                    columns: lanes::<T, S>() * vectors::<S>(),
                }
            }
        }
        arch.dispatch(Ask::<T>(std::marker::PhantomData))
    }
}

impl<'a, T: Float> Product<'a, T> {
    /// Checks once for all tiles that the runs lie in b, and notes how far they reach in a.
    #[inline(always)]
    pub(super) fn new(
        widths: Widths,
        (a, a_step): (&'a [T], usize),
        (b, b_step): (&'a [T], usize),
        runs: &'a [Run],
        columns: usize,
        add: bool,
    ) -> Self {
        let width = columns.next_multiple_of(widths.lanes);
        let mut reach: Option<(isize, isize)> = None;
        for run in runs.iter().filter(|run| run.len > 0) {
            assert!(run.b + (run.len - 1) * b_step + width <= b.len());
            let first = run.a as isize;
            let last = first + ((run.len - 1) * a_step) as isize;
            let (least, most) = reach.unwrap_or((first, last));
            reach = Some((least.min(first), most.max(last)));
        }
        Product {
            a,
            a_step,
            b,
            b_step,
            runs,
            columns,
            add,
            width,
            reach,
        }
    }

    /// A tile of 1 to [`ROWS`] rows.
    #[inline(always)]
    pub(super) fn tile<S: Simd>(&self, simd: S, rows: &[Row], out: &mut [T]) {
        match rows.len() {
            1 => self.rows::<S, 1>(simd, rows, out),
            2 => self.rows::<S, 2>(simd, rows, out),
            3 => self.rows::<S, 3>(simd, rows, out),
            4 => self.rows::<S, 4>(simd, rows, out),
            len => unreachable!("a tile of {len} rows"),
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const M: usize>(&self, simd: S, rows: &[Row], out: &mut [T]) {
        let rows = std::array::from_fn(|i| rows[i]);
        match self.columns.div_ceil(lanes::<T, S>()) {
            1 => self.vectorize::<S, M, 1>(simd, rows, out),
            2 => self.vectorize::<S, M, 2>(simd, rows, out),
            3 if vectors::<S>() > 2 => self.vectorize::<S, M, 3>(simd, rows, out),
            4 if vectors::<S>() > 2 => self.vectorize::<S, M, 4>(simd, rows, out),
            count => unreachable!("a tile of {count} vectors"),
        }
    }

    #[inline(always)]
    fn vectorize<S: Simd, const M: usize, const V: usize>(&self, simd: S, rows: [Row; M], out: &mut [T]) {
        simd.vectorize(Tile::<T, M, V> {
            product: self,
            rows,
            out,
        });
    }
}

struct Tile<'a, 'b, T, const M: usize, const V: usize> {
    product: &'a Product<'b, T>,
    rows: [Row; M],
    out: &'a mut [T],
}

impl<T: Float, const M: usize, const V: usize> WithSimd for Tile<'_, '_, T, M, V> {
    type Output = ();

    #[allow(clippy::needless_range_loop)] // the compiler keeps in registers what is indexed by unrolled loops
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tile { product, rows, out } = self;
        let lanes = lanes::<T, S>();
        assert!(product.width == V * lanes && product.columns <= product.width);
        if let Some((least, most)) = product.reach {
            for row in rows {
                let (first, last) = (row.a as isize + least, row.a as isize + most);
                assert!(first >= 0 && last < product.a.len() as isize);
            }
        }
        let whole = product.columns / lanes;
        let out = rows.map(|row| {
            assert!(row.out <= out.len() && product.columns <= out.len() - row.out);
            out.as_mut_ptr().wrapping_add(row.out)
        });
        let part = product.columns % lanes;
        let mut sums = [[T::splat(simd, T::ZERO); V]; M];
        if product.add {
            for (sums, out) in sums.iter_mut().zip(out) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a whole vector or `part` values lie in the row, which is written nowhere else meanwhile.
                    *sum = unsafe {
                        let out = out.add(v * lanes);
                        if v < whole {
                            load::<T, S>(out)
                        } else {
                            T::load_part(simd, std::slice::from_raw_parts(out, part))
                        }
                    };
                }
            }
        }
        let starts: [*const T; M] = from_fn(|i| product.a.as_ptr().wrapping_add(rows[i].a));
        for run in product.runs {
            let mut a = run.a;
            let mut b = product.b.as_ptr().wrapping_add(run.b);
            for _ in 0..run.len {
                // SAFETY: every step of every run lies in a, as checked above, and with its V vectors in b, as `new` did.
                unsafe {
                    let b: [T::Vector<S>; V] = from_fn(|v| load::<T, S>(b.add(v * lanes)));
                    for i in 0..M {
                        let a = T::splat(simd, *starts[i].wrapping_add(a));
                        for v in 0..V {
                            sums[i][v] = T::mul_add(simd, a, b[v], sums[i][v]);
                        }
                    }
                }
                a = a.wrapping_add(product.a_step);
                b = b.wrapping_add(product.b_step);
            }
        }
        for (sums, out) in sums.into_iter().zip(out) {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: as above; one row after the other.
                unsafe {
                    let out = out.add(v * lanes);
                    if v < whole {
                        out.cast::<T::Vector<S>>().write_unaligned(sum);
                    } else {
                        T::store_part(simd, std::slice::from_raw_parts_mut(out, part), sum);
                    }
                }
            }
        }
    }
}

/// # Safety
/// A vector's values lie at `from`.
#[inline(always)]
unsafe fn load<T: Float, S: Simd>(from: *const T) -> T::Vector<S> {
    // SAFETY: the caller's promise; a vector is as many values side by side.
    unsafe { from.cast::<T::Vector<S>>().read_unaligned() }
}
