//! Asynchrony: events order streams, and a missing event or synchronisation shows.

use super::*;

/// Two streams, the second reads what the first writes; `ordered` puts an event between them.
fn across_streams(gpu: &Gpu, ordered: bool) -> f32 {
    let other = gpu.ctx.new_stream().unwrap();
    let x = gpu.stream.clone_htod(&[5_f32]).unwrap();
    let mut middle = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    let mut y = other.alloc_zeros::<f32>(1).unwrap();
    gpu.stream.synchronize().unwrap();
    other.synchronize().unwrap();
    let kernel = gpu.kernel("fault_none");
    launch!(
        gpu.stream,
        kernel.clone(),
        blocks(1, 32),
        &mut middle,
        &x,
        &1_i32,
        &1_f32
    )
    .unwrap();
    if ordered {
        other.wait(&gpu.stream.record_event(None).unwrap()).unwrap();
    }
    launch!(other, kernel, blocks(1, 32), &mut y, &middle, &1_i32, &1_f32).unwrap();
    other.synchronize().unwrap();
    other.clone_dtoh(&y).unwrap()[0]
}

#[test]
fn an_event_orders_streams_and_a_missing_one_shows() {
    let gpu = Gpu::new();
    let mut wrong = 0;
    for order in ORDERS {
        let _order = InOrder::new(order);
        assert_eq!(across_streams(&gpu, true), 5.0, "{order}");
        wrong += usize::from(across_streams(&gpu, false) != 5.0);
    }
    assert!(
        wrong > 0,
        "the missing event gave the right result in every order"
    );
    assert!(
        wrong < ORDERS.len(),
        "reversed order runs the other stream first: right by luck, as on a GPU"
    );
}

#[test]
fn pinned_memory_shows_a_missing_synchronisation() {
    let gpu = Gpu::new();
    let x = gpu.stream.clone_htod(&[5_f32]).unwrap();
    // SAFETY: filled in the next lines before it is read.
    let mut pinned = unsafe { gpu.ctx.alloc_pinned::<f32>(1) }.unwrap();
    pinned.as_mut_slice().unwrap()[0] = 1.0;
    let address = pinned.as_ptr().unwrap();
    gpu.stream.memcpy_dtoh(&x, &mut pinned).unwrap();
    // SAFETY: the buffer lives; reading behind cudarc's back is the mistake under test.
    assert_eq!(
        unsafe { address.read_volatile() },
        1.0,
        "an asynchronous copy ran at once"
    );
    gpu.stream.synchronize().unwrap();
    assert_eq!(pinned.as_slice().unwrap(), [5.0]);
}

#[test]
fn events_time_and_answer_queries() {
    let gpu = Gpu::new();
    let flags = Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = gpu.stream.record_event(flags).unwrap();
    let mut y = gpu.stream.alloc_zeros::<f32>(64).unwrap();
    launch!(
        gpu.stream,
        gpu.kernel("fault_uninitialised_shared"),
        blocks(1, 64),
        &mut y
    )
    .unwrap();
    let end = gpu.stream.record_event(flags).unwrap();
    assert!(!end.is_complete(), "nothing has run yet");
    let turns = (0..100).take_while(|_| !end.is_complete()).count();
    assert!(turns < 100, "polling never ends");
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
}
