//! The device under test.

use cudarc::driver::CudaContext;
use l2b::device::cuda::{Cuda, devices, driver};
use l2b::{Result, device::Device};
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::{Arc, OnceLock};

/// Whether the tests run on the emulator.
pub fn emulated() -> bool {
    cfg!(feature = "emulator") && std::env::var("L2B_TEST_DEVICE").as_deref() != Ok("cuda")
}

/// Whether a sanitizer, some fifty times slower, runs the tests: on fewer shapes and in one order.
pub fn reduced() -> bool {
    std::env::var_os("L2B_REDUCED_TESTS").is_some()
}

/// All shapes with their numbers; under a sanitizer the second of every `step`.
pub fn thinned<T>(shapes: impl IntoIterator<Item = T>, step: usize) -> impl Iterator<Item = (usize, T)> {
    let (first, step) = if reduced() { (1, step) } else { (0, 1) };
    shapes.into_iter().enumerate().skip(first).step_by(step)
}

/// A device of its own, in f32: tests run side by side and share neither stream nor errors. None without any.
pub fn open() -> Option<Cuda> {
    open_as(Cuda::new)
}

/// As [`open`], in another precision: `Cuda::tf32`, `Cuda::bf16`.
pub fn open_as<D: Device>(make: impl Fn(usize) -> Result<D>) -> Option<D> {
    if emulated() {
        driver::load_emulator().expect("the emulator");
        return Some(make(0).expect("the emulator"));
    }
    // A GPU too old, or a binary without kernels, is no device to test on.
    let listing = devices().expect("listing the GPUs");
    if let Some(gpu) = listing.usable() {
        // Held until the process ends: with the last device of a test its context would go, and the next test would wait
        // for a new one, under a sanitizer for seconds. Not on the emulator, whose contexts are to come and go.
        static CONTEXT: OnceLock<Arc<CudaContext>> = OnceLock::new();
        CONTEXT.get_or_init(|| CudaContext::new(gpu.ordinal).expect("a usable GPU"));
        return Some(make(gpu.ordinal).expect("a usable GPU"));
    }
    let required = std::env::var("L2B_REQUIRE_GPU").is_ok_and(|value| value == "1");
    assert!(
        !required,
        "L2B_REQUIRE_GPU=1, and there is no usable device: {listing:?}"
    );
    println!("skipped: no device");
    None
}

/// The orders in which the emulator runs threads and blocks. A single order misses what another one shows.
pub const ORDERS: [&str; 4] = ["forward", "reversed", "random:1", "random:2"];

/// Sets the order of the calling thread's launches; does nothing on a GPU.
pub fn set_order(order: &str) {
    if emulated() {
        let symbol = driver::emulator_symbol(c"l2b_emulator_set_order").expect("the emulator's control");
        let order = CString::new(order).expect("no zero byte");
        // SAFETY: declared so in kernels/emulator/driver.h; the string lives through the call.
        let set: extern "C" fn(*const c_char) -> c_int = unsafe { std::mem::transmute(symbol) };
        assert_eq!(set(order.as_ptr()), 1, "order {order:?}");
    }
}

/// Takes the calling thread's waits of streams for events away in the emulator, or gives them back.
pub fn set_waits(kept: bool) {
    switch(c"l2b_emulator_set_event_waits", kept);
}

/// Leaves the reading of pageable memory to the copies that the calling thread asks for in the emulator, or ends that.
pub fn set_staging(kept: bool) {
    switch(c"l2b_emulator_set_staging", kept);
}

fn switch(name: &CStr, on: bool) {
    let symbol = driver::emulator_symbol(name).expect("the emulator's control");
    // SAFETY: declared so in kernels/emulator/driver_context.cpp.
    let set: extern "C" fn(c_int) = unsafe { std::mem::transmute(symbol) };
    set(c_int::from(on));
}

/// Runs a test in forward and in a random order (on a GPU once).
pub fn in_orders(test: impl Fn(&Cuda)) {
    in_orders_as(Cuda::new, test);
}

/// As [`in_orders`], in another precision.
pub fn in_orders_as<D: Device>(make: impl Fn(usize) -> Result<D>, test: impl Fn(&D)) {
    let orders = match (emulated(), reduced()) {
        (true, true) => &ORDERS[2..3],
        (true, false) => &ORDERS[..3],
        (false, _) => &ORDERS[..1],
    };
    for order in orders.iter().filter(|order| **order != "reversed") {
        if let Some(cuda) = open_as(&make) {
            set_order(order);
            test(&cuda);
        }
    }
}
