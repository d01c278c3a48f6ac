//! Which GEMM the CPU device stands on, and whether a 3×3 convolution needs its patches written out.
//!
//! Part 1: y [rows][K] = patches [rows][9C] · wᵀ on one thread, f32, faer against matrixmultiply, at the sizes of one piece
//! of work of each network's convolutions; and the weight gradient dw [K][9C] = dyᵀ · patches.
//! Part 2: one stage of images, patches included: written out (im2col), against three products over the padded image
//! seen with overlapping rows (row stride C, depth 3C), whose outputs hold two columns of waste a line.
//! Every result is compared before it is timed. The best of many runs counts: other work on the machine only adds.
//!
//! `cargo bench --bench gemm`

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], row: usize, column: usize) -> Self {
        Matrix { data, row, column }
    }

    fn check(&self, rows: usize, columns: usize) {
        assert!((rows - 1) * self.row + (columns - 1) * self.column < self.data.len());
    }
}

fn with_faer(dst: &mut [f32], add: bool, a: Matrix, b: Matrix, (m, n, k): (usize, usize, usize)) {
    a.check(m, k);
    b.check(k, n);
    let view = |x: Matrix, rows, columns| {
        let (row, column) = (x.row as isize, x.column as isize);
        // SAFETY: `check` saw that every element lies in the slice.
        unsafe { MatRef::from_raw_parts(x.data.as_ptr(), rows, columns, row, column) }
    };
    let beta = if add { Accum::Add } else { Accum::Replace };
    let dst = MatMut::from_row_major_slice_mut(dst, m, n);
    matmul(dst, beta, view(a, m, k), view(b, k, n), 1.0, Par::Seq);
}

fn with_matrixmultiply(dst: &mut [f32], add: bool, a: Matrix, b: Matrix, (m, n, k): (usize, usize, usize)) {
    a.check(m, k);
    b.check(k, n);
    assert!(dst.len() == m * n);
    let beta = if add { 1.0 } else { 0.0 };
    // SAFETY: `check` saw that every element lies in the slices.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.data.as_ptr(),
            a.row as isize,
            a.column as isize,
            b.data.as_ptr(),
            b.row as isize,
            b.column as isize,
            beta,
            dst.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Seconds of the best run.
fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.3 {
        let run = Instant::now();
        f();
        best = best.min(run.elapsed().as_secs_f64());
    }
    best
}

fn assert_same(what: &str, a: &[f32], b: &[f32], depth: usize) {
    let tolerance = 1e-5 * depth as f32;
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}[{i}]: {a} and {b}");
    }
}

fn main() {
    println!("part 1: GFLOP/s on one thread");
    println!(
        "{:30} {:>8} {:>15}   {:>8} {:>15}",
        "rows x K x depth", "y: faer", "matrixmultiply", "dw: faer", "matrixmultiply"
    );
    for (rows, k, c) in [
        (2048, 16, 16),
        (512, 32, 32),
        (128, 64, 64),
        (512, 64, 64),
        (256, 128, 128),
        (256, 256, 256),
        (256, 512, 512),
    ] {
        part1(rows, k, 9 * c);
    }
    println!("part 2: GFLOP/s on one thread, patches included");
    println!(
        "{:30} {:>8} {:>15}",
        "images, size, C = K", "im2col", "overlapping"
    );
    for (n, size, c) in [
        (32, 8, 16),
        (32, 4, 32),
        (32, 2, 64),
        (1, 32, 64),
        (2, 16, 128),
        (4, 8, 256),
        (16, 4, 512),
    ] {
        part2(n, size, c);
    }
}

fn part1(rows: usize, k: usize, depth: usize) {
    let (patches, w, dy) = (values(rows * depth), values(k * depth), values(rows * k));
    let flops = 2e-9 * (rows * k * depth) as f64;
    let forward = (
        Matrix::new(&patches, depth, 1),
        Matrix::new(&w, 1, depth),
        (rows, k, depth),
    );
    let weight = (
        Matrix::new(&dy, 1, k),
        Matrix::new(&patches, depth, 1),
        (k, depth, rows),
    );
    let mut speeds = Vec::new();
    for (what, (a, b, sizes)) in [("y", forward), ("dw", weight)] {
        let (mut first, mut second) = (vec![0.0; sizes.0 * sizes.1], vec![0.0; sizes.0 * sizes.1]);
        with_faer(&mut first, false, a, b, sizes);
        with_matrixmultiply(&mut second, false, a, b, sizes);
        assert_same(what, &first, &second, sizes.2);
        speeds.push(flops / best(|| with_faer(&mut first, false, a, b, sizes)));
        speeds.push(flops / best(|| with_matrixmultiply(&mut second, false, a, b, sizes)));
    }
    let name = format!("{rows} x {k} x {depth}");
    println!(
        "{name:30} {:8.1} {:15.1}   {:8.1} {:15.1}",
        speeds[0], speeds[1], speeds[2], speeds[3]
    );
}

fn part2(n: usize, size: usize, c: usize) {
    let padded = size + 2;
    let strip = values(n * padded * padded * c);
    let w = values(c * 9 * c);
    let rows = n * size * size;
    let flops = 2e-9 * (rows * c * 9 * c) as f64;

    let mut cols = vec![0.0; rows * 9 * c];
    let mut y = vec![0.0; rows * c];
    let mut im2col = || {
        for (i, patch) in cols.chunks_exact_mut(9 * c).enumerate() {
            let (image, p, q) = (i / (size * size), i / size % size, i % size);
            for (r, patch) in patch.chunks_exact_mut(3 * c).enumerate() {
                patch.copy_from_slice(&strip[((image * padded + p + r) * padded + q) * c..][..3 * c]);
            }
        }
        let sizes = (rows, c, 9 * c);
        with_faer(
            &mut y,
            false,
            Matrix::new(&cols, 9 * c, 1),
            Matrix::new(&w, 1, 9 * c),
            sizes,
        );
    };
    im2col();
    let written = best(&mut im2col);

    // Padded pixels in a row; the last ones of an image reach into the next, whose outputs are thrown away.
    let wide_rows = n * padded * padded - 2 * padded - 2;
    let mut wide = vec![0.0; wide_rows * c];
    let mut other = vec![0.0; rows * c];
    let mut overlapping = || {
        for r in 0..3 {
            let a = Matrix::new(&strip[r * padded * c..], c, 1);
            let b = Matrix::new(&w[r * 3 * c..], 1, 9 * c);
            with_faer(&mut wide, r > 0, a, b, (wide_rows, c, 3 * c));
        }
        for (i, line) in other.chunks_exact_mut(size * c).enumerate() {
            let start = (i / size * padded + i % size) * padded * c;
            line.copy_from_slice(&wide[start..][..size * c]);
        }
    };
    overlapping();
    let seen = best(&mut overlapping);
    assert_same("y", &y, &other, 9 * c);
    println!(
        "{:30} {:8.1} {:15.1}",
        format!("{n}, {size}x{size}, {c}"),
        flops / written,
        flops / seen
    );
}
