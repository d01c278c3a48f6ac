//! Training runs: steps recorded and replayed, inputs and results that cross beside the work.

use super::common::{run, transfer};
use super::device::{emulated, in_orders, open, open_as, set_order, set_waits};
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
