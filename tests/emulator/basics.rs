//! What works on a GPU works: device, copies, launches, reductions, matrix operations, fresh memory.

use super::*;
use cudarc::driver::sys::CUdevice_attribute;

#[test]
fn device_has_a_name_and_limits() {
    let gpu = Gpu::new();
    assert_eq!(gpu.ctx.name().unwrap(), "CPU emulator");
    assert_eq!(gpu.ctx.compute_capability().unwrap(), (9, 0));
    let (free, total) = gpu.ctx.mem_get_info().unwrap();
    assert!(free <= total && total == gpu.ctx.total_mem().unwrap());
    let opt_in = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(gpu.ctx.attribute(opt_in).unwrap(), 227 << 10);
}

#[test]
fn every_kernel_of_the_scan_is_there() {
    let gpu = Gpu::new();
    assert!(!driver::KERNEL_NAMES.is_empty() && !driver::SM90_KERNEL_NAMES.is_empty());
    for name in driver::KERNEL_NAMES.iter().chain(driver::SM90_KERNEL_NAMES) {
        gpu.kernel(name);
        assert!(!name.starts_with("fault_"), "{name} belongs to the tests");
    }
}

#[test]
fn unknown_kernel_is_an_error() {
    let gpu = Gpu::new();
    let text = diagnosis(
        gpu.module.load_function("nowhere").map(drop),
        CUresult::CUDA_ERROR_NOT_FOUND,
    );
    assert_mentions(&text, &["nowhere"]);
}

#[test]
fn copies_and_launches_agree_with_the_host_in_every_order() {
    let gpu = Gpu::new();
    for order in ORDERS {
        let _order = InOrder::new(order);
        let (n, a) = (1000_i32, 3_f32);
        let x = gpu.stream.clone_htod(&numbers(1000)).unwrap();
        let mut y = gpu.stream.alloc_zeros::<f32>(1000).unwrap();
        launch!(
            gpu.stream,
            gpu.kernel("fault_none"),
            blocks(3, 256),
            &mut y,
            &x,
            &n,
            &a
        )
        .unwrap();
        let copy = gpu.stream.clone_dtod(&y).unwrap();
        let expected: Vec<f32> = numbers(1000).iter().map(|x| 3.0 * x).collect();
        assert_eq!(gpu.stream.clone_dtoh(&copy).unwrap(), expected, "{order}");
    }
}

#[test]
fn reductions_agree_with_the_host_in_every_order() {
    let gpu = Gpu::new();
    for order in ORDERS {
        let _order = InOrder::new(order);
        let x = gpu.stream.clone_htod(&numbers(5 * 77)).unwrap();
        let mut y = gpu.stream.alloc_zeros::<f32>(5).unwrap();
        launch!(
            gpu.stream,
            gpu.kernel("fault_none_row_sum"),
            blocks(5, 96),
            &mut y,
            &x,
            &77_i32
        )
        .unwrap();
        let expected: Vec<f32> = numbers(5 * 77).chunks(77).map(|row| row.iter().sum()).collect();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), expected, "{order}");
    }
}

#[test]
fn matrix_operations_agree_with_the_host_in_every_order() {
    let gpu = Gpu::new();
    // Small integers: exact in bf16 and tf32, and so are all sums.
    let a: Vec<half::bf16> = numbers(256).into_iter().map(half::bf16::from_f32).collect();
    let b: Vec<half::bf16> = numbers(128).into_iter().rev().map(half::bf16::from_f32).collect();
    let expected: Vec<f32> = (0..128)
        .map(|i| {
            (0..16)
                .map(|k| a[i / 8 * 16 + k].to_f32() * b[i % 8 * 16 + k].to_f32())
                .sum()
        })
        .collect();
    for order in ORDERS {
        let _order = InOrder::new(order);
        let (a, b) = (
            gpu.stream.clone_htod(&a).unwrap(),
            gpu.stream.clone_htod(&b).unwrap(),
        );
        let mut d = gpu.stream.alloc_zeros::<f32>(128).unwrap();
        let mut d_tf32 = gpu.stream.alloc_zeros::<f32>(128).unwrap();
        launch!(
            gpu.stream,
            gpu.kernel("fault_none_mma"),
            blocks(1, 32),
            &mut d,
            &mut d_tf32,
            &a,
            &b
        )
        .unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&d).unwrap(), expected, "bf16, {order}");
        assert_eq!(gpu.stream.clone_dtoh(&d_tf32).unwrap(), expected, "tf32, {order}");

        let x: Vec<u16> = (0..64).collect();
        let transposed: Vec<u16> = (0..64).map(|i| i % 8 * 8 + i / 8).collect();
        let x = gpu.stream.clone_htod(&x).unwrap();
        let mut y = gpu.stream.alloc_zeros::<u16>(64).unwrap();
        launch!(
            gpu.stream,
            gpu.kernel("fault_none_transpose"),
            blocks(1, 32),
            &mut y,
            &x
        )
        .unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), transposed, "{order}");
    }
}

#[test]
fn structs_arrive_by_value_and_wide_arithmetic_is_exact() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Params {
        x: f64,
        factor: u64,
        small: u32,
    }
    // SAFETY: plain numbers in C layout, the same as the kernel's struct.
    unsafe impl cudarc::driver::DeviceRepr for Params {}

    let gpu = Gpu::new();
    let mut params = Params {
        x: 2.25,
        factor: 0x8000_0000_0000_0003,
        small: 0xffff_fffe,
    };
    let mut out = gpu.stream.alloc_zeros::<f64>(3).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_none_params"),
        blocks(1, 1),
        &mut out,
        &params
    )
    .unwrap();
    let high = ((params.factor as u128 * params.factor as u128) >> 64) as f64;
    // The launch holds a copy: changing the struct afterwards, before anything has run, changes nothing.
    params.x = 0.0;
    assert_eq!(
        gpu.stream.clone_dtoh(&out).unwrap(),
        [high, 0xffff_fffc_u32 as f64, 2.25 * 2.25 + 1.5]
    );
    assert_eq!(params.x, 0.0);
}

#[test]
fn fresh_memory_is_nan() {
    let gpu = Gpu::new();
    // SAFETY: reading what was never written is the point; any bits are a valid f32.
    let fresh = unsafe { gpu.stream.alloc::<f32>(100) }.unwrap();
    assert!(gpu.stream.clone_dtoh(&fresh).unwrap().iter().all(|x| x.is_nan()));
    let mut y = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_uninitialised_shared"),
        blocks(2, 64),
        &mut y
    )
    .unwrap();
    assert!(gpu.stream.clone_dtoh(&y).unwrap().iter().all(|x| x.is_nan()));
}
