//! Descent of the meta loss: P7 to P9.

use super::*;

/// P7: ⟨∇G, Δθ⟩ ≤ 0 for plain SGD with v at θ, with normalised weights (the engine's step), clamped and raw ones.
#[test]
fn p7_the_update_descends_the_meta_loss() {
    let (train, val) = (Data::train(), Data::val());
    let options = EngineOptions {
        virtual_step: VirtualStep::Plain,
        ..EngineOptions::default()
    };
    let mut engine = engine(options, &train, &val);
    let before = flat(&engine, &engine.model.params);
    set_flat(&engine, |e| &e.model.momentum, &vec![0.0; before.len()]);
    engine.step(Objective::L2b, &PLAIN_SGD).unwrap();
    let o = engine.outcome(Objective::L2b).unwrap();
    let v = flat(&engine, &engine.v);
    let moved = along(&flat(&engine, &engine.model.params), -1.0, &before);
    assert!(dot(&v, &moved) < 0.0);

    let net = net(N);
    let logits = net.forward(&train.images);
    let descent = |alpha: &[f64], beta: &[f64]| {
        let d = cross_entropy_adjoint(&logits, &train.labels, alpha, CLASSES);
        let d = along(
            &d,
            1.0,
            &cross_entropy_adjoint(&logits, &o.pseudo_labels, beta, CLASSES),
        );
        net.forward(&train.images);
        -PLAIN_SGD.lr * dot(&v, &net.backward(&d))
    };
    let clamp = |raw: &[f64]| raw.iter().map(|r| r.max(0.0)).collect::<Vec<_>>();
    let squares = |raw: &[f64]| raw.iter().map(|r| r * r).sum::<f64>();
    let (a, b) = (&o.alpha_raw, &o.beta_raw);
    // −λ Σ(a² + b²)/(ηλ): equality, not only the sign.
    close("raw", &[descent(a, b)], &[-(squares(a) + squares(b))], 1e-11);
    let (a, b) = (clamp(a), clamp(b));
    close(
        "clamped",
        &[descent(&a, &b)],
        &[-(squares(&a) + squares(&b))],
        1e-11,
    );
}

/// P8: on a smooth problem (a linear model) the meta loss never rises while λ keeps below the corrected bound of
/// METHOD 1.7 for normalised weights, λ < 2 Σ(a⁺² + b⁺²) / (s·Lip·σ²). The paper's own bound, λ² < 2/(σ²·Lip), is not
/// enough: in one dimension with G = Lip·θ²/2, n = 1, f = g = f_val, η = c = 1 a step takes θ to θ·(1 − 2λ²·Lip³θ²), which for
/// Lip = θ = 1 just under that bound is nearly −3·θ.
#[test]
fn p8_descent_under_the_corrected_bound() {
    let classes = 3;
    let mut program = Program::new(1, 1, 6);
    let x = program.global_pool(0);
    program.linear("linear", x, classes);
    let (n, m) = (8, 6);
    let (train, val) = (Data::new(1, n, 6, classes), Data::new(2, m, 6, classes));
    let options = EngineOptions {
        virtual_step: VirtualStep::Plain,
        ..EngineOptions::default()
    };
    let model = Model::new(&cpu(), program, Init::Uniform, 3).unwrap();
    let mut engine = Engine::new(cpu(), model, options, &[n, m], Reuse::ByLifetime).unwrap();
    feed(&mut engine, &train, &val);
    // With the bias as one more input: |∇ℓ| ≤ √2·|x|, and the Hessian of the mean loss is at most ½ mean |x|².
    let square = |x: &[f64]| 1.0 + dot(x, x);
    let lip = 0.5 * val.images.chunks(6).map(square).sum::<f64>() / m as f64;
    let sigma_squared = 2.0 * train.images.chunks(6).map(square).fold(0.0, f64::max);
    let mut meta_loss = f64::INFINITY;
    let mut lambda = 1e-9;
    let mut first = 0.0;
    for step in 0..60 {
        let params = StepParams {
            lr: lambda,
            lambda: 1.0,
            ..PLAIN_SGD
        };
        engine.step(Objective::L2b, &params).unwrap();
        let o = engine.outcome(Objective::L2b).unwrap();
        let now = o.mean_val_loss();
        assert!(now <= meta_loss, "step {step}: {now} after {meta_loss}");
        if step == 0 {
            first = now;
        }
        meta_loss = now;
        let positive = o.alpha_raw.iter().chain(&o.beta_raw).filter(|r| **r > 0.0);
        let (s, squares) = positive.fold((0.0, 0.0), |(s, q), r| (s + r, q + r * r));
        // The bound is for this step's gradients; half of it leaves room for the next step's.
        lambda = if s > 0.0 {
            squares / (s * lip * sigma_squared)
        } else {
            0.0
        };
    }
    assert!(meta_loss < 0.9 * first, "no progress: {first} to {meta_loss}");
}

/// P9: where ∇G is exactly 0, all weights are 0 and plain SGD stands still.
#[test]
fn p9_no_meta_gradient_no_weights_no_step() {
    let mut program = Program::new(1, 1, 3);
    let x = program.global_pool(0);
    program.linear("linear", x, 2);
    let model = Model::new(&cpu(), program, Init::Uniform, 3).unwrap();
    let mut engine = Engine::new(cpu(), model, EngineOptions::default(), &[4, 2], Reuse::ByLifetime).unwrap();
    // At θ = 0 both classes have probability ½; one image with both labels pulls equally both ways.
    let count = flat(&engine, &engine.model.params).len();
    set_flat(&engine, |e| &e.model.params, &vec![0.0; count]);
    let train = Data::new(5, 4, 3, 2);
    engine
        .feed(Slot::Train, Images::Values(&train.images), &train.labels)
        .unwrap();
    let image = [0.5, -1.0, 2.0, 0.5, -1.0, 2.0];
    engine.feed(Slot::Meta, Images::Values(&image), &[0, 1]).unwrap();
    engine.step(Objective::L2b, &PLAIN_SGD).unwrap();
    let o = engine.outcome(Objective::L2b).unwrap();
    assert_eq!((o.alpha, o.beta), (vec![0.0; 4], vec![0.0; 4]));
    assert_eq!(flat(&engine, &engine.model.params), vec![0.0; count]);
}
