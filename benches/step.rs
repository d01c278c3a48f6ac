//! Cost of whole training steps on the CPU, cross-entropy, L2RW and L2B on the same batches, in turn.
//!
//! This shows what the meta step costs beside ordinary training: by operation count an L2B step at m = n is 8/3 of a
//! cross-entropy step (forward + backward of the meta batch, forward, tangent and backward of the train batch, against
//! forward and backward). Each line is the median of the windows with its 10th and 90th percentile; the ratio is the
//! median of the ratios of neighbouring windows.
//!
//! `cargo bench --bench step [-- --windows N]`; prints a table and one JSON line a row.

use std::hint::black_box;
use std::time::Instant;

use l2b::arch::{Architecture, ModelName};
use l2b::device::StepParams;
use l2b::device::cpu::Cpu;
use l2b::engine::{Engine, EngineOptions, Images, Slot};
use l2b::model::{Init, Model};
use l2b::net::Reuse;
use l2b::random::{Purpose, Stream};
use l2b::step::Objective;

struct Case {
    name: &'static str,
    architecture: Architecture,
    batch: usize,
    /// Steps in one window.
    steps: usize,
}

fn cases() -> Vec<Case> {
    let preact = |width, blocks: &[usize], in_channels, side| Architecture {
        model: ModelName::PreactResnet18,
        width,
        blocks: blocks.to_vec(),
        in_channels,
        image_size: [side; 2],
        num_classes: 10,
    };
    vec![
        Case {
            name: "small preset, 8x8x1, n = m = 64",
            architecture: preact(16, &[1, 1, 1], 1, 8),
            batch: 64,
            steps: 10,
        },
        Case {
            name: "small preset, 28x28x1, n = m = 64",
            architecture: preact(16, &[1, 1, 1], 1, 28),
            batch: 64,
            steps: 2,
        },
        Case {
            name: "PreActResNet-18, 32x32x3, n = m = 32",
            architecture: preact(64, &[2, 2, 2, 2], 3, 32),
            batch: 32,
            steps: 1,
        },
    ]
}

const OBJECTIVES: [(&str, Objective); 3] = [
    ("ce", Objective::CrossEntropy),
    ("l2rw", Objective::Reweight),
    ("l2b", Objective::L2b),
];

const PARAMS: StepParams = StepParams {
    lr: 0.01,
    lambda: 0.01,
    eta: 1.0,
    mu: 0.9,
    weight_decay: 5e-4,
    clip: 1.0,
    seed: 0,
    step: 0,
    reserved: 0,
};

fn main() {
    // Cargo passes `--bench`; the only option of our own is the number of windows.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let windows = match args.as_slice() {
        [] => 15,
        [flag, count] if flag == "--windows" => count.parse().expect("--windows takes a number"),
        other => panic!("unknown arguments {other:?}; only --windows N is known"),
    };
    println!(
        "{:<38} {:>5} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "network", "step", "median ms", "p10", "p90", "images/s", "/ ce", "MiB held"
    );
    for case in cases() {
        run(&case, windows);
    }
}

fn run(case: &Case, windows: usize) {
    let cpu = Cpu::<f32>::new(None).expect("threads");
    let model = Model::new(
        &cpu,
        case.architecture.program().expect("a valid network"),
        Init::He,
        1,
    )
    .expect("memory");
    let mut engine = Engine::new(
        cpu,
        model,
        EngineOptions::default(),
        &[case.batch],
        Reuse::ByLifetime,
    )
    .expect("memory");
    let pixels = case.architecture.in_channels * case.architecture.image_size.iter().product::<usize>();
    let mut stream = Stream::new(1, Purpose::Init).view(1);
    for slot in [Slot::Train, Slot::Meta] {
        let images: Vec<f64> = (0..case.batch * pixels)
            .map(|_| 2.0 * stream.uniform_f64() - 1.0)
            .collect();
        let labels: Vec<i32> = (0..case.batch).map(|_| stream.below(10) as i32).collect();
        engine
            .feed(slot, Images::Values(&images), &labels)
            .expect("a planned batch");
    }
    // Warm up, and check that what is timed computes something.
    for (_, objective) in OBJECTIVES {
        engine.step(objective, &PARAMS).expect("step");
        let outcome = engine.outcome(objective).expect("outcome");
        engine.check(0, &outcome).expect("finite");
        assert!(outcome.gradient_norm > 0.0);
    }
    let mut seconds = [const { Vec::new() }; OBJECTIVES.len()];
    for _ in 0..windows {
        for ((_, objective), seconds) in OBJECTIVES.iter().zip(&mut seconds) {
            let start = Instant::now();
            for _ in 0..case.steps {
                engine.step(black_box(*objective), &PARAMS).expect("step");
            }
            seconds.push(start.elapsed().as_secs_f64() / case.steps as f64);
        }
    }
    for ((name, _), times) in OBJECTIVES.iter().zip(&seconds) {
        let ratios: Vec<f64> = times.iter().zip(&seconds[0]).map(|(t, ce)| t / ce).collect();
        let (median, p10, p90) = (quantile(times, 0.5), quantile(times, 0.1), quantile(times, 0.9));
        let (images, ratio) = (case.batch as f64 / median, quantile(&ratios, 0.5));
        let mib = engine.bytes() as f64 / 1_048_576.0;
        println!(
            "{:<38} {name:>5} {:>9.2} {:>9.2} {:>9.2} {images:>9.0} {ratio:>8.3} {mib:>9.1}",
            case.name,
            1e3 * median,
            1e3 * p10,
            1e3 * p90,
        );
        let record = serde_json::json!({
            "bench": "step", "device": "cpu", "precision": "f32", "threads": 0, "network": case.name, "step": name,
            "windows": windows, "median_s": median, "p10_s": p10, "p90_s": p90, "ratio_to_ce": ratio,
            "bytes": engine.bytes(),
        });
        println!("{record}");
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}
