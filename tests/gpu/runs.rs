//! Training runs: steps recorded and replayed, inputs and results that cross beside the work.

use super::common::{fetch_raw, room, run, transfer};
use super::device::{emulated, in_orders, open, open_as, set_order, set_staging, set_waits};
use l2b::device::Device;
use l2b::device::cuda::Cuda;

#[test]
fn transfers_keep_their_order() {
    in_orders(|cuda| {
        let (arrived, sent) = transfer::pipeline(cuda);
        assert_eq!(arrived, sent);
        transfer::refusals(cuda);
    });
}

/// Without the events between the two streams, some order of the streams shows it.
#[test]
fn a_missing_event_between_upload_and_kernels_shows() {
    if !emulated() {
        return;
    }
    let mut wrong = 0;
    for order in ["forward", "reversed", "random:1", "random:2", "random:3"] {
        let cuda = open().expect("the emulator");
        set_order(order);
        set_waits(false);
        let (arrived, sent) = transfer::pipeline(&cuda);
        wrong += usize::from(arrived != sent);
        set_waits(true);
        let (arrived, sent) = transfer::pipeline(&cuda);
        assert_eq!(arrived, sent, "{order}");
    }
    assert!(wrong > 0, "right in every order");
}

/// The driver may read pageable memory as late as the copy runs; by then it is the caller's again.
#[test]
fn an_upload_has_read_its_source_when_it_returns() {
    if !emulated() {
        return;
    }
    let cuda = open().expect("the emulator");
    set_staging(false);
    let operand = room(&cuda, 64);
    let mut source = vec![1u8; 64];
    cuda.upload(operand.mem(), &source).expect("upload");
    source.fill(2);
    std::hint::black_box(&source);
    set_staging(true);
    assert_eq!(fetch_raw::<Cuda, u8>(&cuda, &operand), [1; 64]);
}

/// Whole and last batches of warm-up, method and evaluation: six recordings.
#[test]
fn recorded_steps_have_the_bits_of_single_calls() {
    in_orders_of_runs(|device| run::all_ways_agree(device, 6));
}

#[test]
fn recorded_steps_have_the_bits_of_single_calls_in_bf16() {
    if open().is_some() {
        run::all_ways_agree(|| open_as(Cuda::bf16).expect("it was there before"), 6);
    }
}

#[test]
fn divergence_is_named_and_undone() {
    in_orders_of_runs(|device| run::divergence_is_named_and_undone(device));
}

/// As `in_orders`, with a new device for each run.
fn in_orders_of_runs(test: impl Fn(&dyn Fn() -> Cuda)) {
    in_orders(|_| test(&|| open().expect("it was there before")));
}
