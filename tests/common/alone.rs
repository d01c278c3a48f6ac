//! `l2b bench`'s operations on operands of their own.

use clap::ValueEnum;
use l2b::bench::alone::Alone;
use l2b::bench::case::{Case, Operation, Shape};
use l2b::bench::preact;
use l2b::bench::trace::operations;
use l2b::bench::workload::augment;
use l2b::budget::MetaDepth;
use l2b::device::Device;
use l2b::step::Objective;

/// Every operation of the seam, in each form in which a step of a small network asks for it, runs alone and gives numbers,
/// where it is work for the device.
pub fn every_operation_runs_alone<D: Device>(device: &D) {
    let network = preact(8, vec![1, 2], [8, 6], 3, 5);
    let shape = augment(&network, 5);
    let list = operations(&network, Objective::L2b, (5, 3), MetaDepth::All, shape).unwrap();
    // What no step of this network asks for.
    let others = [
        (Operation::JoinForward, "30,8"),
        (Operation::JoinTangent, "30,8"),
        (Operation::ConvContract, "2,5,6,3,4,3,2,1"),
        (Operation::NormContract, "5,4,3"),
        (Operation::Copy, "100"),
    ]
    .map(|(operation, shape)| Case {
        operation,
        shape: Shape::parse(operation, shape).unwrap(),
        form: operation.usual_form(),
    });
    let mut seen = Vec::new();
    for case in list.into_iter().map(|(_, case)| case).chain(others) {
        if !seen.contains(&case) {
            seen.push(case);
            if !Alone::is_work(device, &case).unwrap() {
                continue;
            }
            let alone = Alone::new(device, case).unwrap();
            alone
                .verify()
                .unwrap_or_else(|error| panic!("{}: {error}", case.name()));
        }
    }
    assert!(seen.len() > 40, "{}", seen.len());
    for operation in Operation::value_variants() {
        assert!(
            seen.iter().any(|case| case.operation == *operation),
            "{operation:?}"
        );
    }
}
