//! Convolutions by warpgroup products, which GPUs of compute capability 9.0 have, against the oracle: all epilogues, with
//! tangents and both adjoints.

use super::common::ops::{KINDS, Rounding, Setup};
use super::device::{emulated, open_as, set_order, thinned};
use l2b::device::cuda::Cuda;
use l2b::device::{ConvShape, Device, Geometry};

#[test]
fn convolution_by_warpgroups() {
    // One and several images in a slab, several slabs side by side, both tiles, a tile that ends below the image, several
    // tiles of the emulator's one block.
    let shapes = [
        (8, (6, 8), (64, 64), 8),
        (16, (8, 4), (64, 128), 4),
        (1, (8, 64), (64, 64), 64),
        (16, (2, 12), (64, 64), 4),
    ];
    for (i, (n, (h, w), (c, k), width)) in thinned(shapes, 4) {
        let Some(cuda) = open_as(Cuda::bf16) else { return };
        let shape = ConvShape {
            n,
            h,
            w,
            c,
            k,
            r: 3,
            s: 3,
            stride: 1,
            pad: 1,
        };
        let plan = cuda.prepare(&Geometry::Conv(shape)).expect("prepare").algorithm;
        if emulated() {
            // Of the last, forward and backward-input fill a quarter of their tiles and go to warps.
            let images = (i < 3).then_some(width);
            let expected =
                format!("forward_slabs: {images:?}, backward_slabs: {images:?}, weight_slabs: Some({width})");
            assert!(format!("{plan:?}").contains(&expected), "{plan:?}");
        }
        set_order(["forward", "random:1", "reversed", "forward"][i]);
        Setup::rounding(&cuda, Rounding::Bf16).conv(shape, KINDS[i]);
        set_order("random:2");
        Setup::rounding(&cuda, Rounding::Bf16).conv(shape, KINDS[(i + 1) % 4]);
    }
}
