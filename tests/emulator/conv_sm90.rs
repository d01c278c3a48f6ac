//! kernels/conv_wgmma_sm90.cu against naive sums over the same bf16 operands: its roles, its rings and what is pending. The
//! tests named so run in every order, the others each shape in one. (tests/gpu has its launches and its epilogue.)

use super::sm90::{map, with_shared};
use super::*;
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use half::bf16;

#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    /// h, w, c, k, tiles, height and width of a field, its images, those of a tile, the slots of a row, of a field, of a tile,
    /// from matrix to matrix, products, mirrored, reserved.
    numbers: [i32; 16],
    /// Slot and pixel of each patch.
    patches: [[i32; 2]; 8],
}
// SAFETY: twin of WgmmaShape, without padding.
unsafe impl DeviceRepr for Shape {}

/// No mask, no sums, nothing added; 16-byte accesses.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Epilogue {
    mask_and_sums: [u64; 7],
    addend: u64,
    wide: i32,
    reserved: i32,
}
// SAFETY: twin of Epilogue, without padding.
unsafe impl DeviceRepr for Epilogue {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Source {
    pub x: u64,
    pub affine: u64,
    pub relu: i32,
    pub reserved: i32,
}
// SAFETY: twin of Source in source.cuh, without padding.
unsafe impl DeviceRepr for Source {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Tangent {
    tx: u64,
    slope: u64,
}
// SAFETY: twin of Tangent in source.cuh, without padding.
unsafe impl DeviceRepr for Tangent {}

/// n, h, w, c, k; how a tile lies in the images.
struct Case(usize, usize, usize, usize, usize, Fields);

/// Images of a patch, patches of a field across and down.
#[derive(Clone, Copy, Debug)]
struct Fields(usize, usize, usize);

const PATCH: Fields = Fields(1, 1, 1);
const SQUARE: Fields = Fields(1, 2, 2);
const WIDE: Fields = Fields(1, 4, 2);
const NARROW: Fields = Fields(16, 1, 4);

impl Case {
    fn pixels(&self) -> usize {
        self.0 * self.1 * self.2
    }

    fn filters(&self) -> usize {
        if self.4.is_multiple_of(128) { 128 } else { 64 }
    }

    fn shape(&self, products: usize) -> Shape {
        let &Case(_, h, w, c, k, Fields(images, across, down)) = self;
        let patches = 512 / self.filters();
        let (patch_height, patch_width) = if images == 1 { (8, 8) } else { (1, 4) };
        let (height, width) = (down * patch_height, across * patch_width);
        let fields = patches / (across * down);
        let row = (width + 2) * images;
        let halo = (height + 2) * row;
        let tiles = self.pixels() / (patches * 64) * (k / self.filters());
        let matrix = if images == 1 { row } else { 8 };
        let slots = fields * halo;
        let numbers = [
            h,
            w,
            c,
            k,
            tiles,
            height,
            width,
            images,
            fields * images,
            row,
            halo,
            slots,
            matrix,
            products,
            0,
            0,
        ];
        let mut shape = Shape {
            numbers: numbers.map(|number| number as i32),
            patches: [[0; 2]; 8],
        };
        let mut places = shape.patches.iter_mut();
        for field in 0..fields {
            for y in (0..height).step_by(patch_height) {
                for x in (0..width).step_by(patch_width) {
                    let slot = field * halo + y * row + x * images;
                    let pixel = (field * images * h + y) * w + x;
                    *places.next().unwrap() = [slot as i32, pixel as i32];
                }
            }
        }
        shape
    }

    fn what(&self) -> String {
        let &Case(n, h, w, c, k, fields) = self;
        format!("{n}x{h}x{w}x{c} -> {k}, {fields:?}")
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
fn naive(case: &Case, products: &[(&[f32], &[f32])], bias: Option<&[f32]>) -> Vec<(f64, f64)> {
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
                for (operand, filters) in products {
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

fn run(
    gpu: &Gpu,
    case: &Case,
    filters: &[&CudaSlice<bf16>],
    (source, tangent): (Source, Tangent),
    bias: u64,
    grid: u32,
) -> Vec<f32> {
    let &Case(_, _, _, c, k, _) = case;
    let box_of = [32, 1, case.filters() as u32];
    let [w0, w1] = [filters[0], filters[filters.len() - 1]]
        .map(|taps| map(gpu, taps, &[c as u64, 9, k as u64], &box_of, true).unwrap());
    let shape = case.shape(filters.len());
    let epilogue = Epilogue {
        wide: 1,
        ..Epilogue::default()
    };
    let mut y = gpu
        .stream
        .clone_htod(&vec![bf16::NAN; case.pixels() * k])
        .unwrap();
    let (filters, slots) = (case.filters(), if case.filters() == 64 { 648 } else { 576 });
    let shared = 5 * filters * 64 + 4 * slots * 64 + 16 * 2176 + slots * 4;
    let config = LaunchConfig {
        grid_dim: (grid, 1, 1),
        ..with_shared(512, shared)
    };
    let kernel = gpu.kernel(&format!("conv_wgmma_{filters}"));
    let opt_in = cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(opt_in, shared as i32).unwrap();
    launch!(
        gpu.stream, kernel, config, &mut y, &w0, &w1, &source, &tangent, &bias, &epilogue, &shape
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
    let &Case(_, _, _, c, k, _) = case;
    let x = rounded(&noise(case.pixels() * c, 1));
    let filters = rounded(&noise(k * 9 * c, 2));
    let bias = noise(k, 3);
    let (on_gpu, filters_on_gpu) = (upload(&gpu, &x), upload(&gpu, &filters));
    let bias_on_gpu = gpu.stream.clone_htod(&bias).unwrap();
    let source = Source {
        x: address(&gpu, &on_gpu),
        ..Source::default()
    };
    let bias_address = address(&gpu, &bias_on_gpu);
    let operands = (source, Tangent::default());
    let y = run(&gpu, case, &[&filters_on_gpu], operands, bias_address, grid);
    let what = format!("{}, {order}", case.what());
    assert_close(&y, &naive(case, &[(&x, &filters)], Some(&bias)), &what);
}

#[test]
fn products_of_images_and_filters_are_right() {
    for (case, grid, order) in [
        (Case(8, 8, 8, 32, 128, PATCH), 1, "forward"),
        (Case(2, 16, 16, 96, 64, SQUARE), 3, "random:1"),
        (Case(16, 4, 4, 64, 128, NARROW), 2, "reversed"),
        (Case(16, 4, 8, 32, 256, NARROW), 2, "forward"),
        (Case(1, 32, 32, 32, 64, WIDE), 1, "random:2"),
        (Case(1, 16, 32, 32, 192, WIDE), 2, "random:2"),
    ] {
        check_plain(&case, grid, order);
    }
}

#[test]
fn a_resident_block_takes_several_tiles_in_every_order() {
    for order in ORDERS {
        check_plain(&Case(12, 8, 8, 32, 128, PATCH), 1, order);
    }
}

/// What is pending on x: nothing, the normalisation alone, or with ReLU.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Plain,
    Affine,
    Relu,
}

/// The two operands, as the evaluators compute and round them: relu(A·(x - M) + C) and mask·(A·tx + B·(x - M) + D).
pub fn operands(
    c: usize,
    kind: Kind,
    x: &[f32],
    affine: &[f32],
    tx: &[f32],
    slope: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let both = |i: usize| {
        let [a, shift, centre] = match kind {
            Kind::Plain => [1.0, 0.0, 0.0],
            _ => [0, 1, 2].map(|j| affine[j * c + i % c]),
        };
        let [factor, level] = [0, 1].map(|j| slope[j * c + i % c]);
        let centred = x[i] - centre;
        let value = a.mul_add(centred, shift);
        let tangent = a.mul_add(tx[i], factor.mul_add(centred, level));
        if kind == Kind::Relu && value <= 0.0 {
            (0.0, 0.0)
        } else {
            (value, tangent)
        }
    };
    let (values, tangents): (Vec<f32>, Vec<f32>) = (0..x.len()).map(both).unzip();
    (rounded(&values), rounded(&tangents))
}

/// The value of a source and its tangent, with and without tx and slope.
fn check_pending(case: &Case, kind: Kind, grid: u32, order: &str) {
    let gpu = Gpu::new();
    let _order = InOrder::new(order);
    let &Case(_, _, _, c, k, _) = case;
    let what = format!("{}, {kind:?}, {order}", case.what());
    let [x, tx] = [4, 5].map(|salt| rounded(&noise(case.pixels() * c, salt)));
    let [filters, tangents] = [6, 7].map(|salt| rounded(&noise(k * 9 * c, salt)));
    let (affine, slope) = (noise(3 * c, 8), noise(2 * c, 9));
    let [x_gpu, tx_gpu, w_gpu, tw_gpu] = [&x, &tx, &filters, &tangents].map(|x| upload(&gpu, x));
    let [affine_gpu, slope_gpu] = [&affine, &slope].map(|x| gpu.stream.clone_htod(x).unwrap());
    let source = Source {
        x: address(&gpu, &x_gpu),
        affine: if kind == Kind::Plain {
            0
        } else {
            address(&gpu, &affine_gpu)
        },
        relu: (kind == Kind::Relu).into(),
        reserved: 0,
    };
    let (zero_tx, zero_slope) = (vec![0.0; tx.len()], vec![0.0; slope.len()]);
    let (value, _) = operands(c, kind, &x, &affine, &zero_tx, &zero_slope);
    let y = run(&gpu, case, &[&w_gpu], (source, Tangent::default()), 0, grid);
    assert_close(
        &y,
        &naive(case, &[(&value, &filters)], None),
        &format!("value of {what}"),
    );

    for (with_tx, with_slope) in [(true, true), (true, false), (false, true)] {
        let some_tx = if with_tx { &tx } else { &zero_tx };
        let some_slope = if with_slope { &slope } else { &zero_slope };
        let (value, operand) = operands(c, kind, &x, &affine, some_tx, some_slope);
        let tangent = Tangent {
            tx: if with_tx { address(&gpu, &tx_gpu) } else { 0 },
            slope: if with_slope { address(&gpu, &slope_gpu) } else { 0 },
        };
        let y = run(&gpu, case, &[&w_gpu, &tw_gpu], (source, tangent), 0, grid);
        let expected = naive(case, &[(&operand, &filters), (&value, &tangents)], None);
        assert_close(
            &y,
            &expected,
            &format!("tangent of {what}, tx {with_tx}, slope {with_slope}"),
        );
    }
}

#[test]
fn what_is_pending_is_computed_in_place_and_padding_stays_zero() {
    for (case, kind, grid, order) in [
        (Case(8, 8, 8, 64, 128, PATCH), Kind::Relu, 1, "forward"),
        (Case(4, 8, 8, 96, 128, PATCH), Kind::Affine, 2, "random:3"),
        (Case(2, 16, 16, 32, 64, SQUARE), Kind::Relu, 1, "reversed"),
        (Case(16, 8, 4, 64, 128, NARROW), Kind::Plain, 1, "random:1"),
        (Case(16, 4, 8, 32, 128, NARROW), Kind::Relu, 3, "random:2"),
        (Case(1, 16, 32, 64, 128, SQUARE), Kind::Relu, 2, "random:4"),
    ] {
        check_pending(&case, kind, grid, order);
    }
}

#[test]
fn pairs_of_stages_follow_each_other_in_every_order() {
    for order in ORDERS {
        check_pending(&Case(8, 8, 8, 64, 128, PATCH), Kind::Relu, 1, order);
    }
}
