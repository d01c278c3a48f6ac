//! This shows where the time of a step goes on the CPU device, operation by operation: every distinct operation of an L2B
//! step, on operands of its own, for the bundled digits net (n = m = 64) and ResNet-18 at 32×32 (n = m = 32). The
//! throughput of a convolution is floating-point operations per second, that of the others bytes per second, every operand
//! counted once. Each is checked before it is timed; caches are warm.
//!
//! `cargo bench --bench operations [-- FILTER]`; on other devices, against ceilings, with a record: `l2b bench`.

use std::collections::BTreeSet;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use l2b::bench::alone::Alone;
use l2b::bench::case::Sizes;
use l2b::bench::measure::device_seconds;
use l2b::bench::preact;
use l2b::bench::trace::operations;
use l2b::bench::workload::augment;
use l2b::budget::MetaDepth;
use l2b::device::cpu::Cpu;
use l2b::step::Objective;

fn bench(criterion: &mut Criterion) {
    let device = Cpu::<f32>::new(None).expect("threads");
    let sizes = Sizes { act: 4, real: 4 };
    for (net, architecture, n) in [
        ("digits", preact(16, vec![1; 3], [8, 8], 1, 10), 64),
        ("resnet-18", preact(64, vec![2; 4], [32, 32], 3, 10), 32),
    ] {
        let shape = augment(&architecture, n);
        let list = operations(&architecture, Objective::L2b, (n, n), MetaDepth::All, shape);
        let mut seen = BTreeSet::new();
        let mut group = criterion.benchmark_group(net);
        for (_, case) in list.expect("a valid network") {
            if !seen.insert(case.name()) {
                continue;
            }
            let alone = Alone::new(&device, case).expect("memory");
            alone.verify().expect("numbers");
            group.throughput(if case.flops() > 0.0 {
                Throughput::Elements(case.flops() as u64)
            } else {
                Throughput::Bytes(case.bytes(sizes) as u64)
            });
            group.bench_function(case.name(), |bencher| {
                bencher.iter_custom(|calls| {
                    let seconds = device_seconds(&device, || (0..calls).try_for_each(|_| alone.call()));
                    Duration::from_secs_f64(seconds.expect("the operation"))
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
