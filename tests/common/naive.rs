//! The oracle: one plain loop an operation, in f64, sharing nothing with any device but the geometry structs.
//!
//! Every operation here is linear in each operand, so the same function on magnitudes gives Σ|a||b|, the size that a
//! tolerance is relative to.

use l2b::device::{ConvShape, PoolShape, Rows};

pub fn magnitudes(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

/// Calls `f(y pixel·K + k, x pixel·C + c, weight index)` for every multiply-add of a convolution. Filters innermost: one sum
/// does not wait for the product before.
fn each_product(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..shape.n {
        for p in 0..shape.p() {
            for q in 0..shape.q() {
                let y = ((n * shape.p() + p) * shape.q() + q) * shape.k;
                for r in 0..shape.r {
                    for s in 0..shape.s {
                        let h = p * shape.stride + r - shape.pad;
                        let w = q * shape.stride + s - shape.pad;
                        if !(0..shape.h).contains(&h) || !(0..shape.w).contains(&w) {
                            continue;
                        }
                        let x = ((n * shape.h + h) * shape.w + w) * shape.c;
                        for c in 0..shape.c {
                            for k in 0..shape.k {
                                let weight = ((k * shape.r + r) * shape.s + s) * shape.c + c;
                                f((y + k) as usize, (x + c) as usize, weight as usize);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// y = conv(x, w).
pub fn conv(shape: &ConvShape, x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; shape.y_len()];
    each_product(shape, |i, j, l| y[i] += x[j] * w[l]);
    y
}

/// d = convᵀ(dy, w).
pub fn conv_input(shape: &ConvShape, dy: &[f64], w: &[f64]) -> Vec<f64> {
    let mut d = vec![0.0; shape.x_len()];
    each_product(shape, |i, j, l| d[j] += dy[i] * w[l]);
    d
}

/// dw of y = conv(x, w).
pub fn conv_weight(shape: &ConvShape, dy: &[f64], x: &[f64]) -> Vec<f64> {
    let mut dw = vec![0.0; shape.w_len()];
    each_product(shape, |i, j, l| dw[l] += dy[i] * x[j]);
    dw
}

/// Σ over rows.
pub fn column_sums(values: &[f64], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for (i, value) in values.iter().enumerate() {
        sums[i % channels] += value;
    }
    sums
}

/// Mean and Σ(u − mean)² of each channel.
pub fn moments(values: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (values.len() / channels) as f64;
    let mean: Vec<f64> = column_sums(values, channels)
        .iter()
        .map(|sum| sum / rows)
        .collect();
    let squares: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(i, u)| (u - mean[i % channels]).powi(2))
        .collect();
    (mean, column_sums(&squares, channels))
}

/// rows of channels + bias.
pub fn add_bias(rows: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let value = |i: usize| bias.map_or(0.0, |bias| bias[i % bias.len()]);
    rows.iter().enumerate().map(|(i, row)| row + value(i)).collect()
}

pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

pub fn multiply(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// relu(A·(x − M) + C).
#[derive(Clone)]
pub struct Source {
    pub shape: Rows,
    pub x: Vec<f64>,
    /// [3][C]: A, C, M.
    pub affine: Option<Vec<f64>>,
    pub relu: bool,
}

impl Source {
    fn scale(&self, i: usize) -> f64 {
        let channels = self.shape.channels as usize;
        self.affine.as_ref().map_or(1.0, |affine| affine[i % channels])
    }

    fn shift(&self, i: usize) -> f64 {
        let channels = self.shape.channels as usize;
        self.affine
            .as_ref()
            .map_or(0.0, |affine| affine[channels + i % channels])
    }

    /// x − M.
    fn centred(&self, i: usize) -> f64 {
        let channels = self.shape.channels as usize;
        let centre = |affine: &Vec<f64>| affine[2 * channels + i % channels];
        self.x[i] - self.affine.as_ref().map_or(0.0, centre)
    }

    pub fn pre_activation(&self) -> Vec<f64> {
        (0..self.x.len())
            .map(|i| self.scale(i) * self.centred(i) + self.shift(i))
            .collect()
    }

    /// 1 where open, 0 where closed.
    pub fn mask(&self) -> Vec<f64> {
        let open = |v: &f64| f64::from(u8::from(!self.relu || *v > 0.0));
        self.pre_activation().iter().map(open).collect()
    }

    pub fn value(&self) -> Vec<f64> {
        multiply(&self.mask(), &self.pre_activation())
    }

    /// mask·(A·tx + B·(x − M) + D); slope: [2][C] B, D.
    pub fn tangent(&self, tx: Option<&[f64]>, slope: Option<&[f64]>) -> Vec<f64> {
        let channels = self.shape.channels as usize;
        let linear: Vec<f64> = (0..self.x.len())
            .map(|i| {
                let tx = tx.map_or(0.0, |tx| self.scale(i) * tx[i]);
                let slope = slope.map_or(0.0, |s| {
                    s[i % channels] * self.centred(i) + s[channels + i % channels]
                });
                tx + slope
            })
            .collect();
        multiply(&self.mask(), &linear)
    }

    /// A·mask·d + B·(x − M) + D.
    pub fn adjoint(&self, d: &[f64], slope: Option<&[f64]>) -> Vec<f64> {
        let open = Source {
            relu: false,
            ..self.clone()
        };
        open.tangent(Some(&multiply(&self.mask(), d)), slope)
    }

    /// The same source of magnitudes, all open: what bounds the terms of value, tangent and adjoint.
    pub fn magnitudes(&self) -> Source {
        let mut affine = self.affine.as_deref().map(magnitudes);
        // |x − M| is at most |x| + |M|.
        if let Some(affine) = &mut affine {
            for centre in &mut affine[2 * self.shape.channels as usize..] {
                *centre = -*centre;
            }
        }
        Source {
            shape: self.shape,
            x: magnitudes(&self.x),
            affine,
            relu: false,
        }
    }
}

/// Calls `f(y index, x index)` for every input value of every window.
fn each_window(shape: &PoolShape, mut f: impl FnMut(usize, usize)) {
    for n in 0..shape.n {
        for p in 0..shape.p() {
            for q in 0..shape.q() {
                for r in 0..shape.r {
                    for s in 0..shape.s {
                        for c in 0..shape.c {
                            let y = ((n * shape.p() + p) * shape.q() + q) * shape.c + c;
                            let (h, w) = (p * shape.r + r, q * shape.s + s);
                            let x = ((n * shape.h + h) * shape.w + w) * shape.c + c;
                            f(y as usize, x as usize);
                        }
                    }
                }
            }
        }
    }
}

/// Mean of each window.
pub fn pool(shape: &PoolShape, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; shape.y_len()];
    each_window(shape, |i, j| y[i] += x[j] / f64::from(shape.r * shape.s));
    y
}

/// Its adjoint.
pub fn pool_input(shape: &PoolShape, dy: &[f64]) -> Vec<f64> {
    let mut d = vec![0.0; shape.x_len()];
    each_window(shape, |i, j| d[j] += dy[i] / f64::from(shape.r * shape.s));
    d
}

/// softmax of each row.
pub fn softmax(z: &[f64], classes: usize) -> Vec<f64> {
    z.chunks(classes)
        .flat_map(|z| {
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| (z - largest).exp()).sum();
            z.iter().map(move |z| (z - largest).exp() / sum)
        })
        .collect()
}

/// log softmax of each row.
pub fn log_softmax(z: &[f64], classes: usize) -> Vec<f64> {
    z.chunks(classes)
        .flat_map(|z| {
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| (z - largest).exp()).sum();
            z.iter().map(move |z| z - largest - sum.ln())
        })
        .collect()
}

/// Rows of 0 and 1.
pub fn one_hot(labels: &[i32], classes: usize) -> Vec<f64> {
    labels
        .iter()
        .flat_map(|&label| (0..classes).map(move |c| f64::from(u8::from(c == label as usize))))
        .collect()
}

/// Σ of each row.
pub fn row_sums(values: &[f64], width: usize) -> Vec<f64> {
    values.chunks(width).map(|row| row.iter().sum()).collect()
}
