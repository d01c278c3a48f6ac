//! Limits of the device, failures on demand, settings from the environment.

use super::*;
use cudarc::driver::sys::CUfunction_attribute;

#[test]
fn shared_memory_beyond_48_kib_must_be_asked_for() {
    let gpu = Gpu::new();
    let kernel = gpu.kernel("fault_none_dynamic_shared");
    let mut y = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    let bytes = 100 << 10;
    let n = (bytes / 4) as i32;
    let config = LaunchConfig {
        shared_mem_bytes: bytes,
        ..blocks(1, 64)
    };
    let text = diagnosis(
        launch!(gpu.stream, kernel.clone(), config, &mut y, &n),
        CUresult::CUDA_ERROR_INVALID_VALUE,
    );
    assert_mentions(&text, &["102400", "49152", "cuFuncSetAttribute"]);
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert!(kernel.set_attribute(attribute, (227 << 10) + 1).is_err());
    kernel.set_attribute(attribute, bytes as i32).unwrap();
    launch!(gpu.stream, kernel, config, &mut y, &n).unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [n as f32 - 1.0]);
}

#[test]
fn launches_outside_the_limits_are_refused() {
    let gpu = Gpu::new();
    let mut y = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    for (config, word) in [
        (blocks(1, 1025), "1025"),
        (blocks(0, 32), "grid"),
        (blocks(1, 512), "__launch_bounds__"),
    ] {
        let result = launch!(
            gpu.stream,
            gpu.kernel("fault_none_fill"),
            config,
            &mut y,
            &1_i32,
            &0_f32
        );
        assert_mentions(
            &diagnosis(result, CUresult::CUDA_ERROR_INVALID_VALUE),
            &["fault_none_fill", word],
        );
    }
}

#[test]
fn a_planned_call_fails() {
    let gpu = Gpu::new();
    assert_eq!(steer(c"l2b_emulator_set_failure", Some("cuMemAllocAsync:2")), 1);
    let first = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    let text = diagnosis(
        gpu.stream.alloc_zeros::<f32>(1).map(drop),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    );
    assert_mentions(&text, &["cuMemAllocAsync", "L2B_EMULATOR_FAIL"]);
    gpu.stream.alloc_zeros::<f32>(1).unwrap();
    assert_eq!(
        steer(c"l2b_emulator_set_failure", Some("cuLaunchKernel:1:719")),
        1
    );
    let mut y = first;
    let result = launch!(
        gpu.stream,
        gpu.kernel("fault_none_fill"),
        blocks(1, 32),
        &mut y,
        &1_i32,
        &0_f32
    );
    diagnosis(result, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    for nonsense in ["cuMemAlloc_v2", "cuMemAlloc_v2:0", ":1", "cuMemAlloc_v2:x"] {
        assert_eq!(
            steer(c"l2b_emulator_set_failure", Some(nonsense)),
            0,
            "{nonsense}"
        );
    }
    assert_eq!(steer(c"l2b_emulator_set_order", Some("sideways")), 0);
}

#[test]
fn memory_size_and_capability_come_from_the_environment() {
    let variables = [
        ("L2B_EMULATOR_MEMORY", "1M"),
        ("L2B_EMULATOR_CC", "8.0"),
        ("L2B_EMULATOR_LEAKS", "1"),
    ];
    let text = assert_child_passes("limits::child_with_little_memory", &variables);
    assert_mentions(&text, &["never freed", "of 400 bytes"]);
    assert_child_passes("limits::child_with_nonsense", &[("L2B_EMULATOR_MEMORY", "lots")]);
}

#[test]
#[ignore = "runs in a child process with its own environment"]
fn child_with_nonsense() {
    driver::load_emulator().unwrap();
    let text = diagnosis(CudaContext::new(0).map(drop), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_mentions(&text, &["L2B_EMULATOR_MEMORY=lots", "bytes"]);
}

#[test]
#[ignore = "runs in a child process with its own environment"]
fn child_with_little_memory() {
    let gpu = Gpu::new();
    assert_eq!(gpu.ctx.compute_capability().unwrap(), (8, 0));
    assert_eq!(gpu.ctx.total_mem().unwrap(), 1 << 20);
    let half = gpu.stream.alloc_zeros::<u8>(600_000).unwrap();
    let result = gpu.stream.alloc_zeros::<u8>(600_000).map(drop);
    assert_mentions(
        &diagnosis(result, CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        &["600000 bytes asked for", "1048576"],
    );
    drop(half);
    gpu.stream.synchronize().unwrap();
    gpu.stream.alloc_zeros::<u8>(600_000).unwrap();
    std::mem::forget(gpu.stream.alloc_zeros::<f32>(100).unwrap());
}

#[test]
fn an_endless_kernel_is_stopped() {
    let variables = [("L2B_EMULATOR_LAUNCH_SECONDS", "1")];
    assert_child_passes("limits::child_with_an_endless_kernel", &variables);
}

#[test]
#[ignore = "runs in a child process with its own environment"]
fn child_with_an_endless_kernel() {
    let gpu = Gpu::new();
    let mut flag = gpu.stream.alloc_zeros::<i32>(1).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_endless_loop"),
        blocks(1, 32),
        &mut flag
    )
    .unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_mentions(&text, &["fault_endless_loop", "CPU time"]);
}
