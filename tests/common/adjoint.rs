//! ⟨J v, u⟩ = ⟨v, Jᵀ u⟩: tangent and adjoint of every operation against each other, on one device, no oracle between.

use l2b::device::{
    Conv, ConvShape, Device, Epilogue, Geometry, PoolShape, Rows, Source, Statistics, Sums, Tangent, Write,
};

use super::norm::NormBench;
use super::ops::Setup;
use super::{Arranged, Operand, Random, assert_close, fetch, naive, reading, room, writing};

fn dot(a: &[f64], b: &[f64]) -> f64 {
    naive::multiply(a, b).iter().sum()
}

impl<D: Device> Setup<'_, D> {
    /// Both sides of an identity, each a sum of products of two vectors.
    fn assert_adjoint(&self, name: &str, left: &[(&[f64], &[f64])], right: &[(&[f64], &[f64])]) {
        let sum = |pairs: &[(&[f64], &[f64])]| pairs.iter().map(|(a, b)| dot(a, b)).sum::<f64>();
        let size: f64 = [left, right]
            .concat()
            .iter()
            .map(|(a, b)| dot(&naive::magnitudes(a), &naive::magnitudes(b)))
            .sum();
        // The values themselves are sums of at most a few thousand products.
        let tolerance = 64.0 * self.eps * size.max(1e-3);
        assert_close(name, &[sum(left)], &[sum(right)], tolerance, 0.0);
    }

    fn act_lent(&self, values: &[f64]) -> Operand<D> {
        reading::<D::Act, D>(self.device, values)
    }

    fn real_lent(&self, values: &[f64]) -> Operand<D> {
        reading::<D::Real, D>(self.device, values)
    }

    fn act_room(&self, len: usize) -> Operand<D> {
        writing::<D::Act, D>(self.device, len)
    }

    fn real_room(&self, len: usize) -> Operand<D> {
        writing::<D::Real, D>(self.device, len)
    }

    /// Convolution: tangent, both adjoints, and the contraction against the weight's adjoint.
    pub fn conv_adjoint(&self, shape: ConvShape) {
        let device = self.device;
        let random = &mut Random::new(61);
        let name = &format!("{shape:?}");
        let prepared = &device.prepare(&Geometry::Conv(shape)).expect("prepare");
        let scratch = room(device, prepared.scratch_bytes);
        let [x, tx] = [(); 2].map(|()| self.act(random, shape.x_len()));
        let [w, tw] = [(); 2].map(|()| self.real(random, shape.w_len()));
        let tbias = self.real(random, shape.k as usize);
        let dy = self.act(random, shape.y_len());
        let [x_lent, tx_lent, dy_lent] = [&x, &tx, &dy].map(|values| self.act_lent(values));
        let arranged = |values: &[f64]| Arranged::new(device, &shape, prepared, self.real_lent(values));
        let (w_lent, tw_lent, tbias_lent) = (arranged(&w), arranged(&tw), self.real_lent(&tbias));
        let conv = Conv {
            shape: &shape,
            prepared,
            x: Source {
                x: x_lent.mem(),
                affine: None,
                relu: false,
            },
            scratch: scratch.mem(),
        };
        let ty = self.act_room(dy.len());
        let tangent = Tangent {
            tx: Some(tx_lent.mem()),
            slope: None,
        };
        let tbias_mem = Some(tbias_lent.mem());
        device
            .conv_tangent(
                conv,
                ty.mem(),
                tangent,
                w_lent.filters(),
                tw_lent.filters(),
                tbias_mem,
                Epilogue::none(),
            )
            .expect("conv_tangent");
        let d = self.act_room(x.len());
        device
            .conv_backward_input(
                conv,
                d.mem(),
                Write::Set,
                dy_lent.mem(),
                w_lent.filters(),
                Epilogue::none(),
            )
            .expect("conv_backward_input");
        let (dw, dbias) = (self.real_room(w.len()), self.real_room(tbias.len()));
        device
            .conv_backward_weight(conv, dw.mem(), Some(dbias.mem()), Write::Set, dy_lent.mem())
            .expect("conv_backward_weight");
        let (ty, d) = (fetch::<D::Act, D>(device, &ty), fetch::<D::Act, D>(device, &d));
        let (dw, dbias) = (
            fetch::<D::Real, D>(device, &dw),
            fetch::<D::Real, D>(device, &dbias),
        );
        self.assert_adjoint(name, &[(&ty, &dy)], &[(&tx, &d), (&tw, &dw), (&tbias, &dbias)]);

        let zeros = vec![0.0; shape.n as usize];
        let out = self.real_lent(&zeros);
        device
            .conv_contract(conv, out.mem(), dy_lent.mem(), tw_lent.filters(), tbias_mem)
            .expect("conv_contract");
        let out = fetch::<D::Real, D>(device, &out);
        let ones = vec![1.0; out.len()];
        let sizes = [(&tw[..], &dw[..]), (&tbias[..], &dbias[..])];
        self.assert_adjoint(&format!("contraction of {name}"), &[(&out, &ones)], &sizes);
    }

    /// Batch-norm and ReLU end to end: sums, slopes and sources of the tangent against those of the adjoint.
    pub fn norm_adjoint(&self, shape: Rows, statistics: Statistics) {
        let device = self.device;
        let random = &mut Random::new(71);
        let channels = shape.channels as usize;
        let bench = NormBench::new(self, random, shape);
        let [a, b, ta, tb, u] = [(); 5].map(|()| self.act(random, shape.len()));
        let [tgamma, tbeta] = [(); 2].map(|()| self.real(random, channels));
        let [a_lent, b_lent, ta_lent, tb_lent, u_lent] = [&a, &b, &ta, &tb, &u].map(|v| self.act_lent(v));
        let [tgamma_lent, tbeta_lent] = [&tgamma, &tbeta].map(|v| self.real_lent(v));
        let [x, tx, ty, d, dx] = [(); 5].map(|()| self.act_room(shape.len()));
        let identity = |x| Source {
            x,
            affine: None,
            relu: false,
        };
        let stored = |tx| Tangent {
            tx: Some(tx),
            slope: None,
        };
        let partials = bench.partials.mem();
        let sums = |sums| Epilogue {
            addend: None,
            mask: None,
            sums,
        };

        let moments = sums(Sums::Moments { partials });
        device
            .join_forward(
                shape,
                x.mem(),
                identity(a_lent.mem()),
                identity(b_lent.mem()),
                moments,
            )
            .expect("join_forward");
        device
            .norm_forward(bench.norm(), statistics)
            .expect("norm_forward");
        let dots = Sums::Dot {
            x: x.mem(),
            statistics: bench.statistics.mem(),
            partials,
        };
        let normalised = Source {
            x: x.mem(),
            affine: Some(bench.affine.mem()),
            relu: true,
        };

        let (ta, tb) = (stored(ta_lent.mem()), stored(tb_lent.mem()));
        let (a, b) = (identity(a_lent.mem()), identity(b_lent.mem()));
        device
            .join_tangent(shape, tx.mem(), (a, ta), (b, tb), sums(dots))
            .expect("join_tangent");
        device
            .norm_tangent(bench.norm(), statistics, tgamma_lent.mem(), tbeta_lent.mem())
            .expect("norm_tangent");
        let tangent = Tangent {
            tx: Some(tx.mem()),
            slope: Some(bench.slope.mem()),
        };
        let zero = Tangent {
            tx: None,
            slope: None,
        };
        device
            .join_tangent(
                shape,
                ty.mem(),
                (normalised, tangent),
                (a, zero),
                Epilogue::none(),
            )
            .expect("join_tangent");

        let masked = Epilogue {
            addend: None,
            mask: Some(normalised),
            sums: dots,
        };
        device
            .source_backward(
                shape,
                d.mem(),
                Write::Set,
                u_lent.mem(),
                identity(x.mem()),
                None,
                masked,
            )
            .expect("source_backward");
        let (dgamma, dbeta) = (self.real_room(channels), self.real_room(channels));
        device
            .norm_backward(bench.norm(), statistics, dgamma.mem(), dbeta.mem(), Write::Set)
            .expect("norm_backward");
        let slope = Some(bench.slope.mem());
        device
            .source_backward(
                shape,
                dx.mem(),
                Write::Set,
                d.mem(),
                normalised,
                slope,
                Epilogue::none(),
            )
            .expect("source_backward");

        let [tx, ty, dx] = [&tx, &ty, &dx].map(|v| fetch::<D::Act, D>(device, v));
        let [dgamma, dbeta] = [&dgamma, &dbeta].map(|v| fetch::<D::Real, D>(device, v));
        let right = [
            (&tx[..], &dx[..]),
            (&tgamma[..], &dgamma[..]),
            (&tbeta[..], &dbeta[..]),
        ];
        self.assert_adjoint(&format!("norm {shape:?} {statistics:?}"), &[(&ty, &u)], &right);
    }

    /// Pooling.
    pub fn pool_adjoint(&self, shape: PoolShape) {
        let device = self.device;
        let random = &mut Random::new(81);
        let [x, tx] = [(); 2].map(|()| self.act(random, shape.x_len()));
        let dy = self.real(random, shape.y_len());
        let [x_lent, tx_lent] = [&x, &tx].map(|v| self.act_lent(v));
        let dy_lent = self.real_lent(&dy);
        let (ty, d) = (self.real_room(dy.len()), self.act_room(x.len()));
        let source = Source {
            x: x_lent.mem(),
            affine: None,
            relu: false,
        };
        let tangent = Tangent {
            tx: Some(tx_lent.mem()),
            slope: None,
        };
        device
            .pool_tangent(shape, ty.mem(), source, tangent)
            .expect("pool_tangent");
        device
            .pool_backward(shape, d.mem(), Write::Set, dy_lent.mem(), Epilogue::none())
            .expect("pool_backward");
        let (ty, d) = (fetch::<D::Real, D>(device, &ty), fetch::<D::Act, D>(device, &d));
        self.assert_adjoint(&format!("{shape:?}"), &[(&ty, &dy)], &[(&tx, &d)]);
    }
}
