//! A device that computes nothing and writes down what it is asked for: a step run on it is the list of a network's
//! operations, with their shapes and forms, by phase.

use std::sync::Mutex;

use super::case::{Case, Form, Operation, Shape};
use crate::Result;
use crate::arch::Architecture;
use crate::budget::MetaDepth;
use crate::device::{
    AugmentShape, Conv, Device, Epilogue, Geometry, LossShape, Mem, Norm, Normalise, PoolShape, Prepared,
    Rows, Source, Statistics, StepParams, Sums, Tangent, Targets, Write,
};
use crate::engine::{Engine, EngineOptions, Images, Slot};
use crate::model::{Init, Model};
use crate::net::Reuse;
use crate::phase::Phase;
use crate::step::Objective;

/// The list.
#[derive(Debug, Default)]
struct Tracer(Mutex<Vec<Case>>);

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

impl Tracer {
    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Case>> {
        self.0.lock().expect("no thread panicked while it wrote")
    }

    fn take(&self) -> Vec<Case> {
        std::mem::take(&mut self.list())
    }

    fn push(&self, operation: Operation, shape: Shape, form: Form) -> Result<()> {
        self.list().push(Case {
            operation,
            shape,
            form,
        });
        Ok(())
    }

    fn conv(&self, operation: Operation, conv: Conv<Self>, form: Form) -> Result<()> {
        let linear = Form::LINEAR.when(conv.prepared.algorithm);
        self.push(operation, Shape::Conv(*conv.shape), form.and(linear))
    }

    fn rows(&self, operation: Operation, shape: Rows, form: Form) -> Result<()> {
        self.push(operation, Shape::Rows(shape), form)
    }

    fn loss(&self, operation: Operation, shape: LossShape, form: Form) -> Result<()> {
        self.push(operation, Shape::Loss(shape), form)
    }

    fn vector(&self, operation: Operation, values: Mem<Self>) -> Result<()> {
        self.push(
            operation,
            Shape::Length(values.bytes / size_of::<f32>()),
            Form::PLAIN,
        )
    }
}

fn read(source: &Source<()>) -> Form {
    Form::PENDING.when(source.affine.is_some() || source.relu)
}

fn tangent(tangent: &Tangent<()>) -> Form {
    Form::TANGENT.when(tangent.tx.is_some())
}

fn finish(epilogue: &Epilogue<()>) -> Form {
    Form::MASK
        .when(epilogue.mask.is_some())
        .and(Form::SUMS.when(!matches!(epilogue.sums, Sums::None)))
}

fn add(write: Write) -> Form {
    Form::ADD.when(write == Write::Add)
}

impl Device for Tracer {
    type Act = f32;
    type Real = f32;
    type Arena = ();
    /// Whether it is a linear layer.
    type Algorithm = bool;
    /// Operations asked for before it.
    type Mark = usize;

    fn name(&self) -> String {
        "trace".into()
    }

    fn alloc(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _dst: Mem<Self>, _src: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, dst: &mut [u8], _src: Mem<Self>) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn copy(&self, dst: Mem<Self>, _src: Mem<Self>) -> Result<()> {
        self.vector(Operation::Copy, dst)
    }

    fn fill(&self, _dst: Mem<Self>, _value: u8) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, node: &Geometry) -> Result<Prepared<bool>> {
        Ok(Prepared {
            saved_bytes: 0,
            scratch_bytes: 0,
            algorithm: matches!(node, Geometry::Linear(_)),
        })
    }

    fn partials_bytes(&self, _shape: Rows) -> usize {
        0
    }

    fn gradient_norm_scratch_bytes(&self, _len: usize) -> usize {
        0
    }

    fn conv_forward(
        &self,
        conv: Conv<Self>,
        _y: Mem<Self>,
        _w: Mem<Self>,
        bias: Option<Mem<Self>>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = read(&conv.x)
            .and(Form::BIAS.when(bias.is_some()))
            .and(finish(&epilogue));
        self.conv(Operation::ConvForward, conv, form)
    }

    fn conv_tangent(
        &self,
        conv: Conv<Self>,
        _ty: Mem<Self>,
        tx: Tangent<()>,
        _w: Mem<Self>,
        _tw: Mem<Self>,
        tbias: Option<Mem<Self>>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = read(&conv.x)
            .and(tangent(&tx))
            .and(Form::BIAS.when(tbias.is_some()))
            .and(finish(&epilogue));
        self.conv(Operation::ConvTangent, conv, form)
    }

    fn conv_backward_input(
        &self,
        conv: Conv<Self>,
        _d: Mem<Self>,
        write: Write,
        _dy: Mem<Self>,
        _w: Mem<Self>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = add(write).and(finish(&epilogue));
        self.conv(Operation::ConvBackwardInput, conv, form)
    }

    fn conv_backward_weight(
        &self,
        conv: Conv<Self>,
        _dw: Mem<Self>,
        dbias: Option<Mem<Self>>,
        write: Write,
        _dy: Mem<Self>,
    ) -> Result<()> {
        let form = read(&conv.x)
            .and(Form::BIAS.when(dbias.is_some()))
            .and(add(write));
        self.conv(Operation::ConvBackwardWeight, conv, form)
    }

    /// Not part of a step with [`crate::engine::InnerProduct::Tangent`].
    fn conv_contract(
        &self,
        _conv: Conv<Self>,
        _out: Mem<Self>,
        _dy: Mem<Self>,
        _tw: Mem<Self>,
        _tbias: Option<Mem<Self>>,
    ) -> Result<()> {
        Ok(())
    }

    fn norm_forward(&self, norm: Norm<()>, _statistics: Statistics) -> Result<()> {
        self.rows(Operation::NormForward, norm.shape, Form::PLAIN)
    }

    fn norm_tangent(
        &self,
        norm: Norm<()>,
        _statistics: Statistics,
        _tgamma: Mem<Self>,
        _tbeta: Mem<Self>,
    ) -> Result<()> {
        self.rows(Operation::NormTangent, norm.shape, Form::PLAIN)
    }

    fn norm_backward(
        &self,
        norm: Norm<()>,
        _statistics: Statistics,
        _dgamma: Mem<Self>,
        _dbeta: Mem<Self>,
        _write: Write,
    ) -> Result<()> {
        self.rows(Operation::NormBackward, norm.shape, Form::PLAIN)
    }

    /// Not part of a step with [`crate::engine::InnerProduct::Tangent`].
    fn norm_contract(
        &self,
        _norm: Norm<()>,
        _samples: usize,
        _out: Mem<Self>,
        _x: Mem<Self>,
        _d: Mem<Self>,
        _tgamma: Mem<Self>,
        _tbeta: Mem<Self>,
    ) -> Result<()> {
        Ok(())
    }

    fn source_backward(
        &self,
        shape: Rows,
        _dx: Mem<Self>,
        write: Write,
        _d: Mem<Self>,
        x: Source<()>,
        _slope: Option<Mem<Self>>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = read(&x).and(add(write)).and(finish(&epilogue));
        self.rows(Operation::SourceBackward, shape, form)
    }

    fn join_forward(
        &self,
        shape: Rows,
        _y: Mem<Self>,
        a: Source<()>,
        b: Source<()>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = read(&a).and(read(&b)).and(finish(&epilogue));
        self.rows(Operation::JoinForward, shape, form)
    }

    fn join_tangent(
        &self,
        shape: Rows,
        _ty: Mem<Self>,
        a: (Source<()>, Tangent<()>),
        b: (Source<()>, Tangent<()>),
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = read(&a.0).and(read(&b.0)).and(finish(&epilogue));
        self.rows(Operation::JoinTangent, shape, form)
    }

    fn pool_forward(&self, shape: PoolShape, _y: Mem<Self>, x: Source<()>) -> Result<()> {
        self.push(Operation::PoolForward, Shape::Pool(shape), read(&x))
    }

    fn pool_tangent(&self, shape: PoolShape, _ty: Mem<Self>, x: Source<()>, _tx: Tangent<()>) -> Result<()> {
        self.push(Operation::PoolTangent, Shape::Pool(shape), read(&x))
    }

    fn pool_backward(
        &self,
        shape: PoolShape,
        _d: Mem<Self>,
        write: Write,
        _dy: Mem<Self>,
        epilogue: Epilogue<()>,
    ) -> Result<()> {
        let form = add(write).and(finish(&epilogue));
        self.push(Operation::PoolBackward, Shape::Pool(shape), form)
    }

    fn pseudo_labels(&self, shape: LossShape, _labels: Mem<Self>, _z: Mem<Self>) -> Result<()> {
        self.loss(Operation::PseudoLabels, shape, Form::PLAIN)
    }

    fn cross_entropy(
        &self,
        shape: LossShape,
        _loss: Mem<Self>,
        _z: Mem<Self>,
        _targets: Targets<()>,
    ) -> Result<()> {
        self.loss(Operation::CrossEntropy, shape, Form::PLAIN)
    }

    fn cross_entropy_backward(
        &self,
        shape: LossShape,
        _dz: Mem<Self>,
        _z: Mem<Self>,
        _first: (Targets<()>, Mem<Self>),
        second: Option<(Targets<()>, Mem<Self>)>,
    ) -> Result<()> {
        self.loss(
            Operation::CrossEntropyBackward,
            shape,
            Form::SECOND.when(second.is_some()),
        )
    }

    fn tangent_dot(
        &self,
        shape: LossShape,
        _raw: Mem<Self>,
        _z: Mem<Self>,
        _tz: Mem<Self>,
        _targets: Targets<()>,
    ) -> Result<()> {
        self.loss(Operation::TangentDot, shape, Form::PLAIN)
    }

    fn weights(
        &self,
        weights: Mem<Self>,
        _raw: Mem<Self>,
        _normalise: Normalise,
        _step: Mem<Self>,
    ) -> Result<()> {
        self.vector(Operation::Weights, weights)
    }

    fn lookahead(&self, out: Mem<Self>, _theta: Mem<Self>, _buf: Mem<Self>, _step: Mem<Self>) -> Result<()> {
        self.vector(Operation::Lookahead, out)
    }

    fn gradient_norm(&self, _norm: Mem<Self>, g: Mem<Self>, _scratch: Mem<Self>) -> Result<()> {
        self.vector(Operation::GradientNorm, g)
    }

    fn sgd(
        &self,
        theta: Mem<Self>,
        _buf: Mem<Self>,
        _g: Mem<Self>,
        _norm: Mem<Self>,
        _step: Mem<Self>,
    ) -> Result<()> {
        self.vector(Operation::Sgd, theta)
    }

    fn augment(
        &self,
        shape: AugmentShape,
        _out: Mem<Self>,
        _images: Mem<Self>,
        _ids: Mem<Self>,
        _table: Mem<Self>,
        _step: Mem<Self>,
    ) -> Result<()> {
        self.push(Operation::Augment, Shape::Augment(shape), Form::PLAIN)
    }

    fn mark(&self) -> Result<usize> {
        Ok(self.list().len())
    }

    fn seconds(&self, _from: &usize, _to: &usize) -> Result<f64> {
        Ok(0.0)
    }

    fn peak_bytes(&self) -> usize {
        0
    }

    fn peak(&self, _memory: Mem<Self>, _rounds: usize) -> Result<f64> {
        Ok(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::{Ceilings, Sizes};
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
        assert_eq!(count(Operation::Augment), 2);
        assert_eq!(count(Operation::TangentDot), 2);
        let flops: f64 = list.iter().map(|(_, c)| c.flops()).sum();
        assert!((flops / 4.54e12 - 1.0).abs() < 0.01, "{flops:e}");
        let ce = resnet18(Objective::CrossEntropy);
        let plain: f64 = ce.iter().map(|(_, c)| c.flops()).sum();
        assert!((flops / plain - 8.0 / 3.0).abs() < 0.01, "{}", flops / plain);
        assert!(ce.iter().all(|(phase, _)| !matches!(
            phase,
            Phase::MetaForward | Phase::MetaBackward | Phase::Tangent | Phase::Weights
        )));
    }

    /// The floor against an independent calculation for 790 TFLOP/s and 4.3 TB/s in bf16, by phase, ms (normalise + ReLU as
    /// passes, everything else fused): within 3 %.
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
            mine.map(|(_, case)| 1e3 * case.e_floor(sizes, ceilings)).sum()
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
