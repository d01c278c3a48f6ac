//! This shows what the meta step costs beside ordinary training on the CPU: by operation count an L2B step at m = n is 8/3
//! of a cross-entropy step (forward + backward of the meta batch, forward, tangent and backward of the train batch, against
//! forward and backward). Throughput counts train images. Results are checked for numbers before anything is timed.
//!
//! `cargo bench --bench step [-- FILTER]`; the objectives in turn, with ratios, spread and memory: `l2b bench --parts steps`.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use l2b::bench::preact;
use l2b::bench::workload::{OBJECTIVES, Workload};
use l2b::budget::MetaDepth;
use l2b::device::cpu::Cpu;

fn bench(criterion: &mut Criterion) {
    for (net, architecture, n) in [
        ("small preset, 8x8x1", preact(16, vec![1; 3], [8, 8], 1, 10), 64),
        (
            "small preset, 28x28x1",
            preact(16, vec![1; 3], [28, 28], 1, 10),
            64,
        ),
        (
            "PreActResNet-18, 32x32x3",
            preact(64, vec![2; 4], [32, 32], 3, 10),
            32,
        ),
    ] {
        let device = Cpu::<f32>::new(None).expect("threads");
        let workload = Workload::random(device, &architecture, (n, n), MetaDepth::All);
        let mut workload = workload.expect("numbers");
        let mut group = criterion.benchmark_group(format!("{net}, n = m = {n}"));
        group
            .sampling_mode(SamplingMode::Flat)
            .throughput(Throughput::Elements(n as u64));
        for (name, objective) in OBJECTIVES {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|steps| {
                    let taken = workload.steps(objective, steps as usize).expect("steps");
                    Duration::from_secs_f64(taken.device_seconds)
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
