//! Every operation of a device against the oracle, generic over the device: one body for the CPU in f32 and f64 and for
//! kernels. Tolerance of a sum of K products: 4·√K·ε·Σ|a||b|, ε the spacing of the type of sums, plus the rounding of the
//! result where it is stored. A device that rounds the operands of its convolutions is compared with the sum over rounded
//! operands.

use l2b::device::{Device, Element, Epilogue, PoolShape, Rows, Source, Sums, Tangent, Write};

use super::norm::NormBench;
use super::{Operand, Random, assert_within, fetch, naive, reading, writing};

/// A device under test and the precision it promises.
pub struct Setup<'a, D> {
    pub device: &'a D,
    /// Spacing of numbers at 1 in the type of products and stored activations.
    pub eps: f64,
    /// How the operands of a convolution are rounded.
    pub operand: Rounding,
}

/// What becomes of the operands of a convolution.
#[derive(Clone, Copy)]
pub enum Rounding {
    None,
    /// 10 mantissa bits, ties away from zero.
    Tf32,
    Bf16,
}

impl Rounding {
    pub fn apply(self, values: &[f64]) -> Vec<f64> {
        let round = |&value: &f64| match self {
            Rounding::None => value,
            Rounding::Tf32 => {
                let bits = (value as f32).to_bits().wrapping_add(0x1000) & 0xffff_e000;
                f64::from(f32::from_bits(bits))
            }
            // Through f32, as the device has evaluated it.
            Rounding::Bf16 => half::bf16::from_f32(value as f32).to_f64(),
        };
        values.iter().map(round).collect()
    }

    /// Spacing of operands at 1.
    fn spacing(self) -> f64 {
        match self {
            Rounding::None => 0.0,
            Rounding::Tf32 => (-10f64).exp2(),
            Rounding::Bf16 => (-7f64).exp2(),
        }
    }
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
pub struct Lent<D: Device> {
    x: Operand<D>,
    affine: Option<Operand<D>>,
    relu: bool,
}

impl<D: Device> Lent<D> {
    pub fn source(&self) -> Source<'_, D::Arena> {
        Source {
            x: self.x.mem(),
            affine: self.affine.as_ref().map(Operand::mem),
            relu: self.relu,
        }
    }
}

/// What an operation leaves in its output, before a mask.
pub struct Expected<'a> {
    pub shape: Rows,
    /// Products in one value.
    pub depth: usize,
    pub want: &'a [f64],
    /// Σ|a||b| of each value.
    pub sizes: &'a [f64],
    /// What the output holds before; None: nothing.
    pub before: Option<&'a [f64]>,
    /// Of the tolerance, whatever the size: [`Setup::slack`].
    pub slack: f64,
}

/// Names of the four kinds of source: bit 0 affine, bit 1 ReLU.
pub const KINDS: [usize; 4] = [0, 1, 2, 3];

/// Images and windows of pooling (h, w, r, s), some with a rest.
pub const POOLS: [(i32, i32, i32, i32); 5] = [
    (1, 1, 1, 1),
    (5, 7, 5, 7),
    (5, 7, 2, 3),
    (8, 8, 8, 8),
    (4, 4, 2, 2),
];

pub fn rows(rows: usize, channels: i32) -> Rows {
    Rows {
        rows: rows as i32,
        channels,
    }
}

impl<'a, D: Device> Setup<'a, D> {
    pub fn new(device: &'a D) -> Self {
        Setup::rounding(device, Rounding::None)
    }

    /// For a device that rounds the operands of its convolutions.
    pub fn rounding(device: &'a D, operand: Rounding) -> Self {
        Setup {
            device,
            eps: spacing::<D::Act>(),
            operand,
        }
    }

    /// Of a sum in `Real`.
    pub fn tolerance(&self, depth: usize, sizes: &[f64]) -> Vec<f64> {
        let factor = 4.0 * (depth.max(1) as f64).sqrt() * spacing::<D::Real>();
        sizes.iter().map(|size| factor * size + 1e-30).collect()
    }

    /// Of such a sum where it is stored in `Act`.
    pub fn stored_tolerance(&self, depth: usize, sizes: &[f64], want: &[f64]) -> Vec<f64> {
        let rounding = if self.eps > spacing::<D::Real>() {
            self.eps / 2.0
        } else {
            0.0
        };
        let sums = self.tolerance(depth, sizes);
        sums.iter()
            .zip(want)
            .map(|(sum, want)| (1.0 + self.eps) * sum + rounding * want.abs())
            .collect()
    }

    /// One operand that the device evaluated to the other side of a tie than the oracle: evaluated operands are below 8,
    /// filters at most 1. A value of f32 lies that near to a tie once in thousands.
    pub fn slack(&self) -> f64 {
        8.0 * self.operand.spacing()
    }

    pub fn act(&self, random: &mut Random, len: usize) -> Vec<f64> {
        rounded::<D::Act>(random.values(len))
    }

    pub fn real(&self, random: &mut Random, len: usize) -> Vec<f64> {
        rounded::<D::Real>(random.values(len))
    }

    /// A source with no pre-activation so near 0 that rounding could open or close it.
    pub fn random_source(&self, random: &mut Random, shape: Rows, kind: usize) -> naive::Source {
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

    pub fn lend(&self, source: &naive::Source) -> Lent<D> {
        Lent {
            x: reading::<D::Act, D>(self.device, &source.x),
            affine: source
                .affine
                .as_ref()
                .map(|affine| reading::<D::Real, D>(self.device, affine)),
            relu: source.relu,
        }
    }

    /// Runs one operation under every epilogue; `run(out, epilogue)` does it.
    pub fn epilogues(&self, name: &str, expected: &Expected, run: impl Fn(&Operand<D>, Epilogue<D::Arena>)) {
        let Expected { shape, .. } = *expected;
        let mut random = Random::new(77);
        let channels = shape.channels as usize;
        let fresh = || match expected.before {
            Some(values) => reading::<D::Act, D>(self.device, values),
            None => writing::<D::Act, D>(self.device, shape.len()),
        };
        let out = fresh();
        run(&out, Epilogue::none());
        let plain = fetch::<D::Act, D>(self.device, &out);
        let mut tolerance = self.stored_tolerance(expected.depth, expected.sizes, expected.want);
        tolerance.iter_mut().for_each(|t| *t += expected.slack);
        assert_within(name, &plain, expected.want, &tolerance);

        let mask = self.random_source(&mut random, shape, 3);
        let lent = self.lend(&mask);
        let bench = NormBench::new(self, &mut random, shape);

        // Sums alone and with a mask; they must be those of the values as stored.
        let masked = naive::multiply(&plain, &mask.mask());
        for with_mask in [false, true] {
            let out = fresh();
            let sums = Sums::Dot {
                x: lent.x.mem(),
                statistics: bench.statistics.mem(),
                partials: bench.partials.mem(),
            };
            run(
                &out,
                Epilogue {
                    addend: None,
                    mask: with_mask.then(|| lent.source()),
                    sums,
                },
            );
            let stored = fetch::<D::Act, D>(self.device, &out);
            let want = if with_mask { &masked } else { &plain };
            assert_eq!(
                &stored, want,
                "{name}, mask {with_mask}, sums: the mask changes nothing but closed values"
            );
            bench.check_dot(self, &format!("{name}, sums, mask {with_mask}"), &stored, &mask.x);
        }

        let out = fresh();
        let sums = Sums::Moments {
            partials: bench.partials.mem(),
        };
        run(
            &out,
            Epilogue {
                addend: None,
                mask: None,
                sums,
            },
        );
        let stored = fetch::<D::Act, D>(self.device, &out);
        assert_eq!(stored, plain, "{name}: the same bits with sums");
        bench.check_moments(self, &format!("{name}, moments"), &stored, channels);
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
                self.epilogues(
                    &name,
                    &Expected {
                        shape,
                        depth: 4,
                        want: &want,
                        sizes: &sizes,
                        before,
                        slack: 0.0,
                    },
                    |dx, epilogue| {
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
                    },
                );
            }
            let want = naive::add(&a.value(), &b.value());
            let sizes = naive::add(&a.magnitudes().value(), &b.magnitudes().value());
            let name = format!("join of {shape:?} source {kind}");
            self.epilogues(
                &name,
                &Expected {
                    shape,
                    depth: 4,
                    want: &want,
                    sizes: &sizes,
                    before: None,
                    slack: 0.0,
                },
                |y, epilogue| {
                    device
                        .join_forward(shape, y.mem(), a_lent.source(), b_lent.source(), epilogue)
                        .expect("join_forward");
                },
            );
            let want = naive::add(&a.tangent(Some(&ta), Some(&slope)), &b.tangent(Some(&tb), None));
            let sizes = naive::add(
                &a.magnitudes().tangent(Some(&abs(&ta)), Some(&abs(&slope))),
                &b.magnitudes().tangent(Some(&abs(&tb)), None),
            );
            let name = format!("tangent of join of {shape:?} source {kind}");
            self.epilogues(
                &name,
                &Expected {
                    shape,
                    depth: 4,
                    want: &want,
                    sizes: &sizes,
                    before: None,
                    slack: 0.0,
                },
                |ty, epilogue| {
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
                },
            );
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

        let y = writing::<D::Real, D>(device, shape.y_len());
        device
            .pool_forward(shape, y.mem(), lent.source())
            .expect("pool_forward");
        let sizes = naive::pool(&shape, &x.magnitudes().value());
        let got = fetch::<D::Real, D>(device, &y);
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
        let ty = writing::<D::Real, D>(device, shape.y_len());
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
        let got = fetch::<D::Real, D>(device, &ty);
        assert_within(
            &format!("ty of {name}"),
            &got,
            &want,
            &self.tolerance(depth, &sizes),
        );

        let dy = self.real(random, shape.y_len());
        let dy_lent = reading::<D::Real, D>(device, &dy);
        let before = self.act(random, x_shape.len());
        for write in [Write::Set, Write::Add] {
            let mut want = naive::pool_input(&shape, &dy);
            if write == Write::Add {
                want = naive::add(&want, &before);
            }
            let sizes = naive::add(&abs(&want), &abs(&before));
            let before = (write == Write::Add).then_some(&before[..]);
            let name = format!("d of {name}, {write:?}");
            self.epilogues(
                &name,
                &Expected {
                    shape: x_shape,
                    depth: 1,
                    want: &want,
                    sizes: &sizes,
                    before,
                    slack: 0.0,
                },
                |d, epilogue| {
                    device
                        .pool_backward(shape, d.mem(), write, dy_lent.mem(), epilogue)
                        .expect("pool_backward");
                },
            );
        }
    }
}
