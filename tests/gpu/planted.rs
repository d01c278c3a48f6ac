//! Launches of kernels with planted mistakes (tests/faults), one for each tool of compute-sanitizer: `scripts/gpu-check`
//! demands that the tool reports it before it believes the tool's silence about the real kernels. On a GPU the kernels come
//! from the file that `L2B_FAULTS` names, and nothing is asserted: it is for the tool to notice. The emulator has them built
//! in, and diagnoses what a single order of threads can show.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use l2b::device::cuda::driver;

use super::device::emulated;

struct Planted {
    module: Arc<CudaModule>,
    stream: Arc<CudaStream>,
}

impl Planted {
    /// None without any device or without the kernels.
    fn open() -> Option<Self> {
        let image = if emulated() {
            driver::load_emulator().expect("the emulator");
            driver::FATBIN.to_vec()
        } else {
            let Some(path) = std::env::var_os("L2B_FAULTS") else {
                println!("skipped: L2B_FAULTS names no file");
                return None;
            };
            std::fs::read(path).expect("the file that L2B_FAULTS names")
        };
        let context = CudaContext::new(0).expect("a GPU");
        // SAFETY: nothing is allocated yet, and each test has one stream.
        unsafe { context.disable_event_tracking() };
        let module = context.load_module(Ptx::from_binary(image)).expect("kernels");
        let stream = context.new_stream().expect("a stream");
        Some(Planted { module, stream })
    }

    fn kernel(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).expect("a planted fault")
    }

    /// Waits. Whether anything failed, which is for the emulator to say.
    fn end(&self, diagnosed: bool) {
        let failed = self.stream.synchronize().is_err();
        assert!(!emulated() || failed == diagnosed, "failed: {failed}");
    }
}

fn block(threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

#[test]
fn memcheck_write_past_the_end() {
    let Some(gpu) = Planted::open() else { return };
    let mut y = gpu.stream.alloc_zeros::<f32>(64).expect("memory");
    let kernel = gpu.kernel("fault_past_end");
    // SAFETY: not at all, on purpose: one value is written behind the last; memory comes in larger pieces.
    let launched = unsafe {
        gpu.stream
            .launch_builder(&kernel)
            .arg(&mut y)
            .arg(&64_i32)
            .launch(block(128))
    };
    launched.expect("a launch");
    gpu.end(true);
    // A device that stopped at the fault would say so again here.
    std::mem::forget(y);
}

#[test]
fn racecheck_missing_barrier() {
    let Some(gpu) = Planted::open() else { return };
    let x = gpu.stream.alloc_zeros::<f32>(256).expect("memory");
    let mut y = gpu.stream.alloc_zeros::<f32>(1).expect("memory");
    let kernel = gpu.kernel("fault_missing_barrier");
    // SAFETY: the kernel's arguments and sizes; the race is within its shared memory.
    let launched = unsafe {
        gpu.stream
            .launch_builder(&kernel)
            .arg(&mut y)
            .arg(&x)
            .launch(block(256))
    };
    launched.expect("a launch");
    gpu.end(false);
}

#[test]
fn initcheck_read_of_what_nothing_wrote() {
    let Some(gpu) = Planted::open() else { return };
    let x = gpu.stream.alloc_zeros::<f32>(64).expect("memory");
    // SAFETY: every pattern of bytes is an f32.
    let mut y = unsafe { gpu.stream.alloc::<f32>(64) }.expect("memory");
    let kernel = gpu.kernel("fault_none");
    // SAFETY: the kernel's arguments and sizes. It adds to what is in y, which nothing has written.
    let launched = unsafe {
        gpu.stream
            .launch_builder(&kernel)
            .arg(&mut y)
            .arg(&x)
            .arg(&64_i32)
            .arg(&1.0_f32)
            .launch(block(64))
    };
    launched.expect("a launch");
    gpu.end(false);
}

#[test]
fn synccheck_barrier_that_not_all_threads_meet() {
    let Some(gpu) = Planted::open() else { return };
    let mut y = gpu.stream.alloc_zeros::<f32>(128).expect("memory");
    let kernel = gpu.kernel("fault_skipped_barrier");
    // SAFETY: the kernel's arguments and sizes. A GPU counts a warp that has come, so nothing hangs.
    let launched = unsafe {
        gpu.stream
            .launch_builder(&kernel)
            .arg(&mut y)
            .arg(&100_i32)
            .launch(block(128))
    };
    launched.expect("a launch");
    gpu.end(true);
    std::mem::forget(y);
}
