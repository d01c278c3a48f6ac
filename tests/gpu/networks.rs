//! Whole networks on the device: the double-backprop fixtures, and forward, tangent, backward and contraction against
//! `Cpu<f64>` with memory laid out so that overruns and reads too late show.

use l2b::Result;
use l2b::device::cpu::Cpu;
use l2b::device::cuda::Cuda;
use l2b::device::{Device, Statistics};
use l2b::engine::InnerProduct;
use l2b::net::{Reach, Reuse};

use crate::device::{ORDERS, open, open_as, set_order};
use crate::fixtures::{self, Bound};
use crate::network::{Net, post_activation, preact, uniform};

#[test]
fn meta_step_is_within_the_noise_of_the_reference() {
    // Bits do not depend on the order of threads (below): one for each case, all of them among the cases.
    for (case, order) in fixtures::cases().iter().zip(ORDERS.iter().cycle()) {
        let Some(cuda) = open() else { return };
        set_order(order);
        let ratio = fixtures::check(cuda, case, InnerProduct::Tangent, Bound::F32 { floor: 2e-5 });
        println!("{case}, {order}: {ratio:.2e} of the bound");
    }
}

#[test]
fn contraction_is_within_the_noise_of_the_reference() {
    for case in fixtures::cases() {
        if case.starts_with("frozen") {
            let Some(cuda) = open() else { return };
            fixtures::check(cuda, &case, InnerProduct::Contraction, Bound::F32 { floor: 2e-5 });
        }
    }
}

/// Logits, their tangent, gradient and (under running statistics) contraction.
fn passes<D: Device>(net: &Net<D>) -> [Vec<f64>; 4] {
    let parameters = net.params().len();
    let logits = net.forward(&uniform(1, net.image_len()));
    let v = uniform(2, parameters);
    let u = uniform(3, net.logits_len());
    let tangent = net.tangent(&v);
    let gradient = net.backward(&u);
    let contraction = match net.statistics {
        Statistics::Running => net.contract(&u, &v),
        Statistics::Batch { .. } => Vec::new(),
    };
    [logits, tangent, gradient, contraction]
}

/// Compares whole passes, and passes with derivatives restricted to the nodes from some on, with f64: largest relative L2 error of the logits and of what is linear in a direction (tangent, gradient,
/// contraction). With ε the rounding of an operand and ten layers, the logits are continuous and off by a few √10·ε; the
/// others pass ReLU masks, of which about one in 1/ε opens or closes by rounding: off by √(10·ε).
fn passes_against_cpu<D: Device>(make: impl Fn(usize) -> Result<D>, continuous: f64, masked: f64) {
    for (name, program) in [
        ("preact", preact(5, &[2, 1], 3, [9, 7], 6)),
        ("post-activation", post_activation()),
    ] {
        for statistics in [Statistics::Batch { update: false }, Statistics::Running] {
            let Some(cuda) = open_as(&make) else { return };
            let batch = 5;
            let mut net = Net::new(cuda, program.clone(), batch, statistics, Reuse::Isolated, 3);
            let cpu = Cpu::<f64>::new(Some(1)).unwrap();
            let mut reference = Net::new(cpu, program.clone(), batch, statistics, Reuse::ByLifetime, 3);
            reference.set_params(&net.params());
            // A stage, the head, and a cut between a value and what is pending on it, which takes every kind of operand.
            let cuts = program.stages.iter().copied().chain([program.head, 3]);
            for start in std::iter::once(0).chain(cuts) {
                net.reach = Reach::from_node(&program, start);
                reference.reach = net.reach.clone();
                let names = ["logits", "tangent", "gradient", "contraction"];
                for ((what, got), want) in names.iter().zip(passes(&net)).zip(passes(&reference)) {
                    let error: f64 = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum();
                    let size: f64 = want.iter().map(|w| w * w).sum();
                    let bound = if *what == "logits" { continuous } else { masked };
                    assert!(
                        error.sqrt() <= bound * size.sqrt(),
                        "{name} {statistics:?} from node {start}, {what}: {error:e} of {size:e}, allowed {bound:.0e}"
                    );
                }
            }
        }
    }
}

#[test]
fn passes_are_those_of_the_cpu() {
    // f32 through about ten layers; a wrong term is off by far more than 1e-3.
    passes_against_cpu(Cuda::new, 2e-5, 2e-5);
}

#[test]
fn passes_in_tf32_are_near_those_of_the_cpu() {
    passes_against_cpu(Cuda::tf32, 6e-3, 7e-2);
}

#[test]
fn passes_in_bf16_are_near_those_of_the_cpu() {
    passes_against_cpu(Cuda::bf16, 5e-2, 2e-1);
}

/// Whole meta steps: α, β, gradients and the update against the double-backprop reference, bounds as for passes. `without`:
/// cases whose two best logits are nearer than the precision tells apart, so that the pseudo label is another.
fn meta_step_within<D: Device>(make: impl Fn(usize) -> Result<D>, bound: f64, without: &[&str]) {
    for case in fixtures::cases() {
        if without.contains(&case.as_str()) {
            continue;
        }
        let Some(cuda) = open_as(&make) else { return };
        set_order(ORDERS[2]);
        let ratio = fixtures::check(cuda, &case, InnerProduct::Tangent, Bound::F64(bound));
        println!("{case}: {:.2e}", ratio * bound);
    }
}

#[test]
fn meta_step_in_tf32_is_near_the_reference() {
    meta_step_within(Cuda::tf32, 7e-2, &[]);
}

#[test]
fn meta_step_in_bf16_is_near_the_reference() {
    // Logits -0.2119 and -0.2154.
    meta_step_within(Cuda::bf16, 2e-1, &["batch-plain-n1"]);
}

/// The same seed gives the same bits, whatever the order of threads.
fn bits_repeat<D: Device>(make: impl Fn(usize) -> Result<D>) {
    let run = |order: &str| {
        let cuda = open_as(&make)?;
        set_order(order);
        let statistics = Statistics::Batch { update: false };
        Some(passes(&Net::new(
            cuda,
            preact(5, &[2, 1], 3, [9, 7], 6),
            3,
            statistics,
            Reuse::ByLifetime,
            3,
        )))
    };
    let first = run(ORDERS[0]);
    assert_eq!(first, run(ORDERS[1]));
    assert_eq!(first, run(ORDERS[2]));
}

#[test]
fn bits_do_not_depend_on_the_thread_order() {
    bits_repeat(Cuda::new);
    bits_repeat(Cuda::tf32);
    bits_repeat(Cuda::bf16);
}
