//! Convolution against the oracle; see `ops.rs`.

use l2b::device::{Conv, ConvShape, Device, Epilogue, Geometry, Tangent, Write};

use super::ops::{Expected, Setup, rows};
use super::{Arranged, Random, assert_within, fetch, naive, reading, room, writing};

/// n images of h×w, padded filters of 3×3, stride 1.
pub fn same_3x3(n: i32, (h, w): (i32, i32), (c, k): (i32, i32)) -> ConvShape {
    ConvShape {
        n,
        h,
        w,
        c,
        k,
        r: 3,
        s: 3,
        stride: 1,
        pad: 1,
    }
}

impl<D: Device> Setup<'_, D> {
    /// Forward, tangent, both adjoints and contraction of one convolution.
    pub fn conv(&self, shape: ConvShape, kind: usize) {
        let name = &format!("{shape:?} source {kind}");
        let device = self.device;
        let random = &mut Random::new(kind as u64 + 10);
        let prepared = &device.prepare(&Geometry::Conv(shape)).expect("prepare");
        let scratch = room(device, prepared.scratch_bytes);
        let (x_shape, y_shape) = (rows(shape.x_rows(), shape.c), rows(shape.y_rows(), shape.k));
        let channels = shape.c as usize;
        let depth = shape.taps() * channels;

        let x = self.random_source(random, x_shape, kind);
        let x_lent = self.lend(&x);
        let conv = Conv {
            shape: &shape,
            prepared,
            x: x_lent.source(),
            scratch: scratch.mem(),
        };
        let operand = |values: &[f64]| self.operand.apply(values);
        let (value, size) = (operand(&x.value()), x.magnitudes().value());
        let w = self.real(random, shape.w_len());
        let tw = self.real(random, shape.w_len());
        let bias = self.real(random, shape.k as usize);
        let lent = |values: &[f64]| reading::<D::Real, D>(device, values);
        let arranged = |values: &[f64]| Arranged::new(device, &shape, prepared, lent(values));
        let (w_lent, tw_lent, bias_lent) = (arranged(&w), arranged(&tw), lent(&bias));
        let (w, tw) = (operand(&w), operand(&tw));
        let abs = naive::magnitudes;
        let (y, y_size) = (
            naive::conv(&shape, &value, &w),
            naive::conv(&shape, &size, &abs(&w)),
        );
        let (ty, ty_size) = (
            naive::conv(&shape, &value, &tw),
            naive::conv(&shape, &size, &abs(&tw)),
        );
        let abs_bias = abs(&bias);

        let residual = self.act(random, y_shape.len());
        let residual_lent = reading::<D::Act, D>(device, &residual);
        for with_bias in [false, true] {
            let bias = with_bias.then_some(&bias[..]);
            let mut want = naive::add_bias(&y, bias);
            let mut sizes = naive::add_bias(&y_size, with_bias.then_some(&abs_bias[..]));
            let onto = !with_bias;
            if onto {
                want = naive::add(&want, &residual);
                sizes = naive::add(&sizes, &abs(&residual));
            }
            self.epilogues(
                &format!("y of {name}, residual {onto}"),
                &Expected {
                    shape: y_shape,
                    depth,
                    want: &want,
                    sizes: &sizes,
                    before: None,
                    slack: self.slack(),
                },
                |y, epilogue| {
                    let bias = bias.map(|_| bias_lent.mem());
                    let epilogue = Epilogue {
                        addend: onto.then(|| residual_lent.mem()),
                        ..epilogue
                    };
                    device
                        .conv_forward(conv, y.mem(), w_lent.filters(), bias, epilogue)
                        .expect("conv_forward");
                },
            );
        }

        let tx = self.act(random, x_shape.len());
        let slope = self.real(random, 2 * channels);
        let (tx_lent, slope_lent) = (reading::<D::Act, D>(device, &tx), lent(&slope));
        for (with_tx, with_slope) in [(false, false), (true, false), (false, true), (true, true)] {
            let (some_tx, some_slope) = (with_tx.then_some(&tx[..]), with_slope.then_some(&slope[..]));
            let (abs_tx, abs_slope) = (some_tx.map(abs), some_slope.map(abs));
            let tangent = operand(&x.tangent(some_tx, some_slope));
            let tangent_size = x.magnitudes().tangent(abs_tx.as_deref(), abs_slope.as_deref());
            let mut want = naive::add(
                &naive::conv(&shape, &tangent, &w),
                &naive::add_bias(&ty, Some(&bias)),
            );
            let mut sizes = naive::add(
                &naive::conv(&shape, &tangent_size, &abs(&w)),
                &naive::add_bias(&ty_size, Some(&abs_bias)),
            );
            let onto = with_slope;
            if onto {
                want = naive::add(&want, &residual);
                sizes = naive::add(&sizes, &abs(&residual));
            }
            let name = format!("ty of {name}, tx {with_tx}, slope {with_slope}");
            self.epilogues(
                &name,
                &Expected {
                    shape: y_shape,
                    depth: 2 * depth,
                    want: &want,
                    sizes: &sizes,
                    before: None,
                    slack: self.slack(),
                },
                |ty, epilogue| {
                    let tangent = Tangent {
                        tx: with_tx.then(|| tx_lent.mem()),
                        slope: with_slope.then(|| slope_lent.mem()),
                    };
                    let (w, tw, bias) = (w_lent.filters(), tw_lent.filters(), bias_lent.mem());
                    let epilogue = Epilogue {
                        addend: onto.then(|| residual_lent.mem()),
                        ..epilogue
                    };
                    device
                        .conv_tangent(conv, ty.mem(), tangent, w, tw, Some(bias), epilogue)
                        .expect("conv_tangent");
                },
            );
        }

        let dy = self.act(random, y_shape.len());
        let dy_lent = reading::<D::Act, D>(device, &dy);
        let dy_stored = dy;
        let dy = operand(&dy_stored);
        let before = self.act(random, x_shape.len());
        let d = naive::conv_input(&shape, &dy, &w);
        let d_size = naive::conv_input(&shape, &abs(&dy), &abs(&w));
        for write in [Write::Set, Write::Add] {
            let (mut want, mut sizes) = (d.clone(), d_size.clone());
            if write == Write::Add {
                want = naive::add(&want, &before);
                sizes = naive::add(&sizes, &abs(&before));
            }
            let before = (write == Write::Add).then_some(&before[..]);
            let depth = shape.taps() * shape.k as usize;
            let name = format!("d of {name}, {write:?}");
            self.epilogues(
                &name,
                &Expected {
                    shape: x_shape,
                    depth,
                    want: &want,
                    sizes: &sizes,
                    before,
                    slack: self.slack(),
                },
                |d, epilogue| {
                    let (dy, w) = (dy_lent.mem(), w_lent.filters());
                    device
                        .conv_backward_input(conv, d.mem(), write, dy, w, epilogue)
                        .expect("conv_backward_input");
                },
            );
        }

        let before = self.real(random, shape.w_len());
        let weight = naive::conv_weight(&shape, &dy, &value);
        let weight_size = naive::conv_weight(&shape, &abs(&dy), &size);
        for (write, with_bias) in [(Write::Set, true), (Write::Add, true), (Write::Set, false)] {
            let dw = if write == Write::Add {
                lent(&before)
            } else {
                writing::<D::Real, D>(device, w.len())
            };
            let dbias = if write == Write::Add {
                lent(&bias)
            } else {
                writing::<D::Real, D>(device, bias.len())
            };
            let some_dbias = with_bias.then(|| dbias.mem());
            device
                .conv_backward_weight(conv, dw.mem(), some_dbias, write, dy_lent.mem())
                .expect("weight");
            let (mut want, mut sizes) = (weight.clone(), weight_size.clone());
            let mut want_bias = naive::column_sums(&dy_stored, bias.len());
            let mut bias_sizes = naive::column_sums(&abs(&dy_stored), bias.len());
            if write == Write::Add {
                want = naive::add(&want, &before);
                sizes = naive::add(&sizes, &abs(&before));
                want_bias = naive::add(&want_bias, &bias);
                bias_sizes = naive::add(&bias_sizes, &abs(&bias));
            }
            let mut tolerance = self.tolerance(y_shape.rows as usize, &sizes);
            tolerance.iter_mut().for_each(|t| *t += self.slack());
            let got = fetch::<D::Real, D>(device, &dw);
            assert_within(&format!("dw of {name}, {write:?}"), &got, &want, &tolerance);
            if with_bias {
                let tolerance = self.tolerance(y_shape.rows as usize, &bias_sizes);
                let got = fetch::<D::Real, D>(device, &dbias);
                assert_within(
                    &format!("dbias of {name}, {write:?}"),
                    &got,
                    &want_bias,
                    &tolerance,
                );
            }
        }

        let before = self.real(random, shape.n as usize);
        let sample = y_shape.len() / shape.n as usize;
        for with_bias in [false, true] {
            let out = lent(&before);
            let tbias = with_bias.then(|| bias_lent.mem());
            device
                .conv_contract(conv, out.mem(), dy_lent.mem(), tw_lent.filters(), tbias)
                .expect("contract");
            let ty = naive::add_bias(&ty, with_bias.then_some(&bias[..]));
            let ty_size = naive::add_bias(&ty_size, with_bias.then_some(&abs_bias[..]));
            let want = naive::add(
                &before,
                &naive::row_sums(&naive::multiply(&ty, &dy_stored), sample),
            );
            let sizes = naive::row_sums(&naive::multiply(&ty_size, &abs(&dy_stored)), sample);
            let mut tolerance = self.tolerance(depth * sample, &naive::add(&sizes, &abs(&before)));
            tolerance.iter_mut().for_each(|t| *t += self.slack());
            let got = fetch::<D::Real, D>(device, &out);
            assert_within(&format!("contraction of {name}"), &got, &want, &tolerance);
        }
    }
}
