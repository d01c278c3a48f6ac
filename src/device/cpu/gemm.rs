//! Matrix products, sequential: the callers share work among threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::Float;

/// A matrix in a slice: element (i, j) at `i·row + j·column`. Rows may overlap (row stride below the width).
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `width` values, one behind the other.
    pub(super) fn rows(data: &'a [T], width: usize) -> Self {
        Matrix {
            data,
            row: width,
            column: 1,
        }
    }

    /// The transpose of rows of `width` values.
    pub(super) fn columns(data: &'a [T], width: usize) -> Self {
        Matrix {
            data,
            row: 1,
            column: width,
        }
    }
}

/// dst [m][n], row after row, ← or += a [m][depth] · b [depth][n].
pub(super) fn gemm<T: Float>(
    dst: &mut [T],
    add: bool,
    a: Matrix<T>,
    b: Matrix<T>,
    (m, n, depth): (usize, usize, usize),
) {
    assert!(dst.len() == m * n);
    let dst = MatMut::from_row_major_slice_mut(dst, m, n);
    let beta = if add { Accum::Add } else { Accum::Replace };
    matmul(dst, beta, view(a, m, depth), view(b, depth, n), T::ONE, Par::Seq);
}

fn view<T: Float>(matrix: Matrix<'_, T>, rows: usize, columns: usize) -> MatRef<'_, T> {
    let last = (rows.max(1) - 1) * matrix.row + (columns.max(1) - 1) * matrix.column;
    assert!(rows == 0 || columns == 0 || last < matrix.data.len());
    // SAFETY: every element lies in the slice, and the view is read-only, so rows may overlap.
    unsafe {
        MatRef::from_raw_parts(
            matrix.data.as_ptr(),
            rows,
            columns,
            matrix.row as isize,
            matrix.column as isize,
        )
    }
}
