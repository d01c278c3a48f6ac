//! Which pixels a convolution reads for which it writes, as plain ranges: along each axis, output j reads input
//! j·scale + first ± t for those taps t whose pixel exists. Outputs that have the same taps form a class; a product runs
//! class by class, so that padding costs nothing.

use std::ops::Range;

use super::super::ConvShape;

/// One axis of a view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Outputs.
    pub count: usize,
    /// Where output j lies along the output tensor: out_first + j·out_step.
    pub out_first: usize,
    pub out_step: usize,
    /// Pixels of the tensor that is read.
    pub extent: usize,
    scale: usize,
    first: isize,
    /// Each further tap reads one pixel on, or one back.
    back: bool,
    /// Taps: filter tap tap_first + t·tap_step.
    taps: usize,
    tap_first: usize,
    tap_step: usize,
}

/// Consecutive outputs with the same taps.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub outputs: Range<usize>,
    pub taps: Range<usize>,
}

impl Axis {
    /// y over x.
    fn forward(extent: usize, count: usize, taps: usize, stride: usize, pad: usize) -> Self {
        Axis {
            count,
            out_first: 0,
            out_step: 1,
            extent,
            scale: stride,
            first: -(pad as isize),
            back: false,
            taps,
            tap_first: 0,
            tap_step: 1,
        }
    }

    /// Those of x's pixels that lie at `phase` modulo the stride, over dy: pixel h reads y pixel (h + pad − tap)/stride
    /// for every tap that leaves no rest.
    fn backward(extent: usize, outputs: usize, taps: usize, stride: usize, pad: usize, phase: usize) -> Self {
        let tap_first = (phase + pad) % stride;
        Axis {
            count: extent.saturating_sub(phase).div_ceil(stride),
            out_first: phase,
            out_step: stride,
            extent: outputs,
            scale: 1,
            first: ((phase + pad) / stride) as isize,
            back: true,
            taps: taps.saturating_sub(tap_first).div_ceil(stride),
            tap_first,
            tap_step: stride,
        }
    }

    /// The pixel that tap t of output j reads.
    pub fn pixel(&self, j: usize, t: usize) -> isize {
        let t = t as isize;
        (j * self.scale) as isize + self.first + if self.back { -t } else { t }
    }

    /// The filter's own number of tap t.
    pub fn tap(&self, t: usize) -> usize {
        self.tap_first + t * self.tap_step
    }

    /// Whether consecutive taps read consecutive pixels.
    pub fn runs_on(&self) -> bool {
        !self.back && self.tap_step == 1
    }

    /// The taps of output j.
    pub fn taps_of(&self, j: usize) -> Range<usize> {
        let start = (j * self.scale) as isize + self.first;
        let extent = self.extent as isize;
        let (from, to) = if self.back {
            (start - extent + 1, start + 1)
        } else {
            (-start, extent - start)
        };
        let taps = self.taps as isize;
        let (from, to) = (from.clamp(0, taps), to.clamp(0, taps));
        if from < to {
            from as usize..to as usize
        } else {
            0..0
        }
    }

    /// The outputs whose tap t reads a pixel that exists.
    pub fn outputs_of(&self, t: usize) -> Range<usize> {
        let mut outputs = (0..self.count).filter(|&j| self.taps_of(j).contains(&t));
        let Some(first) = outputs.next() else { return 0..0 };
        first..outputs.next_back().unwrap_or(first) + 1
    }

    /// Outputs in classes, in order.
    pub fn classes(&self) -> impl Iterator<Item = Class> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = next;
            (start < self.count).then(|| {
                let taps = self.taps_of(start);
                next += 1;
                while next < self.count && self.taps_of(next) == taps {
                    next += 1;
                }
                Class {
                    outputs: start..next,
                    taps,
                }
            })
        })
    }
}

/// Part of the output pixels of a batch of images, and what they read.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub rows: Axis,
    pub columns: Axis,
    /// Channels read.
    pub channels: usize,
    /// Filter taps in a row of the filter.
    pub filter_columns: usize,
    /// Pixels of a row, and rows of an image, of the tensor that is written.
    pub out_width: usize,
    pub out_height: usize,
}

/// The views that together write a whole tensor: one, or one for each phase of a stride.
#[derive(Clone, Copy, Debug)]
pub(super) struct Views {
    shape: ConvShape,
    backward: bool,
}

impl Views {
    /// y over x.
    pub fn forward(shape: &ConvShape) -> Self {
        Views {
            shape: *shape,
            backward: false,
        }
    }

    /// dx over dy.
    pub fn backward(shape: &ConvShape) -> Self {
        Views {
            shape: *shape,
            backward: true,
        }
    }

    /// Views along each axis.
    fn phases(&self) -> usize {
        if self.backward {
            self.shape.stride as usize
        } else {
            1
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = View> + '_ {
        let phases = self.phases();
        (0..phases * phases).map(move |i| self.view(i / phases, i % phases))
    }

    fn view(&self, row_phase: usize, column_phase: usize) -> View {
        let shape = &self.shape;
        let [h, w, c, k, r, s, stride, pad] = [
            shape.h,
            shape.w,
            shape.c,
            shape.k,
            shape.r,
            shape.s,
            shape.stride,
            shape.pad,
        ]
        .map(|v| v as usize);
        let (p, q) = (shape.p() as usize, shape.q() as usize);
        if self.backward {
            View {
                rows: Axis::backward(h, p, r, stride, pad, row_phase),
                columns: Axis::backward(w, q, s, stride, pad, column_phase),
                channels: k,
                filter_columns: s,
                out_width: w,
                out_height: h,
            }
        } else {
            View {
                rows: Axis::forward(h, p, r, stride, pad),
                columns: Axis::forward(w, q, s, stride, pad),
                channels: c,
                filter_columns: s,
                out_width: q,
                out_height: p,
            }
        }
    }

    /// Rows of an image of the tensor that is written, and pixels of a row.
    pub fn out_size(&self) -> (usize, usize) {
        let view = self.view(0, 0);
        (view.out_height, view.out_width)
    }

    /// Lines of the whole batch of the tensor that is written.
    pub fn lines(&self) -> usize {
        self.shape.n as usize * self.out_size().0
    }

    /// The lines of the tensor that is read, n·height + row, which these lines of the other read.
    pub fn lines_read(&self, lines: Range<usize>) -> Range<usize> {
        let (height, _) = self.out_size();
        let reads = |line: usize| {
            let (n, row) = (line / height, line % height);
            let rows = self.view(row % self.phases(), 0).rows;
            let (j, extent) = (row / self.phases(), rows.extent as isize);
            let taps = rows.taps_of(j);
            (!taps.is_empty()).then(|| {
                let [a, b] = [rows.pixel(j, taps.start), rows.pixel(j, taps.end - 1)];
                let first = n as isize * extent;
                (first + a.min(b)) as usize..(first + a.max(b) + 1) as usize
            })
        };
        // Later lines read later ones, where they read at all.
        let start = lines.clone().find_map(reads).map(|read| read.start);
        let end = lines.rev().find_map(reads).map(|read| read.end);
        match (start, end) {
            (Some(start), Some(end)) => start..end,
            _ => 0..0,
        }
    }

    /// Values of one line of the tensor that is read.
    pub fn line_read_len(&self) -> usize {
        let view = self.view(0, 0);
        view.columns.extent * view.channels
    }
}
