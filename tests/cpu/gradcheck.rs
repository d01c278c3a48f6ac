//! Programs from one layer to whole networks on `Cpu<f64>`: backward and tangent against central differences, the
//! adjoint identity ⟨Jv, u⟩ = ⟨v, Jᵀu⟩, the contraction against both, and memory shared by lifetime against memory of
//! one's own.

use crate::network::{Net, along, dot, finish, post_activation, preact, restricted, uniform};
use l2b::device::cpu::Cpu;
use l2b::device::{Device, Statistics};
use l2b::model::read;
use l2b::net::{Program, Reach, Reuse};

const BATCH_STATISTICS: Statistics = Statistics::Batch { update: false };

fn conv(size: usize, stride: usize, pad: usize, image: [usize; 2], channels: usize) -> Program {
    let mut net = Program::new(image[0], image[1], channels);
    let x = net.conv("a", 0, 5, size, stride, pad);
    let x = net.relu(x);
    let x = net.conv("b", x, 3, 1, 1, 0);
    finish(net, x)
}

fn norm(relu: bool) -> Program {
    let mut net = Program::new(5, 7, 3);
    let x = net.conv("a", 0, 7, 3, 1, 1);
    let x = net.norm("bn", x, relu);
    let x = net.conv("b", x, 4, 3, 2, 1);
    finish(net, x)
}

/// A value read by two joins and a convolution, and a join of a value with itself.
fn shared() -> Program {
    let mut net = Program::new(4, 4, 2);
    let x = net.conv("a", 0, 3, 3, 1, 1);
    let y = net.join(x, x);
    let z = net.join(y, x);
    let n = net.norm("bn", z, true);
    let c = net.conv("b", n, 3, 3, 1, 1);
    let w = net.join(z, c);
    let v = net.join(y, w);
    finish(net, v)
}

/// Windows that leave a rest, on a pending value.
fn pool() -> Program {
    let mut net = Program::new(3, 5, 2);
    let x = net.conv("a", 0, 4, 3, 1, 1);
    let x = net.norm("bn", x, true);
    let x = net.average_pool(x, 2, 3);
    net.linear("linear", x, 3);
    net
}

fn programs() -> Vec<(&'static str, Program)> {
    let mut plain = Program::new(1, 1, 6);
    let x = plain.global_pool(0);
    plain.linear("linear", x, 4);
    vec![
        ("linear", plain),
        ("conv 3x3", conv(3, 1, 1, [5, 7], 3)),
        ("conv 3x3 stride 2", conv(3, 2, 1, [7, 8], 1)),
        ("conv 1x1 stride 2", conv(1, 2, 0, [5, 5], 7)),
        ("conv 5x5 pad 3 stride 3", conv(5, 3, 3, [6, 5], 2)),
        ("conv 2x2", conv(2, 1, 0, [3, 4], 2)),
        ("conv 3x3 on 1x1", conv(3, 1, 1, [1, 1], 3)),
        ("norm", norm(false)),
        ("norm relu", norm(true)),
        ("post-activation", post_activation()),
        ("shared", shared()),
        ("shared, absorbed", shared().absorb_joins()),
        ("pool", pool()),
        ("preact", preact(4, &[1, 1], 3, [8, 8], 3)),
        ("preact odd", preact(5, &[2, 1, 1], 1, [7, 9], 10)),
    ]
}

fn relative(got: f64, want: f64, scale: f64) -> f64 {
    let error = (got - want).abs() / scale.max(1e-3);
    if error.is_nan() { f64::INFINITY } else { error }
}

fn check(name: &str, program: &Program, batch: usize, statistics: Statistics) {
    let cpu = Cpu::<f64>::new(None).unwrap();
    let net = Net::new(cpu, program.clone(), batch, statistics, Reuse::ByLifetime, 3);
    let images = uniform(1, net.image_len());
    let theta = net.params();
    let v = uniform(2, theta.len());
    let u = uniform(4, net.logits_len());

    net.forward(&images);
    let tz = net.tangent(&v);
    let gradient = net.backward(&u);
    let size = |x: &[f64]| dot(x, x).sqrt();

    // ⟨Jv, u⟩ = ⟨v, Jᵀu⟩, in double precision exact to rounding.
    let (left, right) = (dot(&tz, &u), dot(&v, &gradient));
    let scale = size(&tz) * size(&u);
    assert!(
        relative(left, right, scale) < 1e-12,
        "{name} {statistics:?}: ⟨Jv,u⟩ {left} ⟨v,Jᵀu⟩ {right}"
    );

    // Tangent: every logit. A small step keeps clear of kinks; its rounding error is 1e-16/h.
    let h = 1e-6;
    let at = |sign: f64| {
        net.set_params(&along(&theta, sign * h, &v));
        net.forward(&images)
    };
    let (plus, minus) = (at(1.0), at(-1.0));
    for (i, (p, m)) in plus.iter().zip(&minus).enumerate() {
        let fd = (p - m) / (2.0 * h);
        let error = relative(tz[i], fd, size(&tz) / (tz.len() as f64).sqrt());
        assert!(
            error < 1e-6,
            "{name} {statistics:?}: logit {i}: tangent {} difference {fd}",
            tz[i]
        );
    }

    // Gradient: single parameters, spread over all tensors.
    let rms = size(&gradient) / (gradient.len() as f64).sqrt();
    let step = (theta.len() / 60).max(1);
    for i in (0..theta.len()).step_by(step) {
        let loss = |sign: f64| {
            let mut moved = theta.clone();
            moved[i] += sign * h;
            net.set_params(&moved);
            dot(&net.forward(&images), &u)
        };
        let fd = (loss(1.0) - loss(-1.0)) / (2.0 * h);
        let error = relative(gradient[i], fd, rms.max(fd.abs()));
        assert!(
            error < 1e-6,
            "{name} {statistics:?}: parameter {i}: gradient {} difference {fd}",
            gradient[i]
        );
    }

    // Contraction: exact where samples are uncoupled.
    if statistics == Statistics::Running || program.norms.is_empty() {
        net.set_params(&theta);
        net.forward(&images);
        let classes = program.classes();
        let contracted = net.contract(&u, &v);
        for (i, got) in contracted.iter().enumerate() {
            let want = dot(
                &tz[i * classes..(i + 1) * classes],
                &u[i * classes..(i + 1) * classes],
            );
            assert!(
                relative(*got, want, scale / batch as f64) < 1e-12,
                "{name}: sample {i}: {got} {want}"
            );
        }
    }
}

#[test]
fn differences_adjoints_and_contractions() {
    for (name, program) in programs() {
        for batch in [1, 5] {
            for statistics in [BATCH_STATISTICS, Statistics::Running] {
                check(name, &program, batch, statistics);
            }
        }
    }
}

#[test]
fn a_larger_batch() {
    check(
        "preact 33",
        &preact(3, &[1, 1], 1, [5, 5], 4),
        33,
        BATCH_STATISTICS,
    );
}

/// A convolution onto a residual is the convolution and the sum after it, in all passes and in less memory.
#[test]
fn an_absorbed_join_computes_the_same() {
    let run = |program: Program| {
        let cpu = Cpu::<f64>::new(None).unwrap();
        let net = Net::new(cpu, program, 3, BATCH_STATISTICS, Reuse::Isolated, 5);
        let z = net.forward(&uniform(1, net.image_len()));
        let tz = net.tangent(&uniform(2, net.params().len()));
        let gradient = net.backward(&uniform(3, net.logits_len()));
        ([z, tz, gradient], net.plan.bytes)
    };
    let absorbed = shared().absorb_joins();
    assert!(absorbed.nodes.len() < shared().nodes.len());
    let ((want, before), (got, after)) = (run(shared()), run(absorbed));
    for (got, want) in got.iter().zip(&want) {
        let scale = dot(want, want).sqrt();
        for (got, want) in got.iter().zip(want) {
            assert!(relative(*got, *want, scale) < 1e-14, "{got} {want}");
        }
    }
    assert!(after < before);
}

/// Memory shared by lifetime gives the bits of memory of one's own, where the end of a life is overwritten with NaN and
/// guards stand between tensors.
#[test]
fn lifetimes_are_right_and_nothing_overruns() {
    for (name, program) in programs() {
        let run = |reuse: Reuse| {
            let cpu = Cpu::<f64>::new(None).unwrap();
            let net = Net::new(cpu, program.clone(), 3, BATCH_STATISTICS, reuse, 9);
            for guard in &net.plan.guards {
                net.device.fill(guard.of(&net.arena), 0x5a).unwrap();
            }
            let theta = net.params();
            net.forward(&uniform(1, net.image_len()));
            let tz = net.tangent(&uniform(2, theta.len()));
            let gradient = net.backward(&uniform(3, net.logits_len()));
            for guard in &net.plan.guards {
                let mut bytes = vec![0; guard.bytes];
                net.device.download(&mut bytes, guard.of(&net.arena)).unwrap();
                assert!(bytes.iter().all(|&b| b == 0x5a), "{name}: write past a tensor");
            }
            (
                tz,
                gradient,
                net.plan.bytes,
                read::<Cpu<f64>>(&net.device, net.pass().output()).unwrap(),
            )
        };
        let (shared, own) = (run(Reuse::ByLifetime), run(Reuse::Isolated));
        assert!(
            own.0.iter().chain(&own.1).all(|v| v.is_finite()),
            "{name}: read after the end of a life"
        );
        assert_eq!(
            (&shared.0, &shared.1, &shared.3),
            (&own.0, &own.1, &own.3),
            "{name}"
        );
        assert!(shared.2 <= own.2, "{name}");
    }
}

/// Derivatives restricted to the parameters of the nodes from any one on are those of the whole network with v zero
/// elsewhere, also after passes of the whole network have left their values in memory, and nothing dead is read.
#[test]
fn restricted_passes_are_the_whole_ones_with_zeros_elsewhere() {
    for (name, program) in programs() {
        for statistics in [BATCH_STATISTICS, Statistics::Running] {
            let cpu = Cpu::<f64>::new(None).unwrap();
            let mut net = Net::new(cpu, program.clone(), 3, statistics, Reuse::Isolated, 5);
            net.forward(&uniform(1, net.image_len()));
            let v = uniform(2, net.params().len());
            let u = uniform(3, net.logits_len());
            let classes = program.classes();
            let whole = net.backward(&u);
            for start in 0..program.nodes.len() {
                let inside = restricted(&program, start, &v);
                net.reach = Reach::full(&program);
                let want = net.tangent(&inside);
                net.reach = Reach::from_node(&program, start);
                let couples = statistics != Statistics::Running && net.reach.couples_samples(&program);
                let name = format!("{name} {statistics:?} from node {start}");
                // Outside its reach v is not even read.
                let beyond: Vec<f64> = restricted(&program, start, &vec![1.0; v.len()])
                    .iter()
                    .zip(&v)
                    .map(|(inside, v)| if *inside == 1.0 { *v } else { f64::NAN })
                    .collect();
                let tz = net.tangent(&beyond);
                let scale = dot(&want, &want).sqrt();
                for (got, want) in tz.iter().zip(&want) {
                    assert!(relative(*got, *want, scale) < 1e-12, "{name}: {got} {want}");
                }
                net.write_gradient(&vec![0.0; v.len()]);
                assert_eq!(net.backward(&u), restricted(&program, start, &whole), "{name}");
                if !couples {
                    for (i, got) in net.contract(&u, &beyond).iter().enumerate() {
                        let row = i * classes..(i + 1) * classes;
                        let want = dot(&want[row.clone()], &u[row]);
                        assert!(
                            relative(*got, want, scale) < 1e-12,
                            "{name}: sample {i}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}
