//! Each planted fault of tests/faults ends in a diagnosis that names it.

use super::*;

/// Launches a kernel whose only argument is a buffer of `n` floats, waits, and gives the diagnosis.
pub fn fault(kernel: &str, config: LaunchConfig, n: usize) -> String {
    let gpu = Gpu::new();
    let mut y = gpu.stream.alloc_zeros::<f32>(n).unwrap();
    launch!(gpu.stream, gpu.kernel(kernel), config, &mut y).unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_mentions(&text, &[kernel]);
    // The stream works on afterwards.
    gpu.stream.memset_zeros(&mut y).unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), vec![0.0; n]);
    text
}

/// In how many orders a racing kernel gives something else than expected.
fn wrong_orders(kernel: &str, threads: u32, with_input: bool, expected: &[f32]) -> usize {
    let gpu = Gpu::new();
    let run = |order: &&str| {
        let _order = InOrder::new(order);
        let x = gpu.stream.clone_htod(&numbers(256)).unwrap();
        let mut y = gpu.stream.alloc_zeros::<f32>(expected.len()).unwrap();
        let config = blocks(1, threads);
        if with_input {
            launch!(gpu.stream, gpu.kernel(kernel), config, &mut y, &x).unwrap();
        } else {
            launch!(gpu.stream, gpu.kernel(kernel), config, &mut y).unwrap();
        }
        gpu.stream.clone_dtoh(&y).unwrap() != expected
    };
    ORDERS.iter().filter(|order| run(order)).count()
}

#[test]
fn a_missing_barrier_shows_in_random_order() {
    let sum = numbers(256).iter().sum();
    let wrong = wrong_orders("fault_missing_barrier", 256, true, &[sum]);
    // Right in forward order: that is why one order is not enough.
    assert_eq!(wrong, ORDERS.len() - 1);
}

#[test]
fn a_missing_second_barrier_shows() {
    let expected: Vec<f32> = (0..64)
        .map(|t| (0..4).map(|turn| (turn * 64 + (t + 1) % 64) as f32).sum())
        .collect();
    assert!(wrong_orders("fault_missing_second_barrier", 64, false, &expected) > 0);
}

#[test]
fn a_missing_wait_for_a_copy_shows() {
    let wrong = wrong_orders("fault_missing_wait", 32, true, &numbers(256)[..32]);
    assert!(wrong > 0);
}

#[test]
fn control_flow_faults_are_named() {
    let gpu = Gpu::new();
    let mut y = gpu.stream.alloc_zeros::<f32>(128).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_early_exit"),
        blocks(1, 128),
        &mut y,
        &100_i32
    )
    .unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_mentions(&text, &["fault_early_exit", "exited", "faults.cu:"]);

    assert_mentions(
        &fault("fault_divergent_barrier", blocks(1, 64), 64),
        &["divergent barrier", "faults.cu:"],
    );
    assert_mentions(
        &fault("fault_divergent_warp", blocks(1, 32), 32),
        &["divergent warp operation", "faults.cu:"],
    );
    assert_mentions(
        &fault("fault_deadlock", blocks(1, 32), 32),
        &["deadlock", "[0-15]", "[16-31]", "barrier"],
    );
    assert_mentions(&fault("fault_endless_wait", blocks(1, 32), 1), &["did not end"]);
    // Half a warp has no lanes 16 to 31 to shuffle with.
    let text = fault("fault_divergent_warp", blocks(1, 16), 32);
    assert_mentions(&text, &["do not exist"]);
}

#[test]
fn accesses_outside_of_buffers_are_named() {
    let gpu = Gpu::new();
    // 64 floats are 256 bytes: the guard page begins right behind them. 63 leave a gap that the canary covers.
    for (n, code, words) in [
        (
            64,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            ["thread (64,0,0)", "0 bytes past the end"],
        ),
        (
            63,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            ["argument 0", "past the end"],
        ),
    ] {
        let mut y = gpu.stream.alloc_zeros::<f32>(n as usize).unwrap();
        launch!(
            gpu.stream,
            gpu.kernel("fault_past_end"),
            blocks(1, 128),
            &mut y,
            &n
        )
        .unwrap();
        let text = diagnosis(gpu.stream.synchronize(), code);
        assert_mentions(&text, &["fault_past_end", words[0], words[1]]);
        // Freeing it says so again; the rest of the test is not about that.
        std::mem::forget(y);
    }
    assert_mentions(
        &fault("fault_past_shared", blocks(1, 64), 64),
        &["0 bytes past the end of the SHARED array of 256 bytes"],
    );
    let dynamic = LaunchConfig {
        shared_mem_bytes: 256,
        ..blocks(1, 64)
    };
    assert_mentions(
        &fault("fault_past_dynamic_shared", dynamic, 64),
        &["thread (63,0,0)", "0 bytes past the end of the DYN_SMEM array"],
    );
    assert_mentions(
        &fault("fault_stack_overflow", blocks(1, 2), 64),
        &["stack overflow"],
    );
}

#[test]
fn misaligned_vectors_and_divisions_by_zero_are_named() {
    let gpu = Gpu::new();
    let x = gpu.stream.clone_htod(&numbers(64)).unwrap();
    let mut y = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_misaligned"),
        blocks(1, 2),
        &mut y,
        &x
    )
    .unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_mentions(
        &text,
        &[
            "misaligned vector load",
            "multiple of 16",
            "thread (1,0,0)",
            "faults.cu:",
        ],
    );

    let mut y = gpu.stream.alloc_zeros::<i32>(1).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_division_by_zero"),
        blocks(1, 1),
        &mut y,
        &0_i32
    )
    .unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_mentions(&text, &["division by zero"]);
}

#[test]
fn wrong_argument_lists_are_refused() {
    let gpu = Gpu::new();
    let x = gpu.stream.clone_htod(&numbers(64)).unwrap();
    let mut y = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    let (n, wide, a) = (64_i32, 64_u64, 1_f32);
    let kernel = || gpu.kernel("fault_none");
    // In another order: the number stands where a pointer should.
    let text = diagnosis(
        launch!(gpu.stream, kernel(), blocks(1, 32), &mut y, &wide, &x, &a),
        CUresult::CUDA_ERROR_INVALID_VALUE,
    );
    assert_mentions(&text, &["fault_none", "argument 1", "device pointer"]);
    // The address of a host buffer.
    let buffer = numbers(64);
    let host = buffer.as_ptr() as u64;
    let text = diagnosis(
        launch!(gpu.stream, kernel(), blocks(1, 32), &mut y, &host, &n, &a),
        CUresult::CUDA_ERROR_INVALID_VALUE,
    );
    assert_mentions(&text, &["argument 1", "in no device buffer"]);
    // A view that is not aligned for the element type.
    let bytes = gpu.stream.alloc_zeros::<u8>(64).unwrap();
    let odd = bytes.slice(1..33);
    let text = diagnosis(
        launch!(gpu.stream, kernel(), blocks(1, 32), &mut y, &odd, &n, &a),
        CUresult::CUDA_ERROR_INVALID_VALUE,
    );
    assert_mentions(&text, &["misaligned"]);
}

#[test]
fn copies_beyond_a_buffer_are_refused() {
    let gpu = Gpu::new();
    let x = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    use cudarc::driver::DevicePtr;
    let (address, _guard) = x.device_ptr(&gpu.stream);
    // SAFETY: too long on purpose; the emulator refuses before touching anything.
    let result =
        unsafe { cudarc::driver::result::memcpy_htod_async(address, &[0_f32; 65], gpu.stream.cu_stream()) };
    assert_mentions(
        &diagnosis(result, CUresult::CUDA_ERROR_INVALID_VALUE),
        &["260 bytes", "past its end at 256"],
    );
}

// For scripts/sanitize: a sanitizer ends the process at the write, before any canary is looked at.

#[test]
#[ignore = "for the sanitizers"]
fn shared_overrun_alone() {
    let text = fault("fault_past_shared", blocks(1, 64), 64);
    assert_mentions(&text, &["0 bytes past the end of the SHARED array of 256 bytes"]);
}

#[test]
#[ignore = "for the sanitizers"]
fn dynamic_shared_overrun_alone() {
    let config = LaunchConfig {
        shared_mem_bytes: 256,
        ..blocks(1, 64)
    };
    let text = fault("fault_past_dynamic_shared", config, 64);
    assert_mentions(
        &text,
        &["0 bytes past the end of the DYN_SMEM array of 256 bytes"],
    );
}
