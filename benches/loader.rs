//! This shows whether the loader keeps ahead of the device: train and meta batches of the bundled digits from their mapped
//! shards (page cache warm), as training takes them, in images and bytes per second. A step takes milliseconds, so a batch
//! has to take less.
//!
//! `cargo bench --bench loader`; with a dataset of one's own: `l2b bench --parts loader --data DIR`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use l2b::bench::workload::batches;
use l2b::config::BUNDLED;

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digits, train and meta batch");
    for n in [64, 512] {
        let (mut loader, image) = batches(BUNDLED.as_ref(), (n, n), u32::MAX / 2).expect("the digits");
        group.throughput(Throughput::Bytes((2 * n * image) as u64));
        group.bench_function(format!("n = m = {n}"), |bencher| {
            bencher.iter(|| {
                let step = loader.next_step().expect("a batch").expect("steps are left");
                assert!(!step.train.is_empty());
                loader.recycle(step);
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
