//! Every operation of a device against the oracle, generic over the device: one body for the CPU in f32 and f64 and for
//! kernels. Tolerance of a sum of K products: 4·√K·ε·Σ|a||b|, ε the spacing of the type the device multiplies in.

use l2b::device::{
    Conv, ConvShape, Device, Element, Epilogue, Geometry, PoolShape, Rows, Source, Sums, Tangent, Write,
};

use super::sums::NormBench;
use super::{Operand, Random, assert_within, fetch, naive, reading, room, writing};

/// A device under test and the precision it promises.
pub struct Setup<'a, D> {
    pub device: &'a D,
    /// Spacing of numbers at 1 in the type of products and stored activations.
    pub eps: f64,
}

/// Spacing of E at 1.
pub fn spacing<E: Element>() -> f64 {
    let mut eps = 1.0;
    while E::from_f64(1.0 + eps / 2.0).to_f64() > 1.0 {
        eps /= 2.0;
    }
    eps
}

/// Values as E stores them.
pub fn rounded<E: Element>(values: Vec<f64>) -> Vec<f64> {
    values
        .into_iter()
        .map(|value| E::from_f64(value).to_f64())
        .collect()
}

/// A source on the device.
struct Lent<D: Device> {
    x: Operand<D>,
    affine: Option<Operand<D>>,
    relu: bool,
}

impl<D: Device> Lent<D> {
    fn source(&self) -> Source<'_, D::Arena> {
        Source {
            x: self.x.mem(),
            affine: self.affine.as_ref().map(Operand::mem),
            relu: self.relu,
        }
    }
}

/// Names of the four kinds of source: bit 0 affine, bit 1 ReLU.
pub const KINDS: [usize; 4] = [0, 1, 2, 3];

fn rows(rows: usize, channels: i32) -> Rows {
    Rows {
        rows: rows as i32,
        channels,
    }
}

impl<'a, D: Device> Setup<'a, D> {
    pub fn new(device: &'a D) -> Self {
        Setup {
            device,
            eps: spacing::<D::Act>(),
        }
    }

    pub fn tolerance(&self, depth: usize, sizes: &[f64]) -> Vec<f64> {
        let factor = 4.0 * (depth.max(1) as f64).sqrt() * self.eps;
        sizes.iter().map(|size| factor * size + 1e-30).collect()
    }

    pub fn act(&self, random: &mut Random, len: usize) -> Vec<f64> {
        rounded::<D::Act>(random.values(len))
    }

    pub fn real(&self, random: &mut Random, len: usize) -> Vec<f64> {
        rounded::<D::Real>(random.values(len))
    }

    /// A source with no pre-activation so near 0 that rounding could open or close it.
    fn random_source(&self, random: &mut Random, shape: Rows, kind: usize) -> naive::Source {
        let channels = shape.channels as usize;
        let affine = (kind & 1 == 1).then(|| {
            let mut affine = random.range(channels, 0.5, 1.5);
            for scale in affine.iter_mut().skip(1).step_by(3) {
                *scale = -*scale;
            }
            affine.extend(random.values(2 * channels));
            rounded::<D::Real>(affine)
        });
        let mut source = naive::Source {
            shape,
            x: self.act(random, shape.len()),
            affine,
            relu: kind & 2 == 2,
        };
        while let Some(i) = source.pre_activation().iter().position(|v| v.abs() < 0.03) {
            for (v, x) in source.pre_activation().into_iter().zip(&mut source.x).skip(i) {
                if v.abs() < 0.03 {
                    *x += 0.125;
                }
            }
            source.x = rounded::<D::Act>(source.x);
        }
        source
    }

    fn lend(&self, source: &naive::Source) -> Lent<D> {
        Lent {
            x: reading::<D::Act, D>(self.device, &source.x),
            affine: source
                .affine
                .as_ref()
                .map(|affine| reading::<D::Real, D>(self.device, affine)),
            relu: source.relu,
        }
    }

    /// Runs one operation under every epilogue. `want` and `sizes` are the values before the mask; `run(out, epilogue)`
    /// does the operation into an operand that holds `before`.
    fn epilogues(
        &self,
        name: &str,
        shape: Rows,
        depth: usize,
        want: &[f64],
        sizes: &[f64],
        before: Option<&[f64]>,
        run: &dyn Fn(&Operand<D>, Epilogue<D::Arena>),
    ) {
        let mut random = Random::new(77);
        let channels = shape.channels as usize;
        let fresh = || match before {
            Some(values) => reading::<D::Act, D>(self.device, values),
            None => writing::<D::Act, D>(self.device, shape.len()),
        };
        let out = fresh();
        run(&out, Epilogue::none());
        let plain = fetch::<D::Act, D>(self.device, &out);
        assert_within(name, &plain, want, &self.tolerance(depth, sizes));

        let mask = self.random_source(&mut random, shape, 3);
        let lent = self.lend(&mask);
        let bench = NormBench::new(self, &mut random, shape);
        let x = self.act(&mut random, shape.len());
        let x_lent = reading::<D::Act, D>(self.device, &x);

        // Mask and sums together; the sums must be those of the values as stored.
        let out = fresh();
        let sums = Sums::Dot {
            x: x_lent.mem(),
            statistics: bench.statistics.mem(),
            partials: bench.partials.mem(),
        };
        run(
            &out,
            Epilogue {
                mask: Some(lent.source()),
                sums,
            },
        );
        let stored = fetch::<D::Act, D>(self.device, &out);
        let masked = naive::multiply(&plain, &mask.mask());
        assert_eq!(
            stored, masked,
            "{name}: the mask changes nothing but closed values"
        );
        bench.check_dot(self, &format!("{name}, sums"), &stored, &x);

        let out = fresh();
        let sums = Sums::Moments {
            partials: bench.partials.mem(),
        };
        run(&out, Epilogue { mask: None, sums });
        let stored = fetch::<D::Act, D>(self.device, &out);
        assert_eq!(stored, plain, "{name}: the same bits with sums");
        bench.check_moments(self, &format!("{name}, moments"), &stored, channels);
    }

    /// Forward, tangent, both adjoints and contraction of one convolution.
    pub fn conv(&self, shape: ConvShape, kind: usize) {
        let name = &format!("{shape:?} source {kind}");
        let device = self.device;
        let random = &mut Random::new(kind as u64 + 10);
        let prepared = &device.prepare(&Geometry::Conv(shape)).expect("prepare");
        let (saved, scratch) = (
            room(device, prepared.saved_bytes),
            room(device, prepared.scratch_bytes),
        );
        let (x_shape, y_shape) = (rows(shape.x_rows(), shape.c), rows(shape.y_rows(), shape.k));
        let channels = shape.c as usize;
        let depth = shape.taps() * channels;

        let x = self.random_source(random, x_shape, kind);
        let x_lent = self.lend(&x);
        let conv = Conv {
            shape: &shape,
            prepared,
            x: x_lent.source(),
            saved: saved.mem(),
            scratch: scratch.mem(),
        };
        let (value, size) = (x.value(), x.magnitudes().value());
        let w = self.real(random, shape.w_len());
        let tw = self.real(random, shape.w_len());
        let bias = self.real(random, shape.k as usize);
        let lent = |values: &[f64]| reading::<D::Real, D>(device, values);
        let (w_lent, tw_lent, bias_lent) = (lent(&w), lent(&tw), lent(&bias));
        let abs = naive::magnitudes;

        for bias in [None, Some(&bias)] {
            let want = naive::conv(&shape, &value, &w, bias.map(Vec::as_slice));
            let sizes = naive::conv(&shape, &size, &abs(&w), bias.map(|bias| abs(bias)).as_deref());
            self.epilogues(
                &format!("y of {name}"),
                y_shape,
                depth,
                &want,
                &sizes,
                None,
                &|y, epilogue| {
                    let bias = bias.map(|_| bias_lent.mem());
                    device
                        .conv_forward(conv, y.mem(), w_lent.mem(), bias, epilogue)
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
            let tangent = x.tangent(some_tx, some_slope);
            let tangent_size = x.magnitudes().tangent(abs_tx.as_deref(), abs_slope.as_deref());
            let want = naive::add(
                &naive::conv(&shape, &tangent, &w, None),
                &naive::conv(&shape, &value, &tw, Some(&bias)),
            );
            let sizes = naive::add(
                &naive::conv(&shape, &tangent_size, &abs(&w), None),
                &naive::conv(&shape, &size, &abs(&tw), Some(&abs(&bias))),
            );
            let name = format!("ty of {name}, tx {with_tx}, slope {with_slope}");
            self.epilogues(&name, y_shape, 2 * depth, &want, &sizes, None, &|ty, epilogue| {
                let tangent = Tangent {
                    tx: with_tx.then(|| tx_lent.mem()),
                    slope: with_slope.then(|| slope_lent.mem()),
                };
                let (w, tw, bias) = (w_lent.mem(), tw_lent.mem(), bias_lent.mem());
                device
                    .conv_tangent(conv, ty.mem(), tangent, w, tw, Some(bias), epilogue)
                    .expect("conv_tangent");
            });
        }

        let dy = self.act(random, y_shape.len());
        let dy_lent = reading::<D::Act, D>(device, &dy);
        let before = self.act(random, x_shape.len());
        for write in [Write::Set, Write::Add] {
            let mut want = naive::conv_input(&shape, &dy, &w);
            let mut sizes = naive::conv_input(&shape, &abs(&dy), &abs(&w));
            if write == Write::Add {
                want = naive::add(&want, &before);
                sizes = naive::add(&sizes, &abs(&before));
            }
            let before = (write == Write::Add).then_some(&before[..]);
            let depth = shape.taps() * shape.k as usize;
            let name = format!("d of {name}, {write:?}");
            self.epilogues(&name, x_shape, depth, &want, &sizes, before, &|d, epilogue| {
                let (dy, w) = (dy_lent.mem(), w_lent.mem());
                device
                    .conv_backward_input(conv, d.mem(), write, dy, w, epilogue)
                    .expect("conv_backward_input");
            });
        }

        let before = self.real(random, shape.w_len());
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
            let mut want = naive::conv_weight(&shape, &dy, &value);
            let mut sizes = naive::conv_weight(&shape, &abs(&dy), &size);
            let mut want_bias = naive::column_sums(&dy, bias.len());
            let mut bias_sizes = naive::column_sums(&abs(&dy), bias.len());
            if write == Write::Add {
                want = naive::add(&want, &before);
                sizes = naive::add(&sizes, &abs(&before));
                want_bias = naive::add(&want_bias, &bias);
                bias_sizes = naive::add(&bias_sizes, &abs(&bias));
            }
            let tolerance = self.tolerance(y_shape.rows as usize, &sizes);
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
        for some_bias in [None, Some(&bias)] {
            let out = lent(&before);
            let tbias = some_bias.map(|_| bias_lent.mem());
            device
                .conv_contract(conv, out.mem(), dy_lent.mem(), tw_lent.mem(), tbias)
                .expect("contract");
            let ty = naive::conv(&shape, &value, &tw, some_bias.map(Vec::as_slice));
            let ty_size = naive::conv(
                &shape,
                &size,
                &abs(&tw),
                some_bias.map(|bias| abs(bias)).as_deref(),
            );
            let want = naive::add(&before, &naive::row_sums(&naive::multiply(&ty, &dy), sample));
            let sizes = naive::row_sums(&naive::multiply(&ty_size, &abs(&dy)), sample);
            let tolerance = self.tolerance(depth * sample, &naive::add(&sizes, &abs(&before)));
            let got = fetch::<D::Real, D>(device, &out);
            assert_within(&format!("contraction of {name}"), &got, &want, &tolerance);
        }
    }

    /// Adjoint and joins of sources over a tensor.
    pub fn rows(&self, shape: Rows) {
        let device = self.device;
        let random = &mut Random::new(3);
        let channels = shape.channels as usize;
        let abs = naive::magnitudes;
        let slope = self.real(random, 2 * channels);
        let slope_lent = reading::<D::Real, D>(device, &slope);
        let [d, ta, tb, before] = [(); 4].map(|()| self.act(random, shape.len()));
        let [d_lent, ta_lent, tb_lent] = [&d, &ta, &tb].map(|values| reading::<D::Act, D>(device, values));
        for kind in KINDS {
            let a = self.random_source(random, shape, kind);
            let b = self.random_source(random, shape, 3 - kind);
            let (a_lent, b_lent) = (self.lend(&a), self.lend(&b));
            for (write, with_slope) in [(Write::Set, false), (Write::Set, true), (Write::Add, true)] {
                let some_slope = with_slope.then_some(&slope[..]);
                let mut want = a.adjoint(&d, some_slope);
                let mut sizes = a.magnitudes().adjoint(&abs(&d), some_slope.map(abs).as_deref());
                if write == Write::Add {
                    want = naive::add(&want, &before);
                    sizes = naive::add(&sizes, &abs(&before));
                }
                let before = (write == Write::Add).then_some(&before[..]);
                let name = format!("dx of {shape:?} source {kind}, {write:?}, slope {with_slope}");
                self.epilogues(&name, shape, 4, &want, &sizes, before, &|dx, epilogue| {
                    let slope = with_slope.then(|| slope_lent.mem());
                    device
                        .source_backward(
                            shape,
                            dx.mem(),
                            write,
                            d_lent.mem(),
                            a_lent.source(),
                            slope,
                            epilogue,
                        )
                        .expect("source_backward");
                });
            }
            let want = naive::add(&a.value(), &b.value());
            let sizes = naive::add(&a.magnitudes().value(), &b.magnitudes().value());
            let name = format!("join of {shape:?} source {kind}");
            self.epilogues(&name, shape, 4, &want, &sizes, None, &|y, epilogue| {
                device
                    .join_forward(shape, y.mem(), a_lent.source(), b_lent.source(), epilogue)
                    .expect("join_forward");
            });
            let want = naive::add(&a.tangent(Some(&ta), Some(&slope)), &b.tangent(Some(&tb), None));
            let sizes = naive::add(
                &a.magnitudes().tangent(Some(&abs(&ta)), Some(&abs(&slope))),
                &b.magnitudes().tangent(Some(&abs(&tb)), None),
            );
            let name = format!("tangent of join of {shape:?} source {kind}");
            self.epilogues(&name, shape, 4, &want, &sizes, None, &|ty, epilogue| {
                let ta = Tangent {
                    tx: Some(ta_lent.mem()),
                    slope: Some(slope_lent.mem()),
                };
                let tb = Tangent {
                    tx: Some(tb_lent.mem()),
                    slope: None,
                };
                device
                    .join_tangent(
                        shape,
                        ty.mem(),
                        (a_lent.source(), ta),
                        (b_lent.source(), tb),
                        epilogue,
                    )
                    .expect("join_tangent");
            });
        }
    }

    /// Forward, tangent and adjoint of one pooling.
    pub fn pool(&self, shape: PoolShape, kind: usize) {
        let device = self.device;
        let random = &mut Random::new(5);
        let name = &format!("{shape:?} source {kind}");
        let abs = naive::magnitudes;
        let x_shape = rows((shape.n * shape.h * shape.w) as usize, shape.c);
        let x = self.random_source(random, x_shape, kind);
        let lent = self.lend(&x);
        let depth = (shape.r * shape.s) as usize;

        let y = writing::<D::Act, D>(device, shape.y_len());
        device
            .pool_forward(shape, y.mem(), lent.source())
            .expect("pool_forward");
        let sizes = naive::pool(&shape, &x.magnitudes().value());
        let got = fetch::<D::Act, D>(device, &y);
        let want = naive::pool(&shape, &x.value());
        assert_within(
            &format!("y of {name}"),
            &got,
            &want,
            &self.tolerance(depth, &sizes),
        );

        let tx = self.act(random, x_shape.len());
        let slope = self.real(random, 2 * shape.c as usize);
        let (tx_lent, slope_lent) = (
            reading::<D::Act, D>(device, &tx),
            reading::<D::Real, D>(device, &slope),
        );
        let ty = writing::<D::Act, D>(device, shape.y_len());
        let tangent = Tangent {
            tx: Some(tx_lent.mem()),
            slope: Some(slope_lent.mem()),
        };
        device
            .pool_tangent(shape, ty.mem(), lent.source(), tangent)
            .expect("pool_tangent");
        let want = naive::pool(&shape, &x.tangent(Some(&tx), Some(&slope)));
        let sizes = naive::pool(
            &shape,
            &x.magnitudes().tangent(Some(&abs(&tx)), Some(&abs(&slope))),
        );
        let got = fetch::<D::Act, D>(device, &ty);
        assert_within(
            &format!("ty of {name}"),
            &got,
            &want,
            &self.tolerance(depth, &sizes),
        );

        let dy = self.act(random, shape.y_len());
        let dy_lent = reading::<D::Act, D>(device, &dy);
        let before = self.act(random, x_shape.len());
        for write in [Write::Set, Write::Add] {
            let mut want = naive::pool_input(&shape, &dy);
            if write == Write::Add {
                want = naive::add(&want, &before);
            }
            let sizes = naive::add(&abs(&want), &abs(&before));
            let before = (write == Write::Add).then_some(&before[..]);
            let name = format!("d of {name}, {write:?}");
            self.epilogues(&name, x_shape, 1, &want, &sizes, before, &|d, epilogue| {
                device
                    .pool_backward(shape, d.mem(), write, dy_lent.mem(), epilogue)
                    .expect("pool_backward");
            });
        }
    }
}
