//! kernels/conv_wgmma_sm90.cu against naive sums over the same bf16 operands: its roles, its ring and what is pending, in
//! every order. (tests/gpu has its launches and its epilogue.)

use super::sm90::{map, with_shared};
use super::*;
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
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
    passes: i32,
    mirrored: i32,
}
// SAFETY: twin of WgmmaShape, without padding.
unsafe impl DeviceRepr for Shape {}

/// No mask, no sums, nothing added; 16-byte accesses.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Epilogue {
    mask_and_sums: [u64; 7],
    add: i32,
    wide: i32,
}
// SAFETY: twin of Epilogue, without padding.
unsafe impl DeviceRepr for Epilogue {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Pending {
    pub x: u64,
    pub affine: u64,
    pub relu: i32,
    pub reserved: i32,
}
// SAFETY: twin of Source, without padding.
unsafe impl DeviceRepr for Pending {}

/// n, h, w, c, k; pixels of an image in a slab.
struct Case(usize, usize, usize, usize, usize, usize);

impl Case {
    fn pixels(&self) -> usize {
        self.0 * self.1 * self.2
    }

    fn filters(&self) -> usize {
        if self.4 <= 64 { 64 } else { 128 }
    }
}

/// Numbers between -1 and 1 that depend on `salt`.
pub fn noise(len: usize, salt: u32) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9E37_79B9) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| draw()).collect()
}

pub fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

pub fn upload(gpu: &Gpu, x: &[f32]) -> CudaSlice<bf16> {
    let x: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
    gpu.stream.clone_htod(&x).unwrap()
}

/// The sum over (operand, filter) pairs of their convolutions, and of the terms' magnitudes.
fn naive(case: &Case, passes: &[(&[f32], &[f32])], bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let &Case(n, h, w, c, k, _) = case;
    let mut y = Vec::new();
    for at in 0..n * h * w {
        let (image, row, column) = (at / (h * w), at / w % h, at % w);
        for filter in 0..k {
            let start = bias.map_or(0.0, |b| f64::from(b[filter]));
            let (mut sum, mut size) = (start, start.abs());
            for tap in 0..9 {
                let (y, x) = (row + tap / 3, column + tap % 3);
                if !(1..=h).contains(&y) || !(1..=w).contains(&x) {
                    continue;
                }
                let pixel = (image * h + y - 1) * w + x - 1;
                for (operand, filters) in passes {
                    let pixels = &operand[pixel * c..][..c];
                    let taps = &filters[(filter * 9 + tap) * c..][..c];
                    let dot = pixels.iter().zip(taps).map(|(x, w)| f64::from(x * w));
                    let (s, a) = dot.fold((0.0, 0.0), |(s, a), v| (s + v, a + v.abs()));
                    sum += s;
                    size += a;
                }
            }
            y.push((sum, size));
        }
    }
    y
}

struct Pass<'a> {
    copied: &'a CudaSlice<bf16>,
    filters: &'a CudaSlice<bf16>,
    pending: Pending,
}

fn run(gpu: &Gpu, case: &Case, passes: &[Pass], bias: u64, grid: u32) -> Vec<f32> {
    let &Case(n, h, w, c, k, width) = case;
    let filters = case.filters();
    let maps: Vec<_> = (0..2)
        .map(|i| {
            let pass = &passes[i.min(passes.len() - 1)];
            let dims = [c as u64, w as u64, h as u64, n as u64];
            let slab = [64, width as u32, 1, (64 / width) as u32];
            let x = map(gpu, pass.copied, &dims, &slab, true).unwrap();
            let tile = [64, 1, filters as u32];
            let w = map(gpu, pass.filters, &[c as u64, 9, k as u64], &tile, true).unwrap();
            (x, w, pass.pending)
        })
        .collect();
    let shape = Shape {
        n: n as i32,
        h: h as i32,
        w: w as i32,
        c: c as i32,
        k: k as i32,
        width_log2: width.trailing_zeros() as i32,
        passes: passes.len() as i32,
        mirrored: 0,
    };
    let epilogue = Epilogue {
        wide: 1,
        ..Epilogue::default()
    };
    let mut y = gpu
        .stream
        .clone_htod(&vec![bf16::NAN; case.pixels() * k])
        .unwrap();
    let shared = 2 * ((512 / filters + 2) * 8192 + 3 * filters * 128) + 2 * 128 * filters;
    let config = LaunchConfig {
        grid_dim: (grid, 1, 1),
        ..with_shared(384, shared)
    };
    let kernel = gpu.kernel(&format!("conv_wgmma_{filters}"));
    let opt_in = cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(opt_in, shared as i32).unwrap();
    launch!(
        gpu.stream, kernel, config, &mut y, &maps[0].0, &maps[0].1, &maps[1].0, &maps[1].1, &maps[0].2,
        &maps[1].2, &bias, &epilogue, &shape
    )
    .unwrap();
    let y = gpu.stream.clone_dtoh(&y).unwrap();
    y.into_iter().map(f32::from).collect()
}

/// Each product is exact, their sum of f32 off by 2⁻²⁰ of the terms' magnitudes at most, the result rounded to bf16.
fn assert_close(y: &[f32], expected: &[(f64, f64)], what: &str) {
    assert_eq!(y.len(), expected.len());
    for (i, (&y, &(sum, size))) in y.iter().zip(expected).enumerate() {
        let bound = sum.abs() / 256.0 + size / f64::from(1 << 20);
        let error = (f64::from(y) - sum).abs();
        assert!(
            error <= bound,
            "{what}: element {i} is {y}, expected {sum} ± {bound}"
        );
    }
}

pub fn address<T>(gpu: &Gpu, x: &CudaSlice<T>) -> u64 {
    x.device_ptr(&gpu.stream).0
}

fn check_plain(case: &Case, grid: u32, order: &str) {
    let gpu = Gpu::new();
    let _order = InOrder::new(order);
    let &Case(n, h, w, c, k, width) = case;
    let x = rounded(&noise(case.pixels() * c, 1));
    let filters = rounded(&noise(k * 9 * c, 2));
    let bias = noise(k, 3);
    let (on_gpu, filters_on_gpu) = (upload(&gpu, &x), upload(&gpu, &filters));
    let bias_on_gpu = gpu.stream.clone_htod(&bias).unwrap();
    let pass = Pass {
        copied: &on_gpu,
        filters: &filters_on_gpu,
        pending: Pending::default(),
    };
    let y = run(&gpu, case, &[pass], address(&gpu, &bias_on_gpu), grid);
    let what = format!("{n}x{h}x{w}x{c} -> {k}, slabs of {width}, {order}");
    assert_close(&y, &naive(case, &[(&x, &filters)], Some(&bias)), &what);
}

#[test]
fn products_of_images_and_filters_are_right() {
    for (case, grid, order) in [
        (Case(8, 6, 8, 64, 64, 8), 1, "forward"),
        (Case(2, 4, 64, 72, 136, 32), 3, "random:1"),
        (Case(16, 4, 4, 64, 128, 4), 2, "reversed"),
        (Case(64, 2, 1, 8, 8, 1), 1, "forward"),
        (Case(1, 10, 64, 40, 64, 64), 2, "random:2"),
        (Case(16, 2, 12, 64, 64, 4), 2, "random:2"),
    ] {
        check_plain(&case, grid, order);
    }
}

#[test]
fn a_resident_block_takes_several_tiles_in_every_order() {
    for order in ORDERS {
        check_plain(&Case(8, 12, 8, 64, 64, 8), 1, order);
    }
}

/// relu(A·(x - M) + C), or without the ReLU, as kernels compute and round it.
pub fn operand(c: usize, x: &[f32], affine: &[f32], relu: bool) -> Vec<f32> {
    let value = |i: usize| {
        let [a, shift, centre] = [0, 1, 2].map(|j| affine[j * c + i % c]);
        let u = a.mul_add(x[i] - centre, shift);
        if relu { u.max(0.0) } else { u }
    };
    rounded(&(0..x.len()).map(value).collect::<Vec<_>>())
}

#[test]
fn what_is_pending_is_computed_in_place_and_padding_stays_zero() {
    let gpu = Gpu::new();
    for (case, order) in [
        (Case(8, 6, 8, 72, 64, 8), "forward"),
        (Case(8, 6, 8, 72, 64, 8), "random:3"),
        (Case(4, 4, 16, 64, 128, 16), "reversed"),
    ] {
        let _order = InOrder::new(order);
        let Case(.., c, k, _) = case;
        let (x, tx) = (
            rounded(&noise(case.pixels() * c, 4)),
            rounded(&noise(case.pixels() * c, 5)),
        );
        let (w, tw) = (rounded(&noise(k * 9 * c, 6)), rounded(&noise(k * 9 * c, 7)));
        let affine = noise(3 * c, 8);
        let [x_gpu, tx_gpu, w_gpu, tw_gpu] = [&x, &tx, &w, &tw].map(|x| upload(&gpu, x));
        let affine_gpu = gpu.stream.clone_htod(&affine).unwrap();
        let u = operand(c, &x, &affine, true);
        let forward = |filters| Pass {
            copied: &x_gpu,
            filters,
            pending: Pending {
                x: address(&gpu, &x_gpu),
                affine: address(&gpu, &affine_gpu),
                relu: 1,
                reserved: 0,
            },
        };
        let y = run(&gpu, &case, &[forward(&w_gpu)], 0, 2);
        assert_close(&y, &naive(&case, &[(&u, &w)], None), &format!("forward, {order}"));

        // Two products, something pending on the second alone.
        let plain = Pass {
            copied: &tx_gpu,
            filters: &w_gpu,
            pending: Pending::default(),
        };
        let y = run(&gpu, &case, &[plain, forward(&tw_gpu)], 0, 1);
        let expected = naive(&case, &[(&tx, &w), (&u, &tw)], None);
        assert_close(&y, &expected, &format!("two products, {order}"));
    }
}
