//! What a step leaves behind: running statistics, the clipped update, the report of a divergence.

use super::*;

/// The running statistics move once a step, from the train batch, by 0.1, with the unbiased variance.
#[test]
fn running_statistics_follow_the_train_batch_once() {
    let (train, val) = (Data::train(), Data::val());
    let mut engine = engine(EngineOptions::default(), &train, &val);
    let before = engine.model.read_running(&engine.device).unwrap();
    engine.step(Objective::L2b, &PARAMS).unwrap();
    let after = engine.model.read_running(&engine.device).unwrap();
    // The stem's output is what the first norm sees.
    let net = net(N);
    net.forward(&train.images);
    let pass = net.pass();
    let stem = net.model.program.norms[0].of;
    let values = crate::network::read_act(&net.device, net.plan.values[stem].of(pass.arena)).unwrap();
    let channels = net.model.program.values[stem].channels;
    let count = values.len() / channels;
    for c in 0..channels {
        let channel = || values.iter().skip(c).step_by(channels);
        let mean = channel().sum::<f64>() / count as f64;
        let var = channel().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        for (name, batch) in [("running_mean", mean), ("running_var", var)] {
            let name = format!("layer1.0.bn1.{name}");
            let want = 0.9 * before[&name].values[c] + 0.1 * batch;
            close(&name, &[after[&name].values[c]], &[want], 1e-12);
        }
    }
}

/// Clipping scales the gradient to the bound, before weight decay enters.
#[test]
fn clipping_bounds_the_update() {
    let (train, val) = (Data::train(), Data::val());
    let update = |clip: f64| {
        let mut engine = engine(EngineOptions::default(), &train, &val);
        let before = flat(&engine, &engine.model.params);
        set_flat(&engine, |e| &e.model.momentum, &vec![0.0; before.len()]);
        engine
            .step(Objective::L2b, &StepParams { clip, ..PLAIN_SGD })
            .unwrap();
        let norm = engine.outcome(Objective::L2b).unwrap().gradient_norm;
        let moved = along(&flat(&engine, &engine.model.params), -1.0, &before);
        (norm, dot(&moved, &moved).sqrt() / PLAIN_SGD.lr)
    };
    let (norm, free) = update(0.0);
    close("unclipped", &[free], &[norm], 1e-12);
    let (same, clipped) = update(norm / 3.0);
    assert_eq!(norm, same, "the norm is reported before clipping");
    close(
        "clipped",
        &[clipped],
        &[norm * (norm / 3.0) / (norm + 1e-6)],
        1e-12,
    );
}

/// A value that is no longer a number is reported with the step and the first layer whose gradient shows it.
#[test]
fn divergence_is_named() {
    let (train, val) = (Data::train(), Data::val());
    let mut engine = engine(EngineOptions::default(), &train, &val);
    let mut theta = flat(&engine, &engine.model.params);
    theta[0] = f64::NAN;
    set_flat(&engine, |e| &e.model.params, &theta);
    engine.step(Objective::L2b, &PARAMS).unwrap();
    let outcome = engine.outcome(Objective::L2b).unwrap();
    let error = engine.check(41, &outcome).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    let text = error.to_string();
    assert!(
        text.contains("step 41") && text.contains("conv1.weight"),
        "{text}"
    );
}
