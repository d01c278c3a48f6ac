//! The method's properties (METHOD 1.8, P1 to P12; P13 needs a trained network and stands in `train.rs`) on
//! `Cpu<f64>`: the engine against the definition, not against itself.

mod budget;
mod descent;
mod update;

use crate::network::{
    Net, along, argmax, cross_entropy, cross_entropy_adjoint, dot, labels, preact, uniform,
};
use l2b::device::cpu::Cpu;
use l2b::device::{Device, LossShape, Normalise, Region, Statistics, StepParams, Targets};
use l2b::engine::{
    Engine, EngineOptions, Images, InnerProduct, NormMode, Outcome, Slot, VirtualStep, Weights,
};
use l2b::model::{Init, Model, read, write};
use l2b::net::{Program, Reuse};
use l2b::step::Objective;

const CLASSES: usize = 4;
const N: usize = 9;
const M: usize = 5;

fn program() -> Program {
    preact(4, &[1, 1], 2, [6, 5], CLASSES)
}

fn cpu() -> Cpu<f64> {
    Cpu::new(Some(1)).unwrap()
}

fn net(batch: usize) -> Net<Cpu<f64>> {
    let statistics = Statistics::Batch { update: false };
    Net::new(cpu(), program(), batch, statistics, Reuse::ByLifetime, 5)
}

/// A batch of images and labels.
struct Data {
    images: Vec<f64>,
    labels: Vec<i32>,
}

impl Data {
    fn new(seed: u64, count: usize, pixels: usize, classes: usize) -> Self {
        Data {
            images: uniform(seed, count * pixels),
            labels: labels(seed, count, classes),
        }
    }

    fn train() -> Self {
        Data::new(11, N, 60, CLASSES)
    }

    fn val() -> Self {
        Data::new(12, M, 60, CLASSES)
    }
}

const PARAMS: StepParams = StepParams {
    lr: 0.1,
    lambda: 0.1,
    eta: 1.0,
    mu: 0.9,
    weight_decay: 5e-4,
    clip: 0.0,
    seed: 0,
    step: 0,
    reserved: 0,
};

const PLAIN_SGD: StepParams = StepParams {
    mu: 0.0,
    weight_decay: 0.0,
    ..PARAMS
};

/// An engine at the parameters of `net` with random momentum, fed with the two batches.
fn engine(options: EngineOptions, train: &Data, val: &Data) -> Engine<Cpu<f64>> {
    engine_in(Reuse::ByLifetime, options, train, val)
}

fn engine_in(reuse: Reuse, options: EngineOptions, train: &Data, val: &Data) -> Engine<Cpu<f64>> {
    let reference = net(1);
    let model = Model::new(&cpu(), program(), Init::He, 0).unwrap();
    let mut engine = Engine::new(
        cpu(),
        model,
        options,
        &[train.labels.len(), val.labels.len()],
        reuse,
    )
    .unwrap();
    set_flat(&engine, |e| &e.model.params, &reference.params());
    set_flat(
        &engine,
        |e| &e.model.momentum,
        &momentum(reference.params().len()),
    );
    feed(&mut engine, train, val);
    engine
}

fn feed(engine: &mut Engine<Cpu<f64>>, train: &Data, val: &Data) {
    engine
        .feed(Slot::Train, Images::Values(&train.images), &train.labels)
        .unwrap();
    engine
        .feed(Slot::Meta, Images::Values(&val.images), &val.labels)
        .unwrap();
}

fn momentum(len: usize) -> Vec<f64> {
    uniform(77, len).iter().map(|u| 0.2 * u).collect()
}

fn set_flat<D: Device>(engine: &Engine<D>, arena: impl Fn(&Engine<D>) -> &D::Arena, values: &[f64]) {
    let mut rest = values;
    for region in &engine.model.layout {
        let (head, tail) = rest.split_at(region.bytes / size_of::<D::Real>());
        write::<D>(&engine.device, region.of(arena(engine)), head).unwrap();
        rest = tail;
    }
    assert!(rest.is_empty());
}

fn flat<D: Device>(engine: &Engine<D>, arena: &D::Arena) -> Vec<f64> {
    let regions = engine.model.layout.iter();
    regions
        .flat_map(|r| read::<D>(&engine.device, r.of(arena)).unwrap())
        .collect()
}

fn step(options: EngineOptions, params: &StepParams, train: &Data, val: &Data) -> Outcome {
    let mut engine = engine(options, train, val);
    engine.step(Objective::L2b, params).unwrap();
    engine.outcome(Objective::L2b).unwrap()
}

fn close(what: &str, got: &[f64], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-300, |a: f64, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * scale, "{what} {i}: {g} for {w}");
    }
}

/// Reads a device array of f64.
struct Arrays(Cpu<f64>);

impl Arrays {
    fn put(&self, values: &[f64]) -> (<Cpu<f64> as Device>::Arena, Region) {
        self.bytes(bytemuck::cast_slice(values))
    }

    fn bytes(&self, bytes: &[u8]) -> (<Cpu<f64> as Device>::Arena, Region) {
        let arena = self.0.alloc(bytes.len()).unwrap();
        let region = Region {
            offset: 0,
            bytes: bytes.len(),
        };
        self.0.upload(region.of(&arena), bytes).unwrap();
        (arena, region)
    }
}

fn hard<D: Device>(labels: &(D::Arena, Region)) -> Targets<'_, D::Arena> {
    Targets::Hard(labels.1.of(&labels.0))
}

/// P1: α·CE(p, y) + β·CE(p, ŷ) = CE(p, αy + βŷ) where α + β = 1, and so do their adjoints.
#[test]
fn p1_two_labels_are_one_soft_target() {
    let arrays = Arrays(cpu());
    let shape = LossShape {
        entries: 7,
        classes: 5,
    };
    let (real, pseudo) = (labels(1, 7, 5), labels(2, 7, 5));
    let alpha: Vec<f64> = uniform(3, 7).iter().map(|u| 0.5 + 0.5 * u).collect();
    let beta: Vec<f64> = alpha.iter().map(|a| 1.0 - a).collect();
    let mut soft = vec![0.0; 35];
    for i in 0..7 {
        soft[i * 5 + real[i] as usize] += alpha[i];
        soft[i * 5 + pseudo[i] as usize] += beta[i];
    }
    let z: Vec<f64> = uniform(4, 35).iter().map(|u| 20.0 * u).collect();
    let (z, soft) = (arrays.put(&z), arrays.put(&soft));
    let (real, pseudo) = (
        arrays.bytes(bytemuck::cast_slice(&real)),
        arrays.bytes(bytemuck::cast_slice(&pseudo)),
    );
    let soft = Targets::Soft(soft.1.of(&soft.0));
    let z = z.1.of(&z.0);
    let loss = |targets| {
        let out = arrays.put(&[f64::NAN; 7]);
        arrays
            .0
            .cross_entropy(shape, out.1.of(&out.0), z, targets)
            .unwrap();
        read::<Cpu<f64>>(&arrays.0, out.1.of(&out.0)).unwrap()
    };
    let (f, g, mixed) = (
        loss(hard::<Cpu<f64>>(&real)),
        loss(hard::<Cpu<f64>>(&pseudo)),
        loss(soft),
    );
    let sum: Vec<f64> = (0..7).map(|i| alpha[i] * f[i] + beta[i] * g[i]).collect();
    close("loss", &mixed, &sum, 1e-14);

    let (alpha, beta, ones) = (arrays.put(&alpha), arrays.put(&beta), arrays.put(&[1.0; 7]));
    let adjoint = |first, second| {
        let out = arrays.put(&[f64::NAN; 35]);
        arrays
            .0
            .cross_entropy_backward(shape, out.1.of(&out.0), z, first, second)
            .unwrap();
        read::<Cpu<f64>>(&arrays.0, out.1.of(&out.0)).unwrap()
    };
    let two = adjoint(
        (hard::<Cpu<f64>>(&real), alpha.1.of(&alpha.0)),
        Some((hard::<Cpu<f64>>(&pseudo), beta.1.of(&beta.0))),
    );
    let one = adjoint((soft, ones.1.of(&ones.0)), None);
    close("adjoint", &one, &two, 1e-14);
}

/// P2: raw weights against central differences of the virtual step itself, with every weight bumped in turn: the
/// θ − λ(μ·buf + wd·θ): where momentum and decay alone take θ.
fn drifted(theta: &[f64], params: &StepParams) -> Vec<f64> {
    let drift: Vec<f64> = momentum(theta.len()).iter().map(|b| params.mu * b).collect();
    let drift = along(&drift, params.weight_decay, theta);
    along(theta, -params.lambda, &drift)
}

/// −η times the derivatives at 0 of the meta loss at θ̂(ε) = `at_zero` − λ Σ ε_i ∇ℓ_i, by central differences. `restrict` keeps of a
/// gradient what the virtual step moves.
fn differences(
    params: &StepParams,
    at_zero: &[f64],
    (train, targets): (&Data, &[i32]),
    val: &Data,
    restrict: impl Fn(Vec<f64>) -> Vec<f64>,
) -> Vec<f64> {
    let (on_train, on_val) = (net(N), net(M));
    let derivative = |i: usize| {
        let mut weights = [0.0; N];
        weights[i] = 1.0;
        let logits = on_train.forward(&train.images);
        let gradient = on_train.backward(&cross_entropy_adjoint(&logits, targets, &weights, CLASSES));
        let gradient = restrict(gradient);
        let h = 1e-5;
        let meta_loss = |epsilon: f64| {
            on_val.set_params(&along(at_zero, -params.lambda * epsilon, &gradient));
            let loss = cross_entropy(&on_val.forward(&val.images), &val.labels, CLASSES);
            loss.iter().sum::<f64>() / M as f64
        };
        -params.eta * (meta_loss(h) - meta_loss(-h)) / (2.0 * h)
    };
    (0..N).map(derivative).collect()
}

/// meta loss at θ̂(ε) = θ − λ(μ·buf + Σ ε_i ∇ℓ_i + wd·θ).
#[test]
fn p2_closed_form_is_the_derivative_of_the_virtual_step() {
    let (train, val) = (Data::train(), Data::val());
    for virtual_step in [VirtualStep::Plain, VirtualStep::Momentum] {
        let options = EngineOptions {
            virtual_step,
            ..EngineOptions::default()
        };
        let params = StepParams {
            eta: 1.7,
            lambda: 0.3,
            ..PARAMS
        };
        let outcome = step(options, &params, &train, &val);

        let theta = net(1).params();
        let at_zero = match virtual_step {
            VirtualStep::Plain => theta,
            VirtualStep::Momentum => drifted(&theta, &params),
        };
        let pseudo = argmax(&net(N).forward(&train.images), CLASSES);
        assert_eq!(outcome.pseudo_labels, pseudo);
        for (targets, raw) in [(&train.labels, &outcome.alpha_raw), (&pseudo, &outcome.beta_raw)] {
            let want = differences(&params, &at_zero, (&train, targets), &val, |gradient| gradient);
            close("raw weight", raw, &want, 1e-7);
        }
    }
}

/// P3 and P4: equal labels give equal weights to the bit; the weights sum to 1.
#[test]
fn p3_p4_equal_labels_and_unit_sum() {
    let (mut train, val) = (Data::train(), Data::val());
    let pseudo = argmax(&net(N).forward(&train.images), CLASSES);
    train.labels[..5].copy_from_slice(&pseudo[..5]);
    let o = step(EngineOptions::default(), &PARAMS, &train, &val);
    let mut different = 0;
    for i in 0..N {
        if train.labels[i] == o.pseudo_labels[i] {
            assert_eq!(
                (o.alpha_raw[i], o.alpha[i]),
                (o.beta_raw[i], o.beta[i]),
                "sample {i}"
            );
        } else {
            assert_ne!(o.alpha_raw[i], o.beta_raw[i], "sample {i}");
            different += 1;
        }
    }
    assert!(different > 0);
    let sum: f64 = o.alpha.iter().chain(&o.beta).sum();
    let raw: f64 = o.alpha_raw.iter().chain(&o.beta_raw).map(|r| r.max(0.0)).sum();
    assert!((sum - raw / (raw + 1e-10)).abs() < 1e-14, "{sum}");
    assert!(o.alpha.iter().chain(&o.beta).all(|&w| w >= 0.0));
}

/// METHOD 2.4: sigmoid weights are those of raw weights clamped at 0 where there is no pseudo-label row, and else of the raw
/// ones; the objective alone tells which.
#[test]
fn sigmoid_weights_are_clamped_without_pseudo_labels() {
    let (train, val) = (Data::train(), Data::val());
    let options = EngineOptions {
        normalise: Weights::Sigmoid.normalise(1.0, 0.0),
        ..EngineOptions::default()
    };
    let sigmoid = |r: f64| 1.0 / (1.0 + (-r).exp());
    let shares = |values: Vec<f64>, extra: f64| -> Vec<f64> {
        let sum = values.iter().sum::<f64>() + extra;
        values.iter().map(|v| v / sum).collect()
    };
    for objective in [Objective::Reweight, Objective::L2b] {
        let mut engine = engine(options, &train, &val);
        engine.step(objective, &PARAMS).unwrap();
        let o = engine.outcome(objective).unwrap();
        assert!(o.alpha_raw.iter().any(|r| *r < 0.0));
        if objective == Objective::L2b {
            let raw = [o.alpha_raw, o.beta_raw].concat();
            let want = shares(raw.into_iter().map(sigmoid).collect(), 0.0);
            close("both", &[o.alpha, o.beta].concat(), &want, 1e-12);
        } else {
            let clamped = o.alpha_raw.iter().map(|r| sigmoid(r.max(0.0)));
            close("given", &o.alpha, &shares(clamped.collect(), 1e-10), 1e-12);
        }
    }
}

/// P4: no positive raw weight, no weight. v ↦ −v by meta labels is not possible in general, so through the operation.
#[test]
fn p4_nothing_positive_gives_zero_weights() {
    let arrays = Arrays(cpu());
    let raw = arrays.put(&[-1.0, -0.0, 0.0, -3.0]);
    let out = arrays.put(&[f64::NAN; 4]);
    let params = arrays.bytes(bytemuck::bytes_of(&PARAMS));
    arrays
        .0
        .weights(
            out.1.of(&out.0),
            raw.1.of(&raw.0),
            Normalise::Rectify,
            params.1.of(&params.0),
        )
        .unwrap();
    assert_eq!(read::<Cpu<f64>>(&arrays.0, out.1.of(&out.0)).unwrap(), [0.0; 4]);
}

/// P5: rectified weights do not depend on η; softmax and sigmoid weights do.
#[test]
fn p5_scale_cancels_only_where_it_should() {
    let (train, val) = (Data::train(), Data::val());
    let weights = |normalise, eta| {
        let options = EngineOptions {
            normalise,
            ..EngineOptions::default()
        };
        let o = step(options, &StepParams { eta, ..PARAMS }, &train, &val);
        [o.alpha, o.beta].concat()
    };
    let rectified = |eta| weights(Normalise::Rectify, eta);
    close("rectify", &rectified(300.0), &rectified(1.0), 1e-6);
    for normalise in [Normalise::Softmax { temperature: 1.0 }, Normalise::Sigmoid] {
        let (one, many) = (weights(normalise, 1.0), weights(normalise, 30.0));
        let moved = one
            .iter()
            .zip(&many)
            .fold(0.0, |a: f64, (x, y)| a.max((x - y).abs()));
        assert!(moved > 1e-3, "{normalise:?} moved by {moved}");
    }
}

/// P6: Σα_i = ηλ⟨v, Σ∇f_i⟩.
#[test]
fn p6_summed_weights_are_one_backward_dot_v() {
    let (train, val) = (Data::train(), Data::val());
    let mut engine = engine(EngineOptions::default(), &train, &val);
    engine.step(Objective::L2b, &PARAMS).unwrap();
    let o = engine.outcome(Objective::L2b).unwrap();
    let v = flat(&engine, &engine.v);
    let net = net(N);
    let logits = net.forward(&train.images);
    for (targets, raw) in [(&train.labels, &o.alpha_raw), (&o.pseudo_labels, &o.beta_raw)] {
        let gradient = net.backward(&cross_entropy_adjoint(&logits, targets, &[1.0; N], CLASSES));
        let want = PARAMS.eta * PARAMS.lambda * dot(&v, &gradient);
        close("sum", &[raw.iter().sum()], &[want], 1e-11);
    }
}

/// P10: without its pseudo-label row, L2B is L2RW: the same raw weights, normalised alone.
#[test]
fn p10_without_pseudo_labels_it_is_l2rw() {
    let (train, val) = (Data::train(), Data::val());
    let both = step(EngineOptions::default(), &PARAMS, &train, &val);
    let mut engine = engine(EngineOptions::default(), &train, &val);
    engine.step(Objective::Reweight, &PARAMS).unwrap();
    let o = engine.outcome(Objective::Reweight).unwrap();
    assert_eq!(o.alpha_raw, both.alpha_raw);
    let sum: f64 = o.alpha_raw.iter().map(|r| r.max(0.0)).sum();
    let want: Vec<f64> = o.alpha_raw.iter().map(|r| r.max(0.0) / (sum + 1e-10)).collect();
    close("weights", &o.alpha, &want, 1e-14);
    assert_eq!(o.beta, vec![0.0; N]);
}

/// P11: the meta pass leaves parameters, momentum and running statistics as they are, to the bit.
#[test]
fn p11_the_meta_pass_changes_nothing() {
    for norm in [NormMode::Batch, NormMode::Frozen] {
        let options = EngineOptions {
            norm,
            ..EngineOptions::default()
        };
        let engine = engine(options, &Data::train(), &Data::val());
        engine.set_step(&PARAMS).unwrap();
        let state = || {
            (
                flat(&engine, &engine.model.params),
                flat(&engine, &engine.model.momentum),
                engine.model.read_running(&engine.device).unwrap(),
            )
        };
        let before = state();
        engine.meta_gradient().unwrap();
        assert_eq!(state(), before, "{norm:?}");
        assert!(flat(&engine, &engine.v).iter().any(|&v| v != 0.0));
    }
}

/// P12: −v flips every raw weight exactly; a permuted train batch has permuted weights.
#[test]
fn p12_sign_and_order() {
    let net = net(N);
    let images = Data::train().images;
    net.forward(&images);
    let v = uniform(3, net.params().len());
    let minus: Vec<f64> = v.iter().map(|v| -v).collect();
    let flipped: Vec<f64> = net.tangent(&minus).iter().map(|t| -t).collect();
    assert_eq!(net.tangent(&v), flipped);

    let (train, val) = (Data::train(), Data::val());
    let order = [4, 0, 8, 2, 6, 1, 7, 3, 5];
    let permuted = Data {
        images: order
            .iter()
            .flat_map(|&i| train.images[i * 60..(i + 1) * 60].to_vec())
            .collect(),
        labels: order.iter().map(|&i| train.labels[i]).collect(),
    };
    let (a, b) = (
        step(EngineOptions::default(), &PARAMS, &train, &val),
        step(EngineOptions::default(), &PARAMS, &permuted, &val),
    );
    let pick = |values: &[f64]| order.iter().map(|&i| values[i]).collect::<Vec<_>>();
    close("alpha", &b.alpha_raw, &pick(&a.alpha_raw), 1e-10);
    close("beta", &b.beta_raw, &pick(&a.beta_raw), 1e-10);
}
