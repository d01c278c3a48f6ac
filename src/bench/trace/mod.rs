//! The list of a network's operations, with their shapes and forms, by phase: what a step asks of a device that only
//! writes it down.

mod device;

use device::Tracer;

use super::case::Case;
use crate::Result;
use crate::arch::Architecture;
use crate::budget::MetaDepth;
use crate::device::{AugmentShape, StepParams};
use crate::engine::{Engine, EngineOptions, Images, Slot};
use crate::model::{Init, Model};
use crate::net::Reuse;
use crate::phase::Phase;
use crate::step::Objective;

/// What one step asks for, in order: an operation and the phase it belongs to.
///
/// # Errors
/// `Config` for a network that cannot be.
pub fn operations(
    architecture: &Architecture,
    objective: Objective,
    (n, m): (usize, usize),
    meta_depth: MetaDepth,
    augment: AugmentShape,
) -> Result<Vec<(Phase, Case)>> {
    let device = Tracer::default();
    let program = architecture.program()?;
    let classes = program.classes();
    let model = Model::new(&device, program, Init::Uniform, 0)?;
    let options = EngineOptions {
        meta_depth,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(device, model, options, &[n, m], Reuse::ByLifetime)?;
    for (slot, size) in [(Slot::Train, n), (Slot::Meta, m)] {
        let augment = AugmentShape {
            n: size as i32,
            ..augment
        };
        let labels: Vec<i32> = (0..size).map(|i| (i % classes) as i32).collect();
        let images = Images::Pixels {
            bytes: &[],
            ids: &[],
            augment,
        };
        engine.feed(slot, images, &labels)?;
    }
    engine.device.take();
    engine.record_phases(true);
    engine.step(objective, &<StepParams as bytemuck::Zeroable>::zeroed())?;
    let phases = engine.record_phases(false);
    let cases = engine.device.take();
    let mut list = Vec::with_capacity(cases.len());
    for pair in phases.windows(2) {
        let [(Some(phase), from), (_, to)] = pair else {
            continue;
        };
        list.extend(cases[*from..*to].iter().map(|case| (*phase, *case)));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::{Ceilings, Form, Operation, Shape, Sizes};
    use crate::bench::preact;

    fn resnet18(objective: Objective) -> Vec<(Phase, Case)> {
        let augment = AugmentShape {
            n: 0,
            h: 32,
            w: 32,
            c: 3,
            pad: 4,
            flip: 1,
            view: 0,
            gather: 0,
        };
        operations(
            &preact(64, vec![2; 4], [32, 32], 3, 10),
            objective,
            (512, 512),
            MetaDepth::All,
            augment,
        )
        .unwrap()
    }

    /// A case's multiply-adds where taps in the padding count too.
    fn with_padding(case: &Case) -> f64 {
        match case.shape {
            Shape::Conv(s) if case.operation != Operation::ArrangeFilters => {
                let products = if case.form.has(Form::TANGENT) { 2.0 } else { 1.0 };
                products * 2.0 * (s.y_len() * s.taps()) as f64 * f64::from(s.c)
            }
            _ => 0.0,
        }
    }

    /// 20 convolutions and the linear layer: forward twice, tangent, both backward passes twice (the stem's input has no
    /// adjoint); 5 + 3 forward-equivalents in all.
    #[test]
    fn a_step_of_resnet18_is_what_the_method_says() {
        let list = resnet18(Objective::L2b);
        let count = |operation| list.iter().filter(|(_, c)| c.operation == operation).count();
        assert_eq!(count(Operation::ConvForward), 2 * 21);
        assert_eq!(count(Operation::ConvTangent), 21);
        assert_eq!(count(Operation::ConvBackwardInput), 2 * 20);
        assert_eq!(count(Operation::ConvBackwardWeight), 2 * 21);
        // θ̂, v and θ, each once.
        assert_eq!(count(Operation::ArrangeFilters), 3 * 21);
        assert_eq!(count(Operation::Augment), 2);
        assert_eq!(count(Operation::TangentDot), 2);
        // 4.54 TFLOP with the taps in the padding, which touch one seventh of all multiply-adds.
        let total = |list: &[(Phase, Case)], flops: &dyn Fn(&Case) -> f64| -> f64 {
            list.iter().map(|(_, case)| flops(case)).sum()
        };
        let padded = total(&list, &with_padding);
        assert!((padded / 4.54e12 - 1.0).abs() < 0.01, "{padded:e}");
        let needed = total(&list, &Case::flops);
        assert!((needed / padded - 0.8675).abs() < 1e-3, "{needed:e}");
        let ce = resnet18(Objective::CrossEntropy);
        for flops in [&with_padding as &dyn Fn(&Case) -> f64, &Case::flops] {
            let ratio = total(&list, flops) / total(&ce, flops);
            assert!((ratio - 8.0 / 3.0).abs() < 0.01, "{ratio}");
        }
        assert!(ce.iter().all(|(phase, _)| !matches!(
            phase,
            Phase::MetaForward | Phase::MetaBackward | Phase::Tangent | Phase::Weights
        )));
    }

    /// The floor against an independent calculation for 790 TFLOP/s and 4.3 TB/s in bf16, by phase, ms (normalise + ReLU as
    /// passes, everything else fused): within 3 % where taps in the padding count, as they do there, and below it where they
    /// do not.
    #[test]
    fn the_e_floor_of_resnet18_is_the_published_one() {
        let (sizes, ceilings) = (
            Sizes { act: 2, real: 4 },
            Ceilings {
                flops: 790e12,
                bytes: 4.3e12,
            },
        );
        let list = resnet18(Objective::L2b);
        let floor = |phases: &[Phase]| -> f64 {
            // The calculation counts the look-ahead with SGD.
            let counts = |case: &Case| case.operation != Operation::Lookahead;
            let mine = list
                .iter()
                .filter(|(phase, case)| phases.contains(phase) && counts(case));
            let seconds = |case: &Case| {
                let floor = case.e_floor(sizes, ceilings);
                if floor == 0.0 {
                    0.0
                } else {
                    floor.max(with_padding(case) / ceilings.flops)
                }
            };
            let least: f64 = mine.clone().map(|(_, case)| case.e_floor(sizes, ceilings)).sum();
            let padded: f64 = mine.map(|(_, case)| seconds(case)).sum();
            assert!(least < padded && least > 0.8 * padded, "{least} {padded}");
            1e3 * padded
        };
        for (phases, want) in [
            (&[Phase::MetaForward][..], 1.01),
            (&[Phase::MetaBackward], 1.96),
            (&[Phase::TrainForward], 1.01),
            (&[Phase::Tangent, Phase::Weights], 1.87),
            (&[Phase::Backward], 1.96),
        ] {
            let got = floor(phases);
            assert!(
                (got / want - 1.0).abs() < 0.03,
                "{phases:?}: {got}, expected {want}"
            );
        }
    }
}
