//! A device that computes nothing and writes down what it is asked for.

use std::convert::Infallible;
use std::sync::Mutex;

use crate::Result;
use crate::bench::case::{Case, Form, Operation, Shape};
use crate::device::{
    Arranged, Arrangement, AugmentShape, Conv, Device, Epilogue, Filters, Geometry, LossShape, Mem, Norm,
    Normalise, PoolShape, Prepared, Rows, Source, Statistics, Sums, Tangent, Targets, Write,
};

/// The list.
#[derive(Debug, Default)]
pub(super) struct Tracer(Mutex<Vec<Case>>);

impl Tracer {
    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Case>> {
        self.0.lock().expect("no thread panicked while it wrote")
    }

    /// What has been asked for since the last call.
    pub(super) fn take(&self) -> Vec<Case> {
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
    Form::ADD
        .when(epilogue.addend.is_some())
        .and(Form::MASK.when(epilogue.mask.is_some()))
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
    type Recording = Infallible;
    type Outgoing = ();
    type Incoming = ();

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

    fn record(&self, _work: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, recording: &mut Infallible) -> Result<()> {
        match *recording {}
    }

    fn outgoing(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn send(
        &self,
        _room: &mut (),
        _pieces: &[Mem<Self>],
        _fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }

    fn incoming(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn fetch(&self, _room: &mut (), _pieces: &[Mem<Self>]) -> Result<()> {
        Ok(())
    }

    fn fetched<'a>(&self, _room: &'a mut ()) -> Result<&'a [u8]> {
        Ok(&[])
    }

    fn prepare(&self, node: &Geometry) -> Result<Prepared<bool>> {
        Ok(Prepared {
            scratch_bytes: 0,
            arranged: Arranged::default(),
            algorithm: matches!(node, Geometry::Linear(_)),
        })
    }

    fn partials_bytes(&self, _shape: Rows) -> usize {
        0
    }

    fn gradient_norm_scratch_bytes(&self, _len: usize) -> usize {
        0
    }

    /// One call for many convolutions, written down as one each.
    fn arrange_filters(&self, filters: &[Arrangement<Self>]) -> Result<()> {
        filters.iter().try_for_each(|of| {
            let form = Form::BACKWARD
                .when(of.filters.backward.is_some())
                .and(Form::LINEAR.when(of.prepared.algorithm));
            self.push(Operation::ArrangeFilters, Shape::Conv(*of.shape), form)
        })
    }

    fn conv_forward(
        &self,
        conv: Conv<Self>,
        _y: Mem<Self>,
        _w: Filters<()>,
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
        _w: Filters<()>,
        _tw: Filters<()>,
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
        _w: Filters<()>,
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

    fn conv_contract(
        &self,
        conv: Conv<Self>,
        _out: Mem<Self>,
        _dy: Mem<Self>,
        _tw: Filters<()>,
        tbias: Option<Mem<Self>>,
    ) -> Result<()> {
        let form = read(&conv.x).and(Form::BIAS.when(tbias.is_some()));
        self.conv(Operation::ConvContract, conv, form)
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

    fn norm_contract(
        &self,
        norm: Norm<()>,
        samples: usize,
        _out: Mem<Self>,
        _x: Mem<Self>,
        _d: Mem<Self>,
        _tgamma: Mem<Self>,
        _tbeta: Mem<Self>,
    ) -> Result<()> {
        let shape = Shape::Samples(samples as i32, norm.shape);
        self.push(Operation::NormContract, shape, Form::PLAIN)
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

    fn watch(&self, _stopped: Mem<Self>, values: &[Mem<Self>], _step: Mem<Self>) -> Result<()> {
        let bytes: usize = values.iter().map(|v| v.bytes).sum();
        let len = Shape::Length(bytes / size_of::<f32>());
        self.push(Operation::Watch, len, Form::PLAIN)
    }

    fn sgd(
        &self,
        theta: Mem<Self>,
        _buf: Mem<Self>,
        _g: Mem<Self>,
        _norm: Mem<Self>,
        _stopped: Mem<Self>,
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

    fn peak_instruction(&self) -> &'static str {
        "none"
    }
}
