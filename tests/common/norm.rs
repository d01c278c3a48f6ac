//! Batch-norm against the oracle. Its results are sums in `Real` (or wider), so tolerances are relative to its spacing.

use l2b::device::{Device, Element, Norm, Rows, Statistics, Write};

use super::ops::{Setup, rounded, spacing};
use super::{Operand, Random, assert_close, assert_within, fetch, naive, reading, room, writing};

/// The operands of one batch-norm.
pub struct NormBench<D: Device> {
    shape: Rows,
    gamma: (Vec<f64>, Operand<D>),
    beta: (Vec<f64>, Operand<D>),
    running_mean: (Vec<f64>, Operand<D>),
    running_var: (Vec<f64>, Operand<D>),
    /// mean, rstd: made up until a forward pass writes them.
    pub statistics: Operand<D>,
    made_up: Vec<f64>,
    pub affine: Operand<D>,
    pub slope: Operand<D>,
    pub partials: Operand<D>,
}

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

impl<D: Device> NormBench<D> {
    pub fn new(setup: &Setup<D>, random: &mut Random, shape: Rows) -> Self {
        let channels = shape.channels as usize;
        let device = setup.device;
        let lent = |values: Vec<f64>| {
            let values = rounded::<D::Real>(values);
            (values.clone(), reading::<D::Real, D>(device, &values))
        };
        let mut made_up = random.values(channels);
        made_up.extend(random.range(channels, 0.5, 2.0));
        let made_up = rounded::<D::Real>(made_up);
        NormBench {
            shape,
            gamma: lent(random.range(channels, 0.5, 1.5)),
            beta: lent(random.values(channels)),
            running_mean: lent(random.values(channels)),
            running_var: lent(random.range(channels, 0.5, 1.5)),
            statistics: reading::<D::Real, D>(device, &made_up),
            made_up,
            affine: writing::<D::Real, D>(device, 3 * channels),
            slope: writing::<D::Real, D>(device, 2 * channels),
            partials: room(device, device.partials_bytes(shape)),
        }
    }

    pub fn norm(&self) -> Norm<'_, D::Arena> {
        Norm {
            shape: self.shape,
            eps: EPS,
            momentum: MOMENTUM,
            gamma: self.gamma.1.mem(),
            beta: self.beta.1.mem(),
            running_mean: self.running_mean.1.mem(),
            running_var: self.running_var.1.mem(),
            statistics: self.statistics.mem(),
            affine: self.affine.mem(),
            slope: self.slope.mem(),
            partials: self.partials.mem(),
        }
    }

    /// That the partials are Σ u and Σ u·x̂ of these stored values: through dγ and dβ, set and added, and the slope.
    pub fn check_dot(&self, setup: &Setup<D>, name: &str, u: &[f64], x: &[f64]) {
        let device = setup.device;
        let channels = self.shape.channels as usize;
        let (mean, rstd) = self.made_up.split_at(channels);
        let x_hat: Vec<f64> = x
            .iter()
            .enumerate()
            .map(|(i, x)| (x - mean[i % channels]) * rstd[i % channels])
            .collect();
        let abs = naive::magnitudes;
        let sum = naive::column_sums(u, channels);
        let product = naive::column_sums(&naive::multiply(u, &x_hat), channels);
        let sum_size = naive::column_sums(&abs(u), channels);
        // Neither term of x − mean may be large against the difference: they are all of order 1.
        let x_size: Vec<f64> = x_hat.iter().map(|x| x.abs() + 4.0).collect();
        let product_size = naive::column_sums(&naive::multiply(&abs(u), &x_size), channels);
        let tolerance = |sizes: &[f64]| setup.real_tolerance(self.shape.rows as usize, sizes);

        let a: Vec<f64> = self
            .gamma
            .0
            .iter()
            .zip(rstd)
            .map(|(gamma, rstd)| gamma * rstd)
            .collect();
        let mut affine = a.clone();
        affine.extend(&self.beta.0);
        affine.extend(mean);
        let affine = rounded::<D::Real>(affine);
        device
            .upload(self.affine.mem(), bytemuck::cast_slice(&to_real::<D>(&affine)))
            .expect("upload");
        let before = rounded::<D::Real>(Random::new(9).values(2 * channels));
        for (write, statistics) in [
            (Write::Set, Statistics::Batch { update: false }),
            (Write::Add, Statistics::Running),
        ] {
            let dgamma = reading::<D::Real, D>(device, &before[..channels]);
            let dbeta = reading::<D::Real, D>(device, &before[channels..]);
            device
                .norm_backward(self.norm(), statistics, dgamma.mem(), dbeta.mem(), write)
                .expect("norm_backward");
            let old = |range: &[f64]| {
                if write == Write::Add {
                    range.to_vec()
                } else {
                    vec![0.0; channels]
                }
            };
            let (old_gamma, old_beta) = (old(&before[..channels]), old(&before[channels..]));
            let got = fetch::<D::Real, D>(device, &dgamma);
            let sizes = naive::add(&product_size, &abs(&old_gamma));
            assert_within(
                &format!("dgamma of {name}"),
                &got,
                &naive::add(&product, &old_gamma),
                &tolerance(&sizes),
            );
            let got = fetch::<D::Real, D>(device, &dbeta);
            let sizes = naive::add(&sum_size, &abs(&old_beta));
            assert_within(
                &format!("dbeta of {name}"),
                &got,
                &naive::add(&sum, &old_beta),
                &tolerance(&sizes),
            );

            let batch = if statistics == Statistics::Running {
                0.0
            } else {
                1.0 / f64::from(self.shape.rows)
            };
            let mut want = vec![0.0; 2 * channels];
            let mut sizes = vec![0.0; 2 * channels];
            for k in 0..channels {
                want[k] = -affine[k] * rstd[k] * product[k] * batch;
                sizes[k] = (affine[k] * rstd[k] * product_size[k] * batch).abs();
                want[channels + k] = -affine[k] * sum[k] * batch;
                sizes[channels + k] = (affine[k] * sum_size[k] * batch).abs();
            }
            let got = fetch::<D::Real, D>(device, &self.slope);
            assert_within(
                &format!("adjoint slope of {name}"),
                &got,
                &want,
                &tolerance(&sizes),
            );
        }

        let tgamma = rounded::<D::Real>(Random::new(11).values(channels));
        let tbeta = rounded::<D::Real>(Random::new(12).values(channels));
        for statistics in [Statistics::Batch { update: false }, Statistics::Running] {
            let (tgamma_lent, tbeta_lent) = (
                reading::<D::Real, D>(device, &tgamma),
                reading::<D::Real, D>(device, &tbeta),
            );
            device
                .norm_tangent(self.norm(), statistics, tgamma_lent.mem(), tbeta_lent.mem())
                .expect("norm_tangent");
            let batch = if statistics == Statistics::Running {
                0.0
            } else {
                1.0 / f64::from(self.shape.rows)
            };
            let mut want = vec![0.0; 2 * channels];
            let mut sizes = vec![0.0; 2 * channels];
            for k in 0..channels {
                let (m1, m2) = (sum[k] * batch, product[k] * batch);
                let slope = (tgamma[k] - self.gamma.0[k] * rstd[k] * m2) * rstd[k];
                want[k] = slope;
                want[channels + k] = tbeta[k] - affine[k] * m1;
                sizes[k] = (tgamma[k].abs() + self.gamma.0[k] * rstd[k] * product_size[k] * batch) * rstd[k];
                sizes[channels + k] = tbeta[k].abs() + affine[k] * sum_size[k] * batch;
            }
            let got = fetch::<D::Real, D>(device, &self.slope);
            assert_within(
                &format!("tangent slope of {name}"),
                &got,
                &want,
                &tolerance(&sizes),
            );
        }
    }

    /// That the partials are the moments of these stored values: through the statistics, affine and running values.
    pub fn check_moments(&self, setup: &Setup<D>, name: &str, u: &[f64], channels: usize) {
        let device = setup.device;
        let rows = self.shape.rows as usize;
        let (mean, m2) = naive::moments(u, channels);
        let largest = u.iter().fold(0.0, |a: f64, u| a.max(u.abs()));
        let update = |running: &[f64], batch: &[f64]| -> Vec<f64> {
            running
                .iter()
                .zip(batch)
                .map(|(r, b)| (1.0 - MOMENTUM) * r + MOMENTUM * b)
                .collect()
        };
        let unbiased: Vec<f64> = m2.iter().map(|m2| m2 / (rows.max(2) - 1) as f64).collect();
        let var: Vec<f64> = m2.iter().map(|m2| m2 / rows as f64).collect();
        let (new_mean, new_var) = (
            update(&self.running_mean.0, &mean),
            update(&self.running_var.0, &unbiased),
        );
        // In this order: the running values must still be the old ones after a pass that does not update them.
        for (statistics, mean, var, running_mean, running_var) in [
            (
                Statistics::Running,
                &self.running_mean.0,
                &self.running_var.0,
                None,
                None,
            ),
            (Statistics::Batch { update: false }, &mean, &var, None, None),
            (
                Statistics::Batch { update: true },
                &mean,
                &var,
                Some(&new_mean),
                Some(&new_var),
            ),
        ] {
            let name = &format!("{name}, {statistics:?}");
            device
                .norm_forward(self.norm(), statistics)
                .expect("norm_forward");
            let eps = 8.0 * (rows as f64).sqrt() * spacing::<D::Real>();
            let got = fetch::<D::Real, D>(device, &self.statistics);
            let (got_mean, got_rstd) = got.split_at(channels);
            assert_close(
                &format!("mean of {name}"),
                got_mean,
                mean,
                eps * largest.max(1.0),
                eps,
            );
            // The variance is right to ε·largest²; where it is smaller than that only its bound counts.
            let error: Vec<f64> = var
                .iter()
                .map(|var| eps * (largest * largest * 0.1 + var))
                .collect();
            for k in 0..channels {
                let rstd = |var: f64| 1.0 / (var + EPS).sqrt();
                let (low, high) = (rstd(var[k] + error[k]), rstd((var[k] - error[k]).max(0.0)));
                let slack = 4.0 * spacing::<D::Real>();
                assert!(
                    (low * (1.0 - slack)..=high * (1.0 + slack)).contains(&got_rstd[k]),
                    "rstd of {name}[{k}]: got {}, want {low}..{high}",
                    got_rstd[k]
                );
            }
            let mut affine = Vec::new();
            affine.extend(
                self.gamma
                    .0
                    .iter()
                    .zip(got_rstd)
                    .map(|(gamma, rstd)| gamma * rstd),
            );
            affine.extend(&self.beta.0);
            affine.extend(got_mean);
            let got = fetch::<D::Real, D>(device, &self.affine);
            let size = affine.iter().fold(1.0, |a: f64, v| a.max(v.abs()));
            // ε·rstd² for the rounding of the variance that rstd shares with A.
            assert_close(
                &format!("affine of {name}"),
                &got,
                &affine,
                8.0 * spacing::<D::Real>() * size,
                0.0,
            );
            let running_mean = running_mean.unwrap_or(&self.running_mean.0);
            let got = fetch::<D::Real, D>(device, &self.running_mean.1);
            assert_close(
                &format!("running mean of {name}"),
                &got,
                running_mean,
                eps * largest.max(1.0),
                eps,
            );
            let running_var = running_var.unwrap_or(&self.running_var.0);
            let got = fetch::<D::Real, D>(device, &self.running_var.1);
            let atol = eps * largest * largest;
            assert_close(&format!("running var of {name}"), &got, running_var, atol, eps);
        }
        // As they were, for the next check.
        for (values, operand) in [
            (&self.running_mean.0, &self.running_mean.1),
            (&self.running_var.0, &self.running_var.1),
            (&self.made_up, &self.statistics),
        ] {
            let values = to_real::<D>(values);
            device
                .upload(operand.mem(), bytemuck::cast_slice(&values))
                .expect("upload");
        }
    }
}

fn to_real<D: Device>(values: &[f64]) -> Vec<D::Real> {
    values.iter().map(|&value| D::Real::from_f64(value)).collect()
}

impl<D: Device> Setup<'_, D> {
    /// As [`Setup::tolerance`], for sums of stored values in `Real`.
    pub fn real_tolerance(&self, depth: usize, sizes: &[f64]) -> Vec<f64> {
        let factor = 4.0 * (depth.max(1) as f64).sqrt() * spacing::<D::Real>();
        sizes.iter().map(|size| factor * size + 1e-30).collect()
    }

    /// Per-sample contraction of batch-norm parameters.
    pub fn norm_contract(&self, shape: Rows, samples: usize) {
        let device = self.device;
        let random = &mut Random::new(21);
        let channels = shape.channels as usize;
        let bench = NormBench::new(self, random, shape);
        let (x, d) = (self.act(random, shape.len()), self.act(random, shape.len()));
        let (tgamma, tbeta) = (self.real(random, channels), self.real(random, channels));
        let before = self.real(random, samples);
        let out = reading::<D::Real, D>(device, &before);
        let [x_lent, d_lent] = [&x, &d].map(|values| reading::<D::Act, D>(device, values));
        let [tgamma_lent, tbeta_lent] = [&tgamma, &tbeta].map(|values| reading::<D::Real, D>(device, values));
        device
            .norm_contract(
                bench.norm(),
                samples,
                out.mem(),
                x_lent.mem(),
                d_lent.mem(),
                tgamma_lent.mem(),
                tbeta_lent.mem(),
            )
            .expect("norm_contract");
        let (mean, rstd) = bench.made_up.split_at(channels);
        let value = |i: usize| {
            let k = i % channels;
            d[i] * (tgamma[k] * (x[i] - mean[k]) * rstd[k] + tbeta[k])
        };
        let values: Vec<f64> = (0..x.len()).map(value).collect();
        let sample = x.len() / samples;
        let want = naive::add(&before, &naive::row_sums(&values, sample));
        let sizes: Vec<f64> = naive::row_sums(&naive::magnitudes(&d), sample)
            .iter()
            .map(|sum| 6.0 * sum + 1.0)
            .collect();
        let got = fetch::<D::Real, D>(device, &out);
        let tolerance = self.real_tolerance(sample, &sizes);
        assert_within(&format!("norm contraction {shape:?}"), &got, &want, &tolerance);
    }
}
