//! Capture and replay, and the calls that a capture forbids.

use super::*;
use cudarc::driver::sys::CUstreamCaptureMode;

const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn a_captured_graph_runs_when_launched_and_only_then() {
    let gpu = Gpu::new();
    for order in ORDERS {
        let _order = InOrder::new(order);
        let x = gpu.stream.clone_htod(&[1_f32; 100]).unwrap();
        let mut y = gpu.stream.alloc_zeros::<f32>(100).unwrap();
        gpu.stream.synchronize().unwrap();
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        for _ in 0..3 {
            launch!(
                gpu.stream,
                gpu.kernel("fault_none"),
                blocks(1, 128),
                &mut y,
                &x,
                &100_i32,
                &2_f32
            )
            .unwrap();
        }
        let graph = gpu.stream.end_capture(no_flags()).unwrap().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [0.0; 100]);
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [12.0; 100], "{order}");
    }
}

#[test]
fn a_capture_follows_events_to_another_stream_and_back() {
    let gpu = Gpu::new();
    for order in ORDERS {
        let _order = InOrder::new(order);
        let other = gpu.ctx.new_stream().unwrap();
        let x = gpu.stream.clone_htod(&[1_f32]).unwrap();
        let mut middle = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let mut y = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        gpu.stream.synchronize().unwrap();
        let kernel = || gpu.kernel("fault_none");
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        launch!(
            gpu.stream,
            kernel(),
            blocks(1, 32),
            &mut middle,
            &x,
            &1_i32,
            &3_f32
        )
        .unwrap();
        other.wait(&gpu.stream.record_event(None).unwrap()).unwrap();
        launch!(other, kernel(), blocks(1, 32), &mut y, &middle, &1_i32, &1_f32).unwrap();
        gpu.stream.wait(&other.record_event(None).unwrap()).unwrap();
        launch!(
            gpu.stream,
            kernel(),
            blocks(1, 32),
            &mut middle,
            &y,
            &1_i32,
            &1_f32
        )
        .unwrap();
        let graph = gpu.stream.end_capture(no_flags()).unwrap().unwrap();
        graph.launch().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&middle).unwrap(), [6.0], "{order}");
    }
}

#[test]
fn work_left_on_another_stream_spoils_a_capture() {
    let gpu = Gpu::new();
    let other = gpu.ctx.new_stream().unwrap();
    let mut y = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
    other.wait(&gpu.stream.record_event(None).unwrap()).unwrap();
    other.memset_zeros(&mut y).unwrap();
    let text = diagnosis(
        gpu.stream.end_capture(no_flags()).map(drop),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
    );
    assert_mentions(&text, &["joined"]);
}

#[test]
fn calls_forbidden_while_capturing_return_errors() {
    let gpu = Gpu::new();
    type Call = fn(&Gpu) -> Result<(), DriverError>;
    let forbidden: [(&str, Call); 3] = [
        ("synchronising", |gpu| gpu.stream.synchronize()),
        ("cuMemAllocAsync", |gpu| {
            gpu.stream.alloc_zeros::<f32>(1).map(drop)
        }),
        ("cuCtxSynchronize", |gpu| gpu.ctx.synchronize()),
    ];
    for (what, call) in forbidden {
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        let text = diagnosis(call(&gpu), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_mentions(&text, &[what]);
        let text = diagnosis(
            gpu.stream.end_capture(no_flags()).map(drop),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        );
        assert_mentions(&text, &[what]);
    }
    gpu.stream.synchronize().unwrap();
}

#[test]
fn a_graph_that_outlives_its_buffer_is_reported() {
    let gpu = Gpu::new();
    let mut y = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_none_fill"),
        blocks(1, 64),
        &mut y,
        &64_i32,
        &1_f32
    )
    .unwrap();
    let graph = gpu.stream.end_capture(no_flags()).unwrap().unwrap();
    drop(y);
    graph.launch().unwrap();
    let text = diagnosis(gpu.stream.synchronize(), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_mentions(&text, &["fault_none_fill", "argument 0", "freed device buffer"]);
}

fn no_flags() -> cudarc::driver::sys::CUgraphInstantiate_flags {
    cudarc::driver::sys::CUgraphInstantiate_flags(0)
}
