//! The emulated driver: what works on a GPU works, and each kind of mistake ends in a clear error or in wrong data.
//! Everything goes through cudarc, as in the engine. Limits that hold for a whole process (memory size, compute
//! capability) are tested in child processes: see `in_child`.

use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use l2b::device::cuda::driver;
use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;

const ORDERS: [&str; 6] = [
    "forward", "reversed", "random:1", "random:2", "random:3", "random:4",
];

struct Gpu {
    ctx: Arc<CudaContext>,
    module: Arc<CudaModule>,
    stream: Arc<CudaStream>,
}

impl Gpu {
    fn new() -> Self {
        driver::load_emulator().unwrap();
        assert!(driver::present());
        let ctx = CudaContext::new(0).unwrap();
        // SAFETY: the tests order their streams themselves; that is what they test.
        unsafe { ctx.disable_event_tracking() };
        let module = ctx
            .load_module(Ptx::from_binary(driver::FATBIN.to_vec()))
            .unwrap();
        let stream = ctx.new_stream().unwrap();
        Self { ctx, module, stream }
    }

    fn kernel(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }
}

/// Sets the calling thread's order until dropped.
struct InOrder;

impl InOrder {
    fn new(order: &str) -> Self {
        assert_eq!(steer(c"l2b_emulator_set_order", Some(order)), 1, "order {order}");
        InOrder
    }
}

impl Drop for InOrder {
    fn drop(&mut self) {
        steer(c"l2b_emulator_set_order", None);
    }
}

fn steer(function: &std::ffi::CStr, spec: Option<&str>) -> c_int {
    driver::load_emulator().unwrap();
    let symbol = driver::emulator_symbol(function).expect("the emulator exports it");
    let spec = spec.map(|s| CString::new(s).unwrap());
    // SAFETY: both functions that are called here are declared `int f(const char*)`.
    unsafe {
        let function: extern "C" fn(*const c_char) -> c_int = std::mem::transmute(symbol);
        function(spec.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()))
    }
}

fn blocks(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Launches with the given arguments and waits.
macro_rules! launch {
    ($stream:expr, $kernel:expr, $config:expr, $($arg:expr),*) => {{
        let kernel = $kernel;
        let mut builder = $stream.launch_builder(&kernel);
        $(builder.arg($arg);)*
        // SAFETY: the arguments are those of the kernel, or wrong on purpose: the emulator bears it.
        unsafe { builder.launch($config) }.map(drop)
    }};
}

/// Runs what should fail; returns the diagnosis after checking the driver's error code.
fn diagnosis(result: Result<(), DriverError>, code: CUresult) -> String {
    let error = result.expect_err("a planted fault went unnoticed");
    let text = driver::emulator_last_error().unwrap_or_default();
    assert_eq!(error.0, code, "{text}");
    text
}

fn assert_mentions(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 31) as f32 - 15.0).collect()
}

/// Runs the test `name` of this executable in a child process with environment variables set.
fn in_child(name: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .envs(variables.iter().copied());
    command.output().unwrap()
}

fn assert_child_passes(name: &str, variables: &[(&str, &str)]) -> String {
    let output = in_child(name, variables);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text.into_owned()
}

// Behind the macro, which they use.
mod basics;
mod conv_sm90;
mod faults;
mod graphs;
mod limits;
mod sm90;
mod streams;
mod weight_sm90;
