//! The meta depth: v restricted to the last stages and the head.

use l2b::budget::MetaDepth;

use super::*;
use crate::network::restricted;

const DEPTHS: [MetaDepth; 4] = [
    MetaDepth::All,
    MetaDepth::Stages(2),
    MetaDepth::Stages(1),
    MetaDepth::Stages(0),
];

/// The first node whose parameters v covers, found by their names.
fn start(depth: MetaDepth) -> usize {
    let program = program();
    let first = match depth {
        MetaDepth::All => return 0,
        MetaDepth::Stages(2) => "layer1.",
        MetaDepth::Stages(1) => "layer2.",
        MetaDepth::Stages(_) => "linear.",
    };
    let of_name = |node: &l2b::net::Node| {
        let mut params = node.params(&program).into_iter();
        params.any(|id| program.params[id].name.starts_with(first))
    };
    program.nodes.iter().position(of_name).unwrap()
}

fn at(meta_depth: MetaDepth) -> EngineOptions {
    EngineOptions {
        meta_depth,
        ..EngineOptions::default()
    }
}

/// v is that of the full step with zeros elsewhere, and the raw weights are its inner products.
#[test]
fn weights_are_those_of_v_with_zeros_elsewhere() {
    let (train, val) = (Data::train(), Data::val());
    let mut full = engine(EngineOptions::default(), &train, &val);
    full.step(Objective::L2b, &PARAMS).unwrap();
    let v = flat(&full, &full.v);
    for depth in DEPTHS {
        let mut engine = engine(at(depth), &train, &val);
        engine.step(Objective::L2b, &PARAMS).unwrap();
        let o = engine.outcome(Objective::L2b).unwrap();
        let inside = restricted(&program(), start(depth), &v);
        assert_eq!(flat(&engine, &engine.v), inside, "depth {depth}");
        assert!(inside.iter().any(|v| *v != 0.0));

        let net = net(N);
        let logits = net.forward(&train.images);
        for (targets, raw) in [(&train.labels, &o.alpha_raw), (&o.pseudo_labels, &o.beta_raw)] {
            let want: Vec<f64> = (0..N)
                .map(|i| {
                    let mut one = [0.0; N];
                    one[i] = 1.0;
                    net.forward(&train.images);
                    let gradient = net.backward(&cross_entropy_adjoint(&logits, targets, &one, CLASSES));
                    PARAMS.eta * PARAMS.lambda * dot(&inside, &gradient)
                })
                .collect();
            close(&format!("raw weight, depth {depth}"), raw, &want, 1e-11);
        }
    }
}

/// Raw weights against central differences of a virtual step that moves the covered parameters alone, from where
/// momentum and decay take all of them.
#[test]
fn weights_are_the_derivative_of_the_restricted_virtual_step() {
    let (train, val) = (Data::train(), Data::val());
    for depth in DEPTHS {
        let outcome = step(at(depth), &PARAMS, &train, &val);
        let at_zero = drifted(&net(1).params(), &PARAMS);
        for (targets, raw) in [
            (&train.labels, &outcome.alpha_raw),
            (&outcome.pseudo_labels, &outcome.beta_raw),
        ] {
            let covered = |gradient: Vec<f64>| restricted(&program(), start(depth), &gradient);
            let want = differences(&PARAMS, &at_zero, (&train, targets), &val, covered);
            close(&format!("raw weight, depth {depth}"), raw, &want, 1e-7);
        }
    }
}

/// Several steps where everything dead is overwritten with NaN give the bits of steps in shared memory.
#[test]
fn restricted_steps_read_nothing_dead() {
    let (train, val) = (Data::train(), Data::val());
    for depth in DEPTHS {
        let run = |reuse| {
            let mut engine = engine_in(reuse, at(depth), &train, &val);
            for _ in 0..3 {
                engine.step(Objective::L2b, &PARAMS).unwrap();
            }
            let outcome = engine.outcome(Objective::L2b).unwrap();
            engine.check(3, &outcome).unwrap();
            (outcome, flat(&engine, &engine.model.params))
        };
        assert_eq!(run(Reuse::Isolated), run(Reuse::ByLifetime), "depth {depth}");
    }
}

/// Contraction and tangent agree at every depth under frozen statistics, and with v on the head alone, beneath which no
/// batch statistics depend on it, under those of the batch; deeper, contraction is refused there.
#[test]
fn both_inner_products_agree_at_every_depth() {
    let (train, val) = (Data::train(), Data::val());
    for norm in [NormMode::Frozen, NormMode::Batch] {
        for depth in DEPTHS {
            let with = |inner_product| EngineOptions {
                inner_product,
                norm,
                ..at(depth)
            };
            let contraction = with(InnerProduct::Contraction);
            if norm == NormMode::Batch && depth != MetaDepth::Stages(0) {
                let model = Model::new(&cpu(), program(), Init::He, 0).unwrap();
                let refused = Engine::new(cpu(), model, contraction, &[N, M], Reuse::ByLifetime);
                let error = refused.err().expect("samples are coupled");
                assert!(error.to_string().contains("--meta-depth 0"), "{error}");
                continue;
            }
            let raw = |options| {
                let o = step(options, &PARAMS, &train, &val);
                [o.alpha_raw, o.beta_raw].concat()
            };
            let want = raw(with(InnerProduct::Tangent));
            close(&format!("{norm:?} {depth}"), &raw(contraction), &want, 1e-11);
        }
    }
}
