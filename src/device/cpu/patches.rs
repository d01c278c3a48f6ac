//! Filter patches of NHWC images as rows of a matrix, for the GEMM.
//!
//! Work goes by *lines*: line i is output row p = i mod P of image n = i / P, so Q patches. The input rows that a run of
//! lines reads are first evaluated once into a padded strip, zeros around; the S·C values of one filter row then lie
//! behind one another, and a patch is R such runs.

use std::ops::Range;

use super::super::ConvShape;
use super::Float;
use super::source::add;

/// Which patches of which image tensor: the forward view of x, or the view of dy whose patches give dx.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patches {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub r: usize,
    pub s: usize,
    pub stride: usize,
    /// Zeros above and left of the image; negative: pixels cut off.
    pub top: isize,
    pub left: isize,
    pub p: usize,
    pub q: usize,
}

impl Patches {
    /// Patches of x.
    pub(super) fn forward(shape: &ConvShape) -> Self {
        let [n, h, w, c, r, s, stride] =
            [shape.n, shape.h, shape.w, shape.c, shape.r, shape.s, shape.stride].map(|v| v as usize);
        Patches {
            n,
            h,
            w,
            c,
            r,
            s,
            stride,
            top: shape.pad as isize,
            left: shape.pad as isize,
            p: shape.p() as usize,
            q: shape.q() as usize,
        }
    }

    /// Patches of dy that, times the mirrored filter, give dx. Only at stride 1.
    pub(super) fn backward(shape: &ConvShape) -> Self {
        let forward = Patches::forward(shape);
        Patches {
            h: forward.p,
            w: forward.q,
            c: shape.k as usize,
            top: forward.r as isize - 1 - forward.top,
            left: forward.s as isize - 1 - forward.left,
            p: forward.h,
            q: forward.w,
            ..forward
        }
    }

    /// Lines of the whole batch.
    pub(super) fn lines(&self) -> usize {
        self.n * self.p
    }

    /// Values of one patch, R·S·C.
    pub(super) fn depth(&self) -> usize {
        self.r * self.s * self.c
    }

    /// Whether patches are the image's own pixels.
    pub(super) fn is_pointwise(&self) -> bool {
        self.r * self.s == 1 && self.stride == 1 && self.top == 0 && self.left == 0
    }

    /// Values of one row of a strip.
    fn strip_width(&self) -> usize {
        ((self.q - 1) * self.stride + self.s) * self.c
    }

    /// Values of the strip that `lines` lines need at most.
    pub(super) fn strip_len(&self, lines: usize) -> usize {
        ((lines.min(self.p) - 1) * self.stride + self.r) * self.strip_width()
    }

    /// cols [lines · Q][R·S·C] ← the patches of these lines. `fill(values, first element)` evaluates runs of the input
    /// tensor; `strip`: room for `strip_len`.
    pub(super) fn gather<T: Float>(
        &self,
        cols: &mut [T],
        strip: &mut [T],
        lines: Range<usize>,
        fill: &dyn Fn(&mut [T], usize),
    ) {
        let line_len = self.q * self.depth();
        let mut line = lines.start;
        let mut rest = cols;
        while line < lines.end {
            let (n, p) = (line / self.p, line % self.p);
            let count = (self.p - p).min(lines.end - line);
            let (cols, tail) = rest.split_at_mut(count * line_len);
            let strip = &mut strip[..self.strip_len(count)];
            self.evaluate(strip, n, p, fill);
            self.spread(cols, strip);
            rest = tail;
            line += count;
        }
    }

    /// strip ← the input rows from output row p of image n on, with their zeros.
    fn evaluate<T: Float>(&self, strip: &mut [T], n: usize, p: usize, fill: &dyn Fn(&mut [T], usize)) {
        let width = self.strip_width();
        // Columns of the image that fall into the strip: strip column j shows image column j − left.
        let columns = (width / self.c) as isize;
        let from = (-self.left).clamp(0, self.w as isize);
        let to = (columns - self.left).clamp(from, self.w as isize);
        let inside = ((from + self.left) as usize * self.c)..((to + self.left) as usize * self.c);
        let first = (p * self.stride) as isize - self.top;
        for (i, row) in strip.chunks_exact_mut(width).enumerate() {
            let h = first + i as isize;
            if from == to || h < 0 || h >= self.h as isize {
                row.fill(T::ZERO);
                continue;
            }
            row[..inside.start].fill(T::ZERO);
            row[inside.end..].fill(T::ZERO);
            let start = ((n * self.h + h as usize) * self.w + from as usize) * self.c;
            fill(&mut row[inside.clone()], start);
        }
    }

    /// cols ← the patches of a strip.
    fn spread<T: Float>(&self, cols: &mut [T], strip: &[T]) {
        let (width, run) = (self.strip_width(), self.s * self.c);
        for (i, patch) in cols.chunks_exact_mut(self.depth()).enumerate() {
            let (p, q) = (i / self.q, i % self.q);
            let first = p * self.stride * width + q * self.stride * self.c;
            for (r, patch) in patch.chunks_exact_mut(run).enumerate() {
                patch.copy_from_slice(&strip[first + r * width..][..run]);
            }
        }
    }

    /// images += the patches of these lines, put back where they came from; `images` begins with image `first`.
    pub(super) fn scatter<T: Float>(&self, images: &mut [T], first: usize, cols: &[T], lines: Range<usize>) {
        let run = self.s * self.c;
        for (i, patch) in cols.chunks_exact(self.depth()).enumerate() {
            let (line, q) = (lines.start + i / self.q, i % self.q);
            let (n, p) = (line / self.p - first, line % self.p);
            let w = (q * self.stride) as isize - self.left;
            let from = w.clamp(0, self.w as isize);
            let to = (w + self.s as isize).clamp(from, self.w as isize);
            for (r, patch) in patch.chunks_exact(run).enumerate() {
                let h = (p * self.stride + r) as isize - self.top;
                if from == to || h < 0 || h >= self.h as isize {
                    continue;
                }
                let patch = &patch[(from - w) as usize * self.c..(to - w) as usize * self.c];
                let start = ((n * self.h + h as usize) * self.w + from as usize) * self.c;
                add(&mut images[start..start + patch.len()], patch);
            }
        }
    }
}
