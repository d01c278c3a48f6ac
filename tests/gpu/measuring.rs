//! What `l2b bench` needs of the device: marks, the peak kernels, every operation of a step on operands of its own.

use super::common::{fetch_raw, room};
use super::device::open_as;
use l2b::Result;
use l2b::bench::alone::Alone;
use l2b::bench::preact;
use l2b::bench::trace::operations;
use l2b::bench::workload::augment;
use l2b::budget::MetaDepth;
use l2b::device::Device;
use l2b::device::cuda::Cuda;
use l2b::step::Objective;

/// `per_thread`: multiply-adds of a thread in a round.
fn peak_computes_something<D: Device<Real = f32>>(make: impl Fn(usize) -> Result<D>, per_thread: f64) {
    let Some(cuda) = open_as(make) else { return };
    let out = room(&cuda, cuda.peak_bytes());
    let from = cuda.mark().unwrap();
    let flops = cuda.peak(out.mem(), 1).unwrap();
    let to = cuda.mark().unwrap();
    assert_eq!(flops, 2.0 * per_thread * cuda.peak_bytes() as f64 / 4.0);
    assert!(cuda.seconds(&from, &to).unwrap() >= 0.0);
    let values: Vec<f32> = fetch_raw(&cuda, &out);
    assert!(values.iter().all(|v| v.is_finite()));
    // Operands differ from thread to thread, so results do (a warp's product mixes all of them).
    let mut distinct: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > values.len() / 2, "{}", distinct.len());
}

#[test]
fn peak_kernels_compute_something_and_marks_see_them() {
    peak_computes_something(Cuda::new, 256.0);
    peak_computes_something(Cuda::tf32, 512.0);
    peak_computes_something(Cuda::bf16, 1024.0);
}

fn runs_alone<D: Device>(make: impl Fn(usize) -> Result<D>) {
    let Some(cuda) = open_as(make) else { return };
    let network = preact(8, vec![1, 2], [8, 6], 3, 5);
    let shape = augment(&network, 5);
    let list = operations(&network, Objective::L2b, (5, 3), MetaDepth::All, shape).unwrap();
    let mut seen = Vec::new();
    for (_, case) in list {
        if !seen.contains(&case) {
            seen.push(case);
            let alone = Alone::new(&cuda, case).unwrap();
            alone
                .verify()
                .unwrap_or_else(|error| panic!("{}: {error}", case.name()));
        }
    }
    assert!(seen.len() > 40, "{}", seen.len());
}

#[test]
fn every_operation_of_a_step_runs_alone() {
    runs_alone(Cuda::new);
    runs_alone(Cuda::tf32);
    runs_alone(Cuda::bf16);
}
