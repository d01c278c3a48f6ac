//! What exists on sm_90a only: barriers in shared memory, bulk copies by tensor maps, matrix products of warpgroups.

use super::*;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, ValidAsZeroBits};
use half::bf16;

#[repr(transparent)]
pub struct Map(CUtensorMap);
// SAFETY: the kernels take it by value, as the driver wrote it.
unsafe impl DeviceRepr for Map {}

/// A map of a dense tensor of 16-bit elements, dimensions and box fastest first; the swizzle is that of 64-byte or 128-byte
/// rows.
pub fn map<T: DeviceRepr + ValidAsZeroBits>(
    gpu: &Gpu,
    x: &CudaSlice<T>,
    dims: &[u64],
    tile: &[u32],
    swizzled: bool,
) -> Result<Map, DriverError> {
    assert_eq!(size_of::<T>(), 2);
    let strides: Vec<u64> = dims[..dims.len() - 1]
        .iter()
        .scan(2, |bytes, d| {
            *bytes *= d;
            Some(*bytes)
        })
        .collect();
    let swizzle = match (swizzled, tile[0]) {
        (true, 32) => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        (true, _) => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        (false, _) => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let mut map = Map(CUtensorMap { opaque: [0; 16] });
    let (address, _guard) = x.device_ptr(&gpu.stream);
    // SAFETY: the arrays have the tensor's rank.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map.0,
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            dims.len() as u32,
            address as *mut _,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            [1; 5].as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}

pub fn with_shared(threads: u32, bytes: usize) -> LaunchConfig {
    LaunchConfig {
        shared_mem_bytes: bytes as u32,
        ..blocks(1, threads)
    }
}

// ---- bulk copies

#[repr(C)]
#[derive(Clone, Copy)]
struct FaultBox {
    at: [i32; 4],
    elements: i32,
    row_bytes: i32,
    swizzled: i32,
    planted: i32,
}
// SAFETY: twin of the kernels' struct, without padding.
unsafe impl DeviceRepr for FaultBox {}

const DIMS: [usize; 4] = [72, 5, 4, 3];

fn tensor() -> Vec<u16> {
    (1..=DIMS.iter().product::<usize>() as u16).collect()
}

fn copied(gpu: &Gpu, tile: [u32; 4], b: FaultBox) -> Result<Vec<u16>, DriverError> {
    let x = gpu.stream.clone_htod(&tensor()).unwrap();
    let map = map(gpu, &x, &DIMS.map(|d| d as u64), &tile, b.swizzled != 0).unwrap();
    let mut y = gpu.stream.alloc_zeros::<u16>(b.elements as usize).unwrap();
    let config = with_shared(128, b.elements as usize * 2);
    launch!(
        gpu.stream,
        gpu.kernel("fault_tensor_copy"),
        config,
        &mut y,
        &map,
        &b
    )?;
    gpu.stream.clone_dtoh(&y)
}

#[test]
fn boxes_arrive_with_zeros_outside_of_the_tensor() {
    let gpu = Gpu::new();
    let x = tensor();
    let inside = |at: [i32; 4]| {
        let mut offset = 0;
        for d in (0..4).rev() {
            if at[d] < 0 || at[d] >= DIMS[d] as i32 {
                return 0;
            }
            offset = offset * DIMS[d] + at[d] as usize;
        }
        x[offset]
    };
    for (order, tile, at, swizzled) in [
        ("forward", [64, 3, 2, 2], [0, 0, 0, 0], 0),
        ("reversed", [64, 3, 2, 2], [8, 1, 1, 0], 1),
        ("random:1", [64, 3, 2, 2], [-16, -1, -1, -1], 1),
        ("random:2", [64, 4, 3, 1], [16, 3, 2, 2], 1),
        ("forward", [64, 4, 3, 1], [-3, -2, 3, 1], 1),
        ("forward", [32, 4, 3, 2], [-3, 4, -2, 2], 0),
        ("random:1", [32, 4, 3, 2], [16, -1, 2, 1], 1),
        ("forward", [64, 2, 2, 2], [0, 0, 0, 3], 1),
        ("forward", [64, 2, 2, 2], [72, 0, 0, 0], 1),
        ("forward", [8, 1, 1, 1], [i32::MIN, i32::MAX, 0, 0], 0),
    ] {
        let _order = InOrder::new(order);
        let elements = tile.iter().product::<u32>() as i32;
        let b = FaultBox {
            at,
            elements,
            row_bytes: tile[0] as i32 * 2,
            swizzled,
            planted: 0,
        };
        let expected: Vec<u16> = (0..elements)
            .map(|i| {
                let mut rest = i;
                inside([0, 1, 2, 3].map(|d| {
                    let here = rest % tile[d] as i32;
                    rest /= tile[d] as i32;
                    at[d].saturating_add(here)
                }))
            })
            .collect();
        assert_eq!(
            copied(&gpu, tile, b).unwrap(),
            expected,
            "{tile:?} at {at:?}, {order}"
        );
    }
}

#[test]
fn mistakes_with_bulk_copies_show() {
    let gpu = Gpu::new();
    let b = |planted| FaultBox {
        at: [0; 4],
        elements: 64 * 16,
        row_bytes: 128,
        swizzled: 1,
        planted,
    };
    let tile = [64, 4, 2, 2];
    // Read before the wait: fresh shared memory.
    assert!(copied(&gpu, tile, b(1)).unwrap().contains(&0xFFFF));
    for (planted, words) in [
        (2, ["deadlock", "lacks 0 of 1 arrivals and 16 bytes"]),
        (3, ["byte 128 of shared memory", "no multiple of 1024"]),
        (
            4,
            ["from byte 1024", "past the end of the DYN_SMEM array of 2048"],
        ),
    ] {
        let text = diagnosis(
            copied(&gpu, tile, b(planted)).map(drop),
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
        );
        assert_mentions(&text, &words);
        assert_mentions(&text, &["fault_tensor_copy", "faults_sm90.cu:"]);
    }
}

#[test]
fn wrong_tensor_maps_are_refused() {
    let gpu = Gpu::new();
    let x = gpu.stream.clone_htod(&tensor()).unwrap();
    let refused = |dims: &[u64], tile: &[u32]| {
        let result = map(&gpu, &x, dims, tile, true).map(drop);
        diagnosis(result, CUresult::CUDA_ERROR_INVALID_VALUE)
    };
    assert_mentions(&refused(&[72, 5, 4, 4], &[64, 1, 1, 1]), &["past its end"]);
    assert_mentions(
        &refused(&[72, 5, 4, 3], &[72, 1, 1, 1]),
        &["box rows of 144 bytes"],
    );
    assert_mentions(&refused(&[72, 5, 4, 3], &[64, 257, 1, 1]), &["box of 257"]);
    assert_mentions(&refused(&[36, 5, 4, 3], &[32, 1, 1, 1]), &["no multiple of 16"]);

    // The tensor is gone when the kernel is launched; and something else than a map.
    let map = map(&gpu, &x, &DIMS.map(|d| d as u64), &[64, 1, 1, 1], true).unwrap();
    drop(x);
    gpu.stream.synchronize().unwrap();
    let mut y = gpu.stream.alloc_zeros::<u16>(64).unwrap();
    let b = FaultBox {
        at: [0; 4],
        elements: 64,
        row_bytes: 128,
        swizzled: 1,
        planted: 0,
    };
    for (map, words) in [
        (map, "no live device buffer"),
        (Map(CUtensorMap { opaque: [7; 16] }), "no tensor map"),
    ] {
        let config = with_shared(128, 128);
        let result = launch!(
            gpu.stream,
            gpu.kernel("fault_tensor_copy"),
            config,
            &mut y,
            &map,
            &b
        );
        let text = diagnosis(result, CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_mentions(&text, &["argument 1", words]);
    }
}

// ---- a ring of buffers between a producer and consumers

/// The sums that the ring gives of the halves of tiles that hold (tile + 1) each.
fn ring(gpu: &Gpu, planted: i32) -> Result<Vec<i32>, DriverError> {
    let x: Vec<u16> = (0..TILES * 64 * 64).map(|i| (i / 4096 + 1) as u16).collect();
    let x = gpu.stream.clone_htod(&x).unwrap();
    let map = map(gpu, &x, &[64, (TILES * 64) as u64, 1], &[64, 64, 1], false).unwrap();
    let mut y = gpu.stream.alloc_zeros::<i32>(2 * TILES).unwrap();
    let config = with_shared(96, 2 * 64 * 64 * 2);
    let tiles = TILES as i32;
    launch!(
        gpu.stream,
        gpu.kernel("fault_ring"),
        config,
        &mut y,
        &map,
        &tiles,
        &planted
    )?;
    gpu.stream.clone_dtoh(&y)
}

const TILES: usize = 7;

fn ring_sums() -> Vec<i32> {
    (0..2 * TILES as i32).map(|i| (i / 2 + 1) * 2048).collect()
}

#[test]
fn a_ring_of_buffers_works_in_every_order() {
    let gpu = Gpu::new();
    for order in ORDERS {
        let _order = InOrder::new(order);
        assert_eq!(ring(&gpu, 0).unwrap(), ring_sums(), "{order}");
    }
}

#[test]
fn mistakes_with_a_ring_show() {
    let gpu = Gpu::new();
    // 1: consumers that do not wait for full buffers; 2: a producer that does not wait for empty ones.
    for planted in [1, 2] {
        let wrong = ORDERS.iter().filter(|order| {
            let _order = InOrder::new(order);
            !ring(&gpu, planted).is_ok_and(|y| y == ring_sums())
        });
        assert!(wrong.count() >= 3, "planted {planted}");
    }
    // 3: the producer waits for the wrong parity; 4: consumers never release; 5: they release twice, in this order both before
    // the producer.
    let _order = InOrder::new("forward");
    for (planted, words) in [(3, "deadlock"), (4, "deadlock"), (5, "arrivals in one phase")] {
        let text = diagnosis(ring(&gpu, planted).map(drop), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_mentions(&text, &["fault_ring", words, "faults_sm90.cu:"]);
        if words == "deadlock" {
            assert_mentions(&text, &["parity", "lacks 2 of 2 arrivals and 0 bytes"]);
        }
    }
}

// ---- matrix products

const DEPTH: usize = 192;

fn product(gpu: &Gpu, kernel: &str, n: usize, planted: i32) -> Result<Vec<f32>, DriverError> {
    let transposed = kernel.ends_with("transposed");
    let (left, right) = matrices(n);
    let right: Vec<bf16> = if transposed {
        (0..DEPTH * n).map(|i| right[i % n * DEPTH + i / n]).collect()
    } else {
        right
    };
    let (a, b) = (
        gpu.stream.clone_htod(&left).unwrap(),
        gpu.stream.clone_htod(&right).unwrap(),
    );
    let (depth, columns) = (DEPTH as u64, n as u64);
    let a_map = map(gpu, &a, &[depth, 64, 1], &[64, 64, 1], true).unwrap();
    let b_map = if transposed {
        map(gpu, &b, &[columns, depth, 1], &[64, 64, 1], true).unwrap()
    } else if kernel.ends_with("registers") {
        map(gpu, &b, &[depth, columns, 1], &[8, n as u32, 1], false).unwrap()
    } else {
        map(gpu, &b, &[depth, columns, 1], &[64, n as u32, 1], true).unwrap()
    };
    let mut d = gpu.stream.alloc_zeros::<f32>(64 * n).unwrap();
    let config = with_shared(128, (64 + n) * 128);
    let depth = DEPTH as i32;
    launch!(
        gpu.stream,
        gpu.kernel(kernel),
        config,
        &mut d,
        &a_map,
        &b_map,
        &depth,
        &planted
    )?;
    gpu.stream.clone_dtoh(&d)
}

/// a [64][DEPTH], b [n][DEPTH]: small integers, so that all sums are exact.
fn matrices(n: usize) -> (Vec<bf16>, Vec<bf16>) {
    let whole = |i: usize, factor: usize| bf16::from_f32((i * factor % 37 % 11) as f32 - 5.0);
    let a = (0..64 * DEPTH).map(|i| whole(i, 7)).collect();
    (a, (0..n * DEPTH).map(|i| whole(i, 13)).collect())
}

fn naive_product(n: usize) -> Vec<f32> {
    let (a, b) = matrices(n);
    let row = |x: &[bf16], i: usize| x[i * DEPTH..][..DEPTH].to_vec();
    (0..64 * n)
        .map(|i| {
            let (a, b) = (row(&a, i / n), row(&b, i % n));
            a.iter().zip(&b).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
        })
        .collect()
}

#[test]
fn products_of_warpgroups_agree_with_the_host_in_every_order() {
    let gpu = Gpu::new();
    for (kernel, n) in [
        ("fault_wgmma_128", 128),
        ("fault_wgmma_128_transposed", 128),
        ("fault_wgmma_64_registers", 64),
        ("fault_wgmma_64_registers_transposed", 64),
    ] {
        for order in ORDERS {
            let _order = InOrder::new(order);
            assert_eq!(
                product(&gpu, kernel, n, 0).unwrap(),
                naive_product(n),
                "{kernel}, {order}"
            );
        }
    }
}

#[test]
fn mistakes_with_products_show() {
    let gpu = Gpu::new();
    // 1: accumulators read without a wait; 2: products not committed. They hold NaN in every order.
    for (planted, order) in [(1, "forward"), (1, "reversed"), (2, "forward"), (2, "reversed")] {
        let _order = InOrder::new(order);
        let seen = product(&gpu, "fault_wgmma_128", 128, planted);
        assert!(
            seen.map_or(true, |d| d.iter().any(|v| v.is_nan())),
            "planted {planted}, {order}"
        );
    }
    // 4: operands overwritten while the last group is under way.
    let wrong = ORDERS.iter().filter(|order| {
        let _order = InOrder::new(order);
        !product(&gpu, "fault_wgmma_128", 128, 4).is_ok_and(|d| d == naive_product(128))
    });
    assert!(wrong.count() > 0);
    for (planted, words) in [
        (3, "no wgmma_fence since thread 0"),
        (5, "has changed accumulators that are under way"),
        (6, "have committed different numbers of groups"),
    ] {
        let text = diagnosis(
            product(&gpu, "fault_wgmma_128", 128, planted).map(drop),
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
        );
        assert_mentions(&text, &["fault_wgmma_128", words, "faults_sm90.cu:"]);
    }
    // 7: the two offsets of an operand's descriptor swapped.
    for (kernel, n) in [
        ("fault_wgmma_64_registers", 64),
        ("fault_wgmma_128_transposed", 128),
        ("fault_wgmma_64_registers_transposed", 64),
    ] {
        assert!(
            !product(&gpu, kernel, n, 7).is_ok_and(|d| d == naive_product(n)),
            "{kernel}"
        );
    }
    // 8: operand registers written under way; 9: not fenced.
    let _order = InOrder::new("forward");
    for (planted, words) in [
        (8, "has changed operand registers"),
        (9, "no wgmma_fence since thread 0 last waited"),
    ] {
        let text = diagnosis(
            product(&gpu, "fault_wgmma_64_registers_transposed", 64, planted).map(drop),
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
        );
        assert_mentions(&text, &["fault_wgmma_64_registers_transposed", words]);
    }
}

// ---- only there

#[test]
fn other_devices_lack_these_kernels() {
    assert_child_passes("sm90::lacks_these_kernels", &[("L2B_EMULATOR_CC", "8.0")]);
}

#[test]
#[ignore = "with a compute capability of 8.0"]
fn lacks_these_kernels() {
    let gpu = Gpu::new();
    let text = diagnosis(
        gpu.module.load_function("fault_ring").map(drop),
        CUresult::CUDA_ERROR_NOT_FOUND,
    );
    assert_mentions(&text, &["fault_ring", "sm_90a only"]);
}

#[test]
fn other_kernels_may_not_use_it() {
    let text = faults::fault("fault_mbarrier_elsewhere", blocks(1, 32), 32);
    assert_mentions(&text, &["mbarrier", "sm_90a only", "*_sm90.cu", "faults.cu:"]);
}
