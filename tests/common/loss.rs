//! Loss, weights and optimizer against the oracle. All values are `Real`.

use l2b::device::{Device, Element, LossShape, Mem, Normalise, StepParams, Targets};

use super::ops::{Setup, rounded, spacing};
use super::{
    Operand, Random, assert_close, assert_within, fetch, fetch_raw, naive, raw, reading, room, writing,
};

impl<D: Device> Setup<'_, D> {
    /// Pseudo labels, loss, its adjoint, the tangent's inner products.
    pub fn loss(&self, shape: LossShape) {
        let device = self.device;
        let random = &mut Random::new(31);
        let (entries, classes) = (shape.entries as usize, shape.classes as usize);
        let name = &format!("{shape:?}");
        let len = entries * classes;
        // Logits of all sizes; every fifth entry far out, where exp(z) itself would overflow or vanish.
        let z: Vec<f64> = random
            .values(len)
            .iter()
            .enumerate()
            .map(|(i, z)| z * if i / classes % 5 == 4 { 300.0 } else { 4.0 })
            .collect();
        let mut z = rounded::<D::Real>(z);
        // Ties for the largest, in the last two classes.
        if classes > 1 {
            z[len - 1] = 5.0;
            z[len - 2] = 5.0;
        }
        let tz = self.real(random, len);
        let labels: Vec<i32> = (0..entries).map(|_| random.below(classes) as i32).collect();
        let mut soft = random.range(len, 0.01, 1.0);
        for row in soft.chunks_mut(classes) {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|t| *t /= sum);
        }
        let soft = rounded::<D::Real>(soft);
        let (z_lent, tz_lent) = (
            reading::<D::Real, D>(device, &z),
            reading::<D::Real, D>(device, &tz),
        );
        let hard_lent = raw(device, &labels);
        let soft_lent = reading::<D::Real, D>(device, &soft);

        let pseudo = room(device, 4 * entries);
        device
            .pseudo_labels(shape, pseudo.mem(), z_lent.mem())
            .expect("pseudo_labels");
        let pseudo_labels = fetch_raw::<D, i32>(device, &pseudo);
        for (i, z) in z.chunks(classes).enumerate() {
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let want = z.iter().position(|&z| z == largest).expect("a largest logit") as i32;
            assert_eq!(pseudo_labels[i], want, "pseudo label {i} of {name}, logits {z:?}");
        }

        let p = naive::softmax(&z, classes);
        let log_p = naive::log_softmax(&z, classes);
        let weights = self.real(random, entries);
        let other_weights = self.real(random, entries);
        let weights_lent = reading::<D::Real, D>(device, &weights);
        let other_lent = reading::<D::Real, D>(device, &other_weights);
        let spread =
            |w: &[f64]| -> Vec<f64> { w.iter().flat_map(|&w| std::iter::repeat_n(w, classes)).collect() };
        let eps = 16.0 * spacing::<D::Real>();
        for (kind, t) in [("hard", naive::one_hot(&labels, classes)), ("soft", soft.clone())] {
            let targets = match kind {
                "hard" => Targets::Hard(hard_lent.mem()),
                _ => Targets::Soft(soft_lent.mem()),
            };
            let loss = writing::<D::Real, D>(device, entries);
            device
                .cross_entropy(shape, loss.mem(), z_lent.mem(), targets)
                .expect("cross_entropy");
            let want: Vec<f64> = naive::row_sums(&naive::multiply(&t, &log_p), classes)
                .iter()
                .map(|sum| -sum)
                .collect();
            let got = fetch::<D::Real, D>(device, &loss);
            assert_close(
                &format!("{kind} loss of {name}"),
                &got,
                &want,
                eps,
                eps * (classes as f64).sqrt(),
            );

            let difference: Vec<f64> = p.iter().zip(&t).map(|(p, t)| p - t).collect();
            let raw_weights = writing::<D::Real, D>(device, entries);
            device
                .tangent_dot(shape, raw_weights.mem(), z_lent.mem(), tz_lent.mem(), targets)
                .expect("tangent_dot");
            let want = naive::row_sums(&naive::multiply(&difference, &tz), classes);
            let sizes = vec![4.0 * (classes as f64).sqrt(); entries];
            let got = fetch::<D::Real, D>(device, &raw_weights);
            let tolerance = self.real_tolerance(classes, &sizes);
            assert_within(
                &format!("{kind} inner products of {name}"),
                &got,
                &want,
                &tolerance,
            );

            let dz = writing::<D::Real, D>(device, len);
            let first = (targets, weights_lent.mem());
            device
                .cross_entropy_backward(shape, dz.mem(), z_lent.mem(), first, None)
                .expect("one term");
            let want = naive::multiply(&spread(&weights), &difference);
            let got = fetch::<D::Real, D>(device, &dz);
            assert_close(
                &format!("{kind} dz of {name}"),
                &got,
                &want,
                16.0 * spacing::<D::Real>(),
                16.0 * spacing::<D::Real>(),
            );

            let dz = writing::<D::Real, D>(device, len);
            let second = Some((Targets::Hard(pseudo.mem()), other_lent.mem()));
            device
                .cross_entropy_backward(shape, dz.mem(), z_lent.mem(), first, second)
                .expect("two terms");
            let to_pseudo: Vec<f64> = p
                .iter()
                .zip(naive::one_hot(&pseudo_labels, classes))
                .map(|(p, t)| p - t)
                .collect();
            let want = naive::add(&want, &naive::multiply(&spread(&other_weights), &to_pseudo));
            let got = fetch::<D::Real, D>(device, &dz);
            assert_close(
                &format!("{kind} dz of two terms of {name}"),
                &got,
                &want,
                32.0 * spacing::<D::Real>(),
                32.0 * spacing::<D::Real>(),
            );
        }

        // Equal labels give equal bits, wherever they come from (METHOD 1.8, P3).
        let copy = raw(device, &pseudo_labels);
        let [a, b] = [&copy, &pseudo].map(|labels| {
            let out = writing::<D::Real, D>(device, entries);
            let targets = Targets::Hard(labels.mem());
            device
                .tangent_dot(shape, out.mem(), z_lent.mem(), tz_lent.mem(), targets)
                .expect("tangent_dot");
            fetch::<D::Real, D>(device, &out)
        });
        assert_eq!(a, b, "inner products of equal labels");
    }

    /// The four normalisations over `len` raw weights, and on none positive.
    pub fn weights(&self, len: usize) {
        let device = self.device;
        let random = &mut Random::new(41);
        let step = StepParams {
            eta: 1.5,
            lambda: 2.0,
            ..step_params()
        };
        let step_lent = raw(device, &[step]);
        let spread = self.real(random, len);
        let negative: Vec<f64> = spread.iter().map(|r| -r.abs()).collect();
        for r in [spread, negative] {
            let scaled: Vec<f64> = r.iter().map(|r| 3.0 * r).collect();
            let positive: Vec<f64> = scaled.iter().map(|r| r.max(0.0)).collect();
            let sigmoid: Vec<f64> = scaled.iter().map(|r| 1.0 / (1.0 + (-r).exp())).collect();
            let sum = |values: &[f64]| values.iter().sum::<f64>();
            let tenth: Vec<f64> = scaled.iter().map(|r| r / 10.0).collect();
            let soft = naive::softmax(&scaled, len);
            // Between the smallest and largest weight, away from every weight.
            let mut sorted = soft.clone();
            sorted.sort_by(f64::total_cmp);
            let threshold = if len > 1 {
                (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0
            } else {
                0.5
            };
            let over = |value: &f64, total: f64| value / total;
            let above_half: Vec<f64> = positive.iter().map(|r| 1.0 / (1.0 + (-r).exp())).collect();
            let cases: [(Normalise, Vec<f64>); 5] = [
                (
                    Normalise::Rectify,
                    positive.iter().map(|v| over(v, sum(&positive) + 1e-10)).collect(),
                ),
                (
                    Normalise::Softmax { temperature: 10.0 },
                    naive::softmax(&tenth, len),
                ),
                (
                    Normalise::Sigmoid,
                    sigmoid.iter().map(|v| over(v, sum(&sigmoid))).collect(),
                ),
                (
                    Normalise::RectifiedSigmoid,
                    above_half
                        .iter()
                        .map(|v| over(v, sum(&above_half) + 1e-10))
                        .collect(),
                ),
                (
                    Normalise::Hard { threshold },
                    soft.iter()
                        .map(|&v| if v <= threshold { 0.0 } else { v })
                        .collect(),
                ),
            ];
            for (normalise, want) in cases {
                let raw_lent = reading::<D::Real, D>(device, &r);
                let out = writing::<D::Real, D>(device, len);
                device
                    .weights(out.mem(), raw_lent.mem(), normalise, step_lent.mem())
                    .expect("weights");
                let eps = 16.0 * (len as f64).sqrt() * spacing::<D::Real>();
                let got = fetch::<D::Real, D>(device, &out);
                assert_close(&format!("{normalise:?} of {len}"), &got, &want, 1e-30, eps);
                let got = fetch::<D::Real, D>(device, &raw_lent);
                assert_close(&format!("raw of {len}"), &got, &scaled, 1e-30, eps);
            }
        }
    }

    /// Look-ahead, norm and the SGD step over `len` parameters, clipped and not.
    pub fn optimizer(&self, len: usize) {
        let device = self.device;
        let random = &mut Random::new(51);
        let [theta, buf, g] = [(); 3].map(|()| self.real(random, len));
        let [theta_lent, g_lent] = [&theta, &g].map(|values| reading::<D::Real, D>(device, values));
        let eps = 8.0 * spacing::<D::Real>();

        let scratch = room(device, device.gradient_norm_scratch_bytes(len));
        let norm_lent = writing::<D::Real, D>(device, 1);
        device
            .gradient_norm(norm_lent.mem(), g_lent.mem(), scratch.mem())
            .expect("gradient_norm");
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let got = fetch::<D::Real, D>(device, &norm_lent);
        assert_close(
            &format!("norm of {len}"),
            &got,
            &[norm],
            0.0,
            eps * (len as f64).sqrt(),
        );

        for clip in [0.0, norm * 2.0, norm / 3.0] {
            let step = StepParams {
                clip,
                ..step_params()
            };
            let step_lent = raw(device, &[step]);
            let buf_lent = reading::<D::Real, D>(device, &buf);
            let out = writing::<D::Real, D>(device, len);
            device
                .lookahead(out.mem(), theta_lent.mem(), buf_lent.mem(), step_lent.mem())
                .expect("lookahead");
            let want: Vec<f64> = theta
                .iter()
                .zip(&buf)
                .map(|(t, b)| t - step.lambda * (step.mu * b + step.weight_decay * t))
                .collect();
            let got = fetch::<D::Real, D>(device, &out);
            assert_close(&format!("lookahead of {len}"), &got, &want, eps, eps);

            let new_theta = reading::<D::Real, D>(device, &theta);
            let sgd = |stopped: u32| {
                let stopped = raw(device, &[stopped]);
                let (theta, buf) = (new_theta.mem(), buf_lent.mem());
                let (g, norm) = (g_lent.mem(), norm_lent.mem());
                device.sgd(theta, buf, g, norm, stopped.mem(), step_lent.mem())
            };
            sgd(1).expect("stopped sgd");
            assert_eq!(fetch::<D::Real, D>(device, &new_theta), theta);
            assert_eq!(fetch::<D::Real, D>(device, &buf_lent), buf);
            sgd(0).expect("sgd");
            let factor = if clip == 0.0 {
                1.0
            } else {
                (clip / (norm + 1e-6)).min(1.0)
            };
            let want_buf: Vec<f64> = (0..len)
                .map(|i| step.mu * buf[i] + factor * g[i] + step.weight_decay * theta[i])
                .collect();
            let want: Vec<f64> = theta
                .iter()
                .zip(&want_buf)
                .map(|(t, b)| t - step.lr * b)
                .collect();
            let eps = eps * (len as f64).sqrt();
            let got = fetch::<D::Real, D>(device, &buf_lent);
            assert_close(
                &format!("momentum of {len}, clip {clip}"),
                &got,
                &want_buf,
                eps,
                eps,
            );
            let got = fetch::<D::Real, D>(device, &new_theta);
            assert_close(&format!("theta of {len}, clip {clip}"), &got, &want, eps, eps);
        }
    }
}

/// The first step in which anything is not finite is written down, and no later one.
pub fn watching<D: Device>(device: &D) {
    let stopped = raw(device, &[0u32]);
    let number = || fetch_raw::<D, u32>(device, &stopped)[0];
    let watch = |values: &[&[f64]], step: u32| {
        let lent: Vec<Operand<D>> = values
            .iter()
            .map(|values| reading::<D::Real, D>(device, values))
            .collect();
        let spans: Vec<Mem<D>> = lent.iter().map(Operand::mem).collect();
        let step = raw(
            device,
            &[StepParams {
                step,
                ..step_params()
            }],
        );
        device.watch(stopped.mem(), &spans, step.mem()).expect("watch");
    };
    let largest = D::Real::from_f64(3.0e38).to_f64();
    let fine = vec![-largest; 1000];
    watch(&[&fine, &[0.0], &[largest]], 4);
    assert_eq!(number(), 0);
    for (bad, at) in [(f64::NAN, 999), (f64::INFINITY, 0), (f64::NEG_INFINITY, 300)] {
        device.fill(stopped.mem(), 0).expect("fill");
        let mut values = fine.clone();
        values[at] = bad;
        watch(&[&[1.0], &[2.0], &[3.0], &values], 5);
        assert_eq!(number(), 6, "{bad}");
        watch(&[&values], 7);
        watch(&[&fine], 8);
        assert_eq!(number(), 6, "{bad}");
    }
}

/// Distinct values in every field.
fn step_params() -> StepParams {
    StepParams {
        lr: 0.125,
        lambda: 0.25,
        eta: 1.0,
        mu: 0.75,
        weight_decay: 0.03125,
        clip: 0.0,
        seed: 7,
        step: 3,
        reserved: 0,
    }
}
