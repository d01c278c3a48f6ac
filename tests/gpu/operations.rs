//! Every operation against the oracle: the very bodies that test the CPU device, over shapes around the kernels' tiles.

use super::common::loss;
use super::common::ops::{KINDS, POOLS, Rounding, Setup};
use super::device::{in_orders, in_orders_as, open, open_as, set_order, thinned};
use l2b::Result;
use l2b::device::cuda::Cuda;
use l2b::device::{AugmentShape, ConvShape, Device, Geometry, LossShape, PoolShape, Rows};

pub fn conv(
    n: i32,
    (h, w): (i32, i32),
    (c, k): (i32, i32),
    (r, s): (i32, i32),
    stride: i32,
    pad: i32,
) -> ConvShape {
    ConvShape {
        n,
        h,
        w,
        c,
        k,
        r,
        s,
        stride,
        pad,
    }
}

/// Any channel counts: the scalar kernels.
#[test]
fn convolution_over_odd_channels() {
    let shapes = [
        conv(1, (1, 1), (1, 1), (1, 1), 1, 0),
        conv(5, (5, 7), (3, 7), (3, 3), 1, 1),
        conv(2, (5, 7), (7, 3), (3, 3), 2, 1),
        conv(3, (5, 7), (1, 5), (5, 5), 1, 3),
        conv(2, (7, 5), (3, 2), (2, 2), 3, 0),
        conv(33, (1, 1), (7, 10), (1, 1), 1, 0),
        conv(2, (6, 5), (5, 33), (3, 1), 1, 1),
        conv(1, (9, 9), (33, 3), (7, 7), 2, 3),
        conv(2, (4, 4), (2, 6), (1, 1), 2, 0),
        conv(2, (5, 4), (3, 3), (1, 1), 3, 1),
    ];
    in_orders(|cuda| {
        for (i, shape) in thinned(shapes, 4) {
            Setup::new(cuda).conv(shape, KINDS[i % 4]);
        }
    });
}

/// Channels in fours, one below, at and above the edges of the small tile, several slices of pixels.
#[test]
fn convolution_over_channels_in_fours() {
    let shapes = [
        conv(1, (1, 1), (4, 4), (1, 1), 1, 0),
        conv(2, (5, 7), (8, 12), (3, 3), 1, 1),
        conv(1, (8, 8), (16, 32), (3, 3), 1, 1),
        conv(2, (9, 7), (12, 36), (3, 3), 2, 1),
        conv(2, (6, 6), (36, 28), (1, 1), 2, 0),
        conv(5, (1, 1), (64, 10), (1, 1), 1, 0),
        conv(2, (7, 6), (4, 8), (2, 3), 3, 2),
    ];
    in_orders(|cuda| {
        for (i, shape) in thinned(shapes, 3) {
            Setup::new(cuda).conv(shape, KINDS[3 - i % 4]);
        }
    });
}

/// Outputs large enough for the large tile: forward, tangent, contraction and filters, then backward-input. The oracle
/// takes its time here, so there is one order, the one that shows more.
#[test]
fn convolution_on_the_large_tile() {
    let Some(cuda) = open() else { return };
    set_order("random:1");
    let wide = conv(1, (128, 129), (4, 36), (1, 2), 1, 0);
    let deep = conv(1, (129, 128), (36, 4), (2, 1), 1, 0);
    for (shape, part) in [
        (wide, "forward"),
        (wide, "backward_weight"),
        (deep, "backward_input"),
    ] {
        let plan = cuda.prepare(&Geometry::Conv(shape)).expect("prepare").algorithm;
        assert!(
            format!("{plan:?}").contains(&format!("{part}: Large")),
            "{plan:?}"
        );
    }
    Setup::new(&cuda).conv(wide, 3);
    Setup::new(&cuda).conv(deep, 3);
}

/// On tensor cores: odd channels and their element-wise loads (a stem among them), whole chunks on the small tile around
/// the edges of tiles and of steps of the depth, all classes of a stride, and a layer of a real network.
fn convolutions_on_tensor_cores<D: Device>(make: impl Fn(usize) -> Result<D>, operand: Rounding) {
    let odd = [
        conv(1, (1, 1), (1, 1), (1, 1), 1, 0),
        conv(5, (5, 7), (3, 7), (3, 3), 1, 1),
        conv(2, (9, 8), (3, 64), (3, 3), 1, 1),
        conv(2, (7, 5), (3, 2), (2, 2), 3, 0),
        conv(33, (1, 1), (12, 10), (1, 1), 1, 0),
        conv(1, (9, 9), (33, 8), (7, 7), 2, 3),
        conv(2, (5, 4), (8, 3), (1, 1), 3, 1),
    ];
    let whole = [
        conv(1, (1, 1), (8, 8), (1, 1), 1, 0),
        conv(2, (5, 7), (8, 24), (3, 3), 1, 1),
        conv(2, (9, 7), (40, 72), (3, 3), 2, 1),
        conv(2, (6, 6), (40, 16), (1, 1), 2, 0),
        conv(5, (1, 1), (64, 16), (1, 1), 1, 0),
        conv(2, (7, 6), (8, 8), (2, 3), 3, 2),
        conv(2, (16, 16), (8, 16), (3, 3), 2, 1),
    ];
    in_orders_as(make, |cuda| {
        for (i, shape) in thinned(odd.into_iter().chain(whole), 7) {
            Setup::rounding(cuda, operand).conv(shape, KINDS[3 - i % 4]);
        }
    });
}

#[test]
fn convolution_in_tf32() {
    convolutions_on_tensor_cores(Cuda::tf32, Rounding::Tf32);
}

#[test]
fn convolution_in_bf16() {
    convolutions_on_tensor_cores(Cuda::bf16, Rounding::Bf16);
}

/// A layer of a real network on the small tile, and outputs for the large one: forward, tangent, contraction and filters,
/// then backward-input.
fn real_shapes_on_tensor_cores<D: Device>(make: impl Fn(usize) -> Result<D>, operand: Rounding) {
    let Some(cuda) = open_as(make) else { return };
    set_order("random:1");
    let wide = conv(1, (128, 129), (8, 72), (1, 2), 1, 0);
    let deep = conv(1, (129, 128), (72, 8), (2, 1), 1, 0);
    for (shape, part) in [
        (wide, "forward"),
        (wide, "backward_weight"),
        (deep, "backward_input"),
    ] {
        let plan = cuda.prepare(&Geometry::Conv(shape)).expect("prepare").algorithm;
        assert!(
            format!("{plan:?}").contains(&format!("{part}: Large")),
            "{plan:?}"
        );
    }
    for shape in [wide, deep, conv(1, (12, 12), (64, 64), (3, 3), 1, 1)] {
        Setup::rounding(&cuda, operand).conv(shape, 3);
    }
}

#[test]
fn real_convolutions_in_tf32() {
    real_shapes_on_tensor_cores(Cuda::tf32, Rounding::Tf32);
}

#[test]
fn real_convolutions_in_bf16() {
    real_shapes_on_tensor_cores(Cuda::bf16, Rounding::Bf16);
}

/// What is stored as bf16 outside of convolutions.
#[test]
fn rows_in_bf16() {
    in_orders_as(Cuda::bf16, |cuda| {
        let shapes = [
            (1, 1),
            (5, 3),
            (127, 7),
            (129, 72),
            (33000, 1),
            (300, 16),
            (128, 8),
        ];
        for (_, (rows, channels)) in thinned(shapes, 5) {
            Setup::new(cuda).rows(Rows { rows, channels });
        }
        for (i, (h, w, r, s)) in [(5, 7, 2, 3), (8, 8, 8, 8), (4, 4, 2, 2)].into_iter().enumerate() {
            for (n, c) in [(1, 7), (5, 8)] {
                Setup::new(cuda).pool(PoolShape { n, h, w, c, r, s }, KINDS[i]);
            }
        }
        for (samples, pixels, channels) in [(5, 35, 3), (3, 300, 8)] {
            let shape = Rows {
                rows: samples as i32 * pixels,
                channels,
            };
            Setup::new(cuda).norm_contract(shape, samples);
        }
        Setup::new(cuda).augment(AugmentShape {
            n: 5,
            h: 5,
            w: 7,
            c: 3,
            pad: 2,
            flip: 1,
            view: 3,
            gather: 0,
        });
    });
}

#[test]
fn sources_and_joins() {
    in_orders(|cuda| {
        let shapes = [(1, 1), (5, 3), (63, 7), (65, 33), (33000, 1), (300, 8), (64, 4)];
        for (_, (rows, channels)) in thinned(shapes, 5) {
            Setup::new(cuda).rows(Rows { rows, channels });
        }
    });
}

#[test]
fn pooling() {
    in_orders(|cuda| {
        for (i, (h, w, r, s)) in POOLS.into_iter().enumerate() {
            for (n, c) in [(1, 7), (5, 4)] {
                Setup::new(cuda).pool(PoolShape { n, h, w, c, r, s }, KINDS[(i + n as usize) % 4]);
            }
        }
    });
}

#[test]
fn norm_contraction() {
    in_orders(|cuda| {
        for (samples, pixels, channels) in [(1, 1, 1), (5, 35, 3), (33, 1, 7), (3, 300, 4)] {
            let shape = Rows {
                rows: (samples * pixels) as i32,
                channels,
            };
            Setup::new(cuda).norm_contract(shape, samples);
        }
    });
}

#[test]
fn loss() {
    in_orders(|cuda| {
        for (entries, classes) in [(1, 1), (1, 10), (5, 2), (33, 101), (129, 10)] {
            Setup::new(cuda).loss(LossShape { entries, classes });
        }
    });
}

#[test]
fn weights() {
    in_orders(|cuda| {
        for len in [1, 2, 66, 1500] {
            Setup::new(cuda).weights(len);
        }
    });
}

#[test]
fn watching() {
    in_orders(loss::watching);
}

#[test]
fn optimizer() {
    in_orders(|cuda| {
        for len in [1, 7, 1024, 1027, 100_000] {
            Setup::new(cuda).optimizer(len);
        }
    });
}
