//! kernels/conv_weight_wgmma_sm90.cu against naive sums over the same bf16 operands: its walk down the images in slices of
//! any length, its ring, what is pending and the padding, in every order. (tests/gpu has its launches.)

use super::conv_sm90::{Kind, Source, address, noise, operands, rounded, upload};
use super::sm90::{map, with_shared};
use super::*;
use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;

#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    width_log2: i32,
    slice_rows: i32,
    add: i32,
}
// SAFETY: twin of WeightShape, without padding.
unsafe impl DeviceRepr for Shape {}

struct Case {
    /// n, h, w.
    images: (usize, usize, usize),
    /// c, k.
    channels: (usize, usize),
    /// Pixels of an image in a slab.
    width: usize,
    /// Rows of 64 pixels in a slice.
    slice_rows: usize,
}

impl Case {
    fn pixels(&self) -> usize {
        self.images.0 * self.images.1 * self.images.2
    }

    fn filters(&self) -> usize {
        self.channels.1 * 9 * self.channels.0
    }

    fn slices(&self) -> usize {
        (self.pixels() / 64).div_ceil(self.slice_rows)
    }
}

/// The sum over output pixels for each filter element, and that of the terms' magnitudes.
fn naive(case: &Case, x: &[f32], dy: &[f32]) -> Vec<(f64, f64)> {
    let ((_, h, w), (c, k)) = (case.images, case.channels);
    let mut dw = vec![(0.0, 0.0); case.filters()];
    for at in 0..case.pixels() {
        let (image, row, column) = (at / (h * w), at / w % h, at % w);
        for tap in 0..9 {
            let (y, q) = (row + tap / 3, column + tap % 3);
            if !(1..=h).contains(&y) || !(1..=w).contains(&q) {
                continue;
            }
            let pixel = (image * h + y - 1) * w + q - 1;
            for filter in 0..k {
                let d = dy[at * k + filter];
                let to = &mut dw[(filter * 9 + tap) * c..][..c];
                for ((sum, size), &u) in to.iter_mut().zip(&x[pixel * c..][..c]) {
                    let term = f64::from(d) * f64::from(u);
                    *sum += term;
                    *size += term.abs();
                }
            }
        }
    }
    dw
}

/// The partial filters of every slice, added to `before` where it is given.
fn run(
    gpu: &Gpu,
    case: &Case,
    x: &CudaSlice<bf16>,
    pending: Source,
    dy: &CudaSlice<bf16>,
    before: Option<&[f32]>,
) -> Vec<f32> {
    let ((n, h, w), (c, k)) = (case.images, case.channels);
    let (images, width) = ((64 / case.width) as u32, case.width as u32);
    let dims = |channels: usize| [channels as u64, w as u64, h as u64, n as u64];
    let x = map(gpu, x, &dims(c), &[64, width + 2, 1, images], true).unwrap();
    let dy = map(gpu, dy, &dims(k), &[64, width, 1, images], true).unwrap();
    let shape = Shape {
        n: n as i32,
        h: h as i32,
        w: w as i32,
        c: c as i32,
        k: k as i32,
        width_log2: case.width.ilog2() as i32,
        slice_rows: case.slice_rows as i32,
        add: before.is_some().into(),
    };
    let nothing = vec![f32::NAN; case.slices() * case.filters()];
    let mut dw = gpu.stream.clone_htod(before.unwrap_or(&nothing)).unwrap();
    let shared = 11 * (96 + 64) * 128;
    let config = LaunchConfig {
        grid_dim: ((c / 64 * (k / 64)) as u32, case.slices() as u32, 1),
        ..with_shared(512, shared)
    };
    let kernel = gpu.kernel("conv_weight_wgmma");
    let opt_in = cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(opt_in, shared as i32).unwrap();
    launch!(gpu.stream, kernel, config, &mut dw, &x, &dy, &pending, &shape).unwrap();
    gpu.stream.clone_dtoh(&dw).unwrap()
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ConvShape([i32; 9]);
// SAFETY: twin of ConvShape, without padding.
unsafe impl DeviceRepr for ConvShape {}

/// The same filters, in one slice, by the kernel that every GPU has.
fn by_warps(gpu: &Gpu, case: &Case, pending: Source, dy: &CudaSlice<bf16>) -> Vec<f32> {
    let ((n, h, w), (c, k)) = (case.images, case.channels);
    let shape = ConvShape([n, h, w, c, k, 3, 3, 1, 1].map(|v| v as i32));
    let mut dw = gpu.stream.alloc_zeros::<f32>(case.filters()).unwrap();
    let config = LaunchConfig {
        grid_dim: (((9 * c).div_ceil(128) * (k / 64)) as u32, 1, 1),
        ..with_shared(128, 53_248)
    };
    let kernel = gpu.kernel("conv_backward_weight_small_bf16");
    let opt_in = cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(opt_in, 53_248).unwrap();
    let (slice_pixels, add) = (case.pixels() as i32, 0i32);
    launch!(
        gpu.stream,
        kernel,
        config,
        &mut dw,
        &pending,
        dy,
        &shape,
        &slice_pixels,
        &add
    )
    .unwrap();
    gpu.stream.clone_dtoh(&dw).unwrap()
}

/// Each product is exact, the sums of f32 off by 2⁻²⁰ of the terms' magnitudes at most.
fn assert_close(case: &Case, partial: &[f32], expected: &[(f64, f64)], what: &str) {
    assert_eq!(partial.len(), case.slices() * expected.len());
    for (i, &(sum, size)) in expected.iter().enumerate() {
        let slices = partial[i..].iter().step_by(expected.len());
        let got: f64 = slices.map(|&v| f64::from(v)).sum();
        let bound = size / f64::from(1 << 20);
        let error = (got - sum).abs();
        assert!(
            error <= bound,
            "{what}: element {i} is {got}, expected {sum} ± {bound}"
        );
    }
}

fn case(images: (usize, usize, usize), channels: (usize, usize), width: usize, slice_rows: usize) -> Case {
    Case {
        images,
        channels,
        width,
        slice_rows,
    }
}

struct Uploaded {
    x: Vec<f32>,
    dy: Vec<f32>,
    on_gpu: (CudaSlice<bf16>, CudaSlice<bf16>),
}

fn uploaded(gpu: &Gpu, case: &Case) -> Uploaded {
    let x = rounded(&noise(case.pixels() * case.channels.0, 1));
    let dy = rounded(&noise(case.pixels() * case.channels.1, 2));
    let on_gpu = (upload(gpu, &x), upload(gpu, &dy));
    Uploaded { x, dy, on_gpu }
}

#[test]
fn filters_of_all_slices_add_up() {
    let gpu = Gpu::new();
    for (case, order) in [
        (case((8, 6, 8), (64, 64), 8, 6), "forward"),
        (case((8, 6, 8), (64, 64), 8, 4), "random:1"), // begins within an image
        (case((16, 4, 4), (64, 128), 4, 3), "reversed"), // ends in a slice of an image's last row
        (case((1, 10, 64), (64, 64), 64, 7), "random:2"),
        (case((16, 2, 12), (64, 64), 4, 5), "random:3"), // three slabs side by side
        (case((4, 4, 48), (128, 64), 16, 12), "random:4"),
        (case((2, 4, 32), (64, 192), 32, 1), "forward"),
        (case((16, 4, 8), (192, 128), 8, 8), "random:1"),
    ] {
        let _order = InOrder::new(order);
        let what = format!(
            "{:?} {:?} by {}, {order}",
            case.images, case.channels, case.slice_rows
        );
        let it = uploaded(&gpu, &case);
        let dw = run(&gpu, &case, &it.on_gpu.0, Source::default(), &it.on_gpu.1, None);
        assert_close(&case, &dw, &naive(&case, &it.x, &it.dy), &what);
    }
}

#[test]
fn a_slice_longer_than_the_ring_has_the_same_bits_in_every_order() {
    let gpu = Gpu::new();
    let case = case((16, 12, 8), (64, 64), 8, 24);
    let it = uploaded(&gpu, &case);
    let expected = naive(&case, &it.x, &it.dy);
    let mut first = None;
    for order in ORDERS {
        let _order = InOrder::new(order);
        let dw = run(&gpu, &case, &it.on_gpu.0, Source::default(), &it.on_gpu.1, None);
        assert_close(&case, &dw, &expected, order);
        assert_eq!(*first.get_or_insert(dw.clone()), dw, "{order}");
    }
}

#[test]
fn what_is_pending_is_evaluated_and_padding_stays_zero() {
    let gpu = Gpu::new();
    for (case, relu, order) in [
        (case((8, 6, 8), (128, 64), 8, 5), true, "random:1"),
        (case((16, 2, 12), (64, 64), 4, 6), true, "forward"),
        (case((1, 4, 64), (64, 64), 64, 4), false, "reversed"),
    ] {
        let _order = InOrder::new(order);
        let it = uploaded(&gpu, &case);
        let affine = noise(3 * case.channels.0, 8);
        let affine_gpu = gpu.stream.clone_htod(&affine).unwrap();
        let pending = Source {
            x: address(&gpu, &it.on_gpu.0),
            affine: address(&gpu, &affine_gpu),
            relu: relu.into(),
            reserved: 0,
        };
        let kind = if relu { Kind::Relu } else { Kind::Affine };
        let (no_tx, no_slope) = (vec![0.0; it.x.len()], vec![0.0; 2 * case.channels.0]);
        let (u, _) = operands(case.channels.0, kind, &it.x, &affine, &no_tx, &no_slope);
        let dw = run(&gpu, &case, &it.on_gpu.0, pending, &it.on_gpu.1, None);
        let expected = naive(&case, &u, &it.dy);
        assert_close(&case, &dw, &expected, &format!("relu {relu}, {order}"));
        let other = by_warps(&gpu, &case, pending, &it.on_gpu.1);
        let whole = Case {
            slice_rows: case.pixels() / 64,
            ..case
        };
        assert_close(&whole, &other, &expected, "by warps");
    }
}

#[test]
fn one_slice_adds_to_what_was_there() {
    let gpu = Gpu::new();
    let case = case((8, 4, 8), (64, 64), 8, 4);
    let it = uploaded(&gpu, &case);
    let before = noise(case.filters(), 3);
    let dw = run(
        &gpu,
        &case,
        &it.on_gpu.0,
        Source::default(),
        &it.on_gpu.1,
        Some(&before),
    );
    let mut expected = naive(&case, &it.x, &it.dy);
    for ((sum, size), &b) in expected.iter_mut().zip(&before) {
        *sum += f64::from(b);
        *size += f64::from(b.abs());
    }
    assert_close(&case, &dw, &expected, "added");
}
