//! Geometry and step parameters, passed to kernels by value or read by them from device memory. Every `repr(C)` struct
//! here has a twin of the same name in `kernels/shapes.cuh`; a test sends distinct values through each field.
//!
//! Letters: N images, H W C input, P Q K output, R S filter taps. Activations are NHWC, filters [K][R][S][C].

use bytemuck::{Pod, Zeroable};

/// A 2-D convolution, or a linear layer as the 1×1 convolution of a 1×1 image.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ConvShape {
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    pub k: i32,
    pub r: i32,
    pub s: i32,
    pub stride: i32,
    /// Zeros around the image, on each side, after the source's affine map and ReLU.
    pub pad: i32,
}

impl ConvShape {
    /// Output height.
    pub fn p(&self) -> i32 {
        (self.h + 2 * self.pad - self.r) / self.stride + 1
    }

    /// Output width.
    pub fn q(&self) -> i32 {
        (self.w + 2 * self.pad - self.s) / self.stride + 1
    }

    /// Input pixels, N·H·W.
    pub fn x_rows(&self) -> usize {
        self.n as usize * self.h as usize * self.w as usize
    }

    /// Output pixels, N·P·Q.
    pub fn y_rows(&self) -> usize {
        self.n as usize * self.p() as usize * self.q() as usize
    }

    /// Elements of x, `[N,H,W,C]`.
    pub fn x_len(&self) -> usize {
        self.x_rows() * self.c as usize
    }

    /// Elements of y, `[N,P,Q,K]`.
    pub fn y_len(&self) -> usize {
        self.y_rows() * self.k as usize
    }

    /// Elements of w, `[K,R,S,C]`.
    pub fn w_len(&self) -> usize {
        self.k as usize * self.taps() * self.c as usize
    }

    /// Filter taps, R·S.
    pub fn taps(&self) -> usize {
        self.r as usize * self.s as usize
    }

    /// Floating-point operations of the forward pass: 2 per multiply-add, taps that lie in the padding left out.
    pub fn flops(&self) -> f64 {
        let inside = |outputs: i32, taps: i32, size: i32| -> usize {
            let taken =
                |p: i32| (0..taps).filter(move |r| (0..size).contains(&(p * self.stride + r - self.pad)));
            (0..outputs).map(|p| taken(p).count()).sum()
        };
        let (rows, columns) = (inside(self.p(), self.r, self.h), inside(self.q(), self.s, self.w));
        2.0 * f64::from(self.n) * f64::from(self.k) * f64::from(self.c) * rows as f64 * columns as f64
    }
}

/// A tensor as rows of channels: `[rows][channels]`, rows = N·H·W.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Rows {
    pub rows: i32,
    pub channels: i32,
}

impl Rows {
    /// Elements.
    pub fn len(&self) -> usize {
        self.rows as usize * self.channels as usize
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Average pooling over windows of R×S that do not overlap: `[N,H,W,C]` -> `[N,H/R,W/S,C]`. Global: R = H, S = W.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PoolShape {
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    pub r: i32,
    pub s: i32,
}

impl PoolShape {
    /// Output height.
    pub fn p(&self) -> i32 {
        self.h / self.r
    }

    /// Output width.
    pub fn q(&self) -> i32 {
        self.w / self.s
    }

    /// Elements of x.
    pub fn x_len(&self) -> usize {
        self.n as usize * self.h as usize * self.w as usize * self.c as usize
    }

    /// Elements of y.
    pub fn y_len(&self) -> usize {
        self.n as usize * self.p() as usize * self.q() as usize * self.c as usize
    }
}

/// Logits: `[entries][classes]`. An entry is a sample in classification (a pixel in segmentation).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct LossShape {
    pub entries: i32,
    pub classes: i32,
}

/// What augmentation does to a batch u8 `[N,H,W,C]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AugmentShape {
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    /// Pad by this many zeros on each side, then crop back at a drawn offset; 0 for none.
    pub pad: i32,
    /// 1: mirror left-right with probability ½.
    pub flip: i32,
    /// Part of the key of every draw, so that two uses of one sample in one step differ.
    pub view: i32,
    /// 1: the images are a whole set, and sample n is the one at its id; 0: they are the batch's own.
    pub gather: i32,
}

/// What changes from step to step, in device memory, so that a step can be recorded once and replayed. f64 on every
/// device: kernels round to their own type once per thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct StepParams {
    /// Learning rate of the real step.
    pub lr: f64,
    /// Step size λ of the virtual step.
    pub lambda: f64,
    /// Step size η of the weights.
    pub eta: f64,
    /// SGD momentum μ.
    pub mu: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip: f64,
    /// Seed of every counter-based draw.
    pub seed: u64,
    /// Steps done before this one: part of the key of every draw.
    pub step: u32,
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a count of every product of a pixel of the image with a filter's tap.
    #[test]
    fn multiply_adds_are_those_inside_of_the_image() {
        for (h, w, r, s, stride, pad) in [
            (5, 7, 3, 3, 1, 1),
            (5, 6, 3, 3, 2, 1),
            (4, 4, 1, 1, 2, 0),
            (1, 1, 3, 3, 1, 1),
            (8, 3, 5, 2, 3, 2),
        ] {
            let shape = ConvShape {
                n: 2,
                h,
                w,
                c: 3,
                k: 5,
                r,
                s,
                stride,
                pad,
            };
            let mut products = 0;
            for y in 0..shape.p() * stride {
                for x in 0..shape.q() * stride {
                    for (i, j) in (0..r).flat_map(|i| (0..s).map(move |j| (i, j))) {
                        let starts = y % stride == 0 && x % stride == 0;
                        let (at, across) = (y + i - pad, x + j - pad);
                        products += i32::from(starts && at >= 0 && at < h && across >= 0 && across < w);
                    }
                }
            }
            assert_eq!(shape.flops(), f64::from(2 * products * 2 * 3 * 5), "{shape:?}");
        }
    }
}
