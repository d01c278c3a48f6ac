//! What `l2b bench` needs of the device: marks, the peak kernels, every operation of a step on operands of its own.

use super::common::alone::every_operation_runs_alone;
use super::common::{fetch_raw, room};
use super::device::{emulated, open_as, reduced};
use l2b::Result;
use l2b::device::Device;
use l2b::device::cuda::Cuda;

/// Returns the instruction.
fn peak_computes_something<D: Device<Real = f32>>(make: impl Fn(usize) -> Result<D>) -> Option<&'static str> {
    let cuda = open_as(make)?;
    let instruction = cuda.peak_instruction();
    // Multiply-adds of a thread in a round.
    let per_thread = match instruction {
        "fma.f32" => 256.0,
        "mma.sync.m16n8k8.tf32" => 512.0,
        "mma.sync.m16n8k16.bf16" => 1024.0,
        "wgmma.m64n128k16.bf16" => 8192.0,
        other => panic!("{other}"),
    };
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
    if reduced() {
        return Some(instruction);
    }
    // As many rounds, as much of the same: nothing accumulates that is not a product.
    let once: f64 = values.iter().map(|v| f64::from(*v)).sum();
    assert_eq!(cuda.peak(out.mem(), 2).unwrap(), 2.0 * flops);
    let values: Vec<f32> = fetch_raw(&cuda, &out);
    assert!(values.iter().all(|v| v.is_finite()));
    if instruction != "fma.f32" {
        let twice: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let sizes: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
        assert!((twice - 2.0 * once).abs() < 1e-4 * sizes, "{once}, then {twice}");
    }
    Some(instruction)
}

#[test]
fn peak_kernels_compute_something_and_marks_see_them() {
    let single = peak_computes_something(Cuda::new);
    let tf32 = peak_computes_something(Cuda::tf32);
    let bf16 = peak_computes_something(Cuda::bf16);
    if emulated() {
        assert_eq!(single, Some("fma.f32"));
        assert_eq!(tf32, Some("mma.sync.m16n8k8.tf32"));
        // Of compute capability 9.0 unless told otherwise: see the next test.
        let older = std::env::var("L2B_EMULATOR_CC").is_ok_and(|capability| capability == "8.0");
        let want = ["wgmma.m64n128k16.bf16", "mma.sync.m16n8k16.bf16"][usize::from(older)];
        assert_eq!(bf16, Some(want));
    }
}

/// What GPUs before 9.0 have is measured with what they have: the test above once more, in a process of its own.
#[test]
fn peak_kernels_of_older_gpus() {
    if !emulated() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "measuring::peak_kernels_compute_something_and_marks_see_them",
            "--exact",
        ])
        .env("L2B_EMULATOR_CC", "8.0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn runs_alone<D: Device>(make: impl Fn(usize) -> Result<D>) {
    if let Some(cuda) = open_as(make) {
        every_operation_runs_alone(&cuda);
    }
}

#[test]
fn every_operation_of_a_step_runs_alone() {
    runs_alone(Cuda::new);
    runs_alone(Cuda::tf32);
    runs_alone(Cuda::bf16);
}
