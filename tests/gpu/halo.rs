//! Forward and tangent on halos (kernels/conv_halo.cu) against the oracle: 3x3 convolutions of stride 1 whose rows fill tiles,
//! in both operand types, with and without what may be pending, all epilogues.

use super::common::conv::same_3x3;
use super::common::ops::{KINDS, Rounding, Setup};
use super::device::{in_orders_as, open_as, set_order, thinned};
use l2b::Result;
use l2b::device::cuda::Cuda;
use l2b::device::{ConvShape, Device, Geometry};

/// What was decided for a shape.
fn plan<D: Device>(cuda: &D, shape: ConvShape) -> String {
    let plan = cuda.prepare(&Geometry::Conv(shape)).expect("prepare").algorithm;
    format!("{plan:?}")
}

/// Tiles of rows at the top, within and at the bottom of an image, tiles of several images, of which the last is not full;
/// channels in one block, several, and a part of one; filters around the edges of tiles.
fn convolutions_on_halos<D: Device>(make: impl Fn(usize) -> Result<D>, operand: Rounding) {
    let shapes = [
        same_3x3(1, (16, 16), (40, 64)),
        same_3x3(5, (4, 8), (8, 16)),
        same_3x3(1, (12, 32), (8, 8)),
        same_3x3(3, (8, 8), (72, 72)),
        same_3x3(9, (4, 4), (24, 128)),
        same_3x3(1, (64, 4), (16, 8)),
    ];
    in_orders_as(make, |cuda| {
        for (i, shape) in thinned(shapes, 4) {
            assert!(plan(cuda, shape).contains("halo: true"), "{shape:?}");
            Setup::rounding(cuda, operand).conv(shape, KINDS[3 - i % 4]);
        }
    });
}

#[test]
fn halos_in_tf32() {
    convolutions_on_halos(Cuda::tf32, Rounding::Tf32);
}

#[test]
fn halos_in_bf16() {
    convolutions_on_halos(Cuda::bf16, Rounding::Bf16);
}

/// Outputs that fill a GPU in large tiles; the oracle takes its time here. 20 channels are two blocks in tf32.
fn large_tiles_on_halos<D: Device>(make: impl Fn(usize) -> Result<D>, operand: Rounding, channels: i32) {
    let Some(cuda) = open_as(make) else { return };
    set_order("random:1");
    let shape = same_3x3(16, (32, 32), (channels, 72));
    let plan = plan(&cuda, shape);
    assert!(
        plan.contains("halo: true") && plan.contains("forward: Large"),
        "{plan}"
    );
    Setup::rounding(&cuda, operand).conv(shape, 3);
}

#[test]
fn large_halos_in_tf32() {
    large_tiles_on_halos(Cuda::tf32, Rounding::Tf32, 20);
}

#[test]
fn large_halos_in_bf16() {
    large_tiles_on_halos(Cuda::bf16, Rounding::Bf16, 8);
}

/// Other windows, and images whose rows fill no tile, have no halo.
#[test]
fn no_halo_elsewhere() {
    let Some(cuda) = open_as(Cuda::bf16) else { return };
    let fit = same_3x3(1, (32, 32), (8, 8));
    let others = [
        ConvShape { stride: 2, ..fit },
        ConvShape { pad: 0, ..fit },
        ConvShape { s: 1, ..fit },
        ConvShape { h: 14, w: 14, ..fit },
        ConvShape { h: 30, ..fit },
        ConvShape { h: 64, w: 64, ..fit },
        ConvShape { w: 256, ..fit },
        ConvShape { h: 2, w: 4, ..fit },
        ConvShape { h: 64, w: 2, ..fit },
    ];
    assert!(plan(&cuda, fit).contains("halo: true"));
    for shape in others {
        assert!(plan(&cuda, shape).contains("halo: false"), "{shape:?}");
    }
}
