//! A recorded step replays, and what cannot be recorded leaves the device usable.

use super::common::{Operand, Random, fetch_raw, raw, reading, room};
use super::device::in_orders;
use super::promises::{learned, plain, step_params};
use l2b::Error;
use l2b::device::cuda::Cuda;
use l2b::device::{
    Conv, ConvShape, Device, Epilogue, Geometry, Norm, Rows, Source, Statistics, StepParams, Sums, Write,
};

/// A small network's step by hand: convolution with sums, batch-norm, gradients, clipped update.
struct Step<'a> {
    cuda: &'a Cuda,
    shape: ConvShape,
    operands: Vec<Operand<Cuda>>,
    params: Operand<Cuda>,
    stopped: Operand<Cuda>,
}

impl<'a> Step<'a> {
    fn new(cuda: &'a Cuda) -> Self {
        let random = &mut Random::new(9);
        let shape = ConvShape {
            n: 4,
            h: 6,
            w: 5,
            c: 4,
            k: 8,
            r: 3,
            s: 3,
            stride: 1,
            pad: 1,
        };
        let rows = Rows {
            rows: 120,
            channels: 8,
        };
        let norm_len = shape.w_len().next_multiple_of(64);
        let scratch = cuda
            .prepare(&Geometry::Conv(shape))
            .expect("prepare")
            .scratch_bytes;
        let mut operands: Vec<Operand<Cuda>> = Vec::new();
        for len in [shape.x_len(), shape.w_len(), shape.w_len(), 8, 8, 8, 8] {
            operands.push(reading::<f32, Cuda>(cuda, &random.range(len, 0.1, 1.0)));
        }
        for len in [shape.y_len(), 16, 24, 16, shape.w_len(), 1, shape.y_len()] {
            operands.push(reading::<f32, Cuda>(cuda, &vec![0.0; len]));
        }
        for bytes in [
            cuda.partials_bytes(rows),
            scratch,
            cuda.gradient_norm_scratch_bytes(norm_len),
        ] {
            operands.push(room(cuda, bytes));
        }
        Step {
            cuda,
            shape,
            operands,
            params: raw(cuda, &[step_params()]),
            stopped: raw(cuda, &[0u32]),
        }
    }

    fn run(&self) -> l2b::Result<()> {
        let [
            x,
            w,
            buf,
            gamma,
            beta,
            mean,
            var,
            y,
            statistics,
            affine,
            slope,
            dw,
            norm,
            z,
            partials,
            scratch,
            squares,
        ] = &self.operands[..]
        else {
            unreachable!("17 operands")
        };
        let (cuda, shape) = (self.cuda, self.shape);
        let prepared = cuda.prepare(&Geometry::Conv(shape))?;
        let conv = Conv {
            shape: &shape,
            prepared: &prepared,
            x: plain(x),
            scratch: scratch.mem(),
        };
        let rows = Rows {
            rows: 120,
            channels: 8,
        };
        let sums = Sums::Moments {
            partials: partials.mem(),
        };
        cuda.conv_forward(
            conv,
            y.mem(),
            learned(w.mem()),
            None,
            Epilogue {
                addend: None,
                mask: None,
                sums,
            },
        )?;
        let batch_norm = Norm {
            shape: rows,
            eps: 1e-5,
            momentum: 0.1,
            gamma: gamma.mem(),
            beta: beta.mem(),
            running_mean: mean.mem(),
            running_var: var.mem(),
            statistics: statistics.mem(),
            affine: affine.mem(),
            slope: slope.mem(),
            partials: partials.mem(),
        };
        cuda.norm_forward(batch_norm, Statistics::Batch { update: true })?;
        let normal = Source {
            x: y.mem(),
            affine: Some(affine.mem()),
            relu: true,
        };
        cuda.join_forward(rows, z.mem(), normal, plain(y), Epilogue::none())?;
        cuda.conv_backward_weight(conv, dw.mem(), None, Write::Set, z.mem())?;
        cuda.gradient_norm(norm.mem(), dw.mem(), squares.mem())?;
        cuda.watch(self.stopped.mem(), &[norm.mem()], self.params.mem())?;
        let stopped = self.stopped.mem();
        cuda.sgd(
            w.mem(),
            buf.mem(),
            dw.mem(),
            norm.mem(),
            stopped,
            self.params.mem(),
        )
    }

    /// Bits of everything that lasts: parameters, momentum, statistics, and what was computed on the way.
    fn bits(&self) -> Vec<Vec<u32>> {
        self.operands[..14]
            .iter()
            .map(|operand| fetch_raw::<Cuda, u32>(self.cuda, operand))
            .collect()
    }

    fn set(&self, params: StepParams) {
        self.cuda
            .upload(self.params.mem(), bytemuck::bytes_of(&params))
            .expect("upload");
    }
}

#[test]
fn a_recorded_step_replays_the_same_bits() {
    in_orders(|cuda| {
        let (direct, recorded) = (Step::new(cuda), Step::new(cuda));
        let before = recorded.bits();
        let graph = cuda.record(|| recorded.run()).expect("capture");
        let mut graph = graph.expect("this device records");
        assert_eq!(recorded.bits(), before, "recording runs nothing");
        for lr in [0.1, 0.1, 0.0, 0.03] {
            let params = StepParams { lr, ..step_params() };
            direct.set(params);
            direct.run().expect("step");
            recorded.set(params);
            cuda.replay(&mut graph).expect("replay");
            assert_eq!(recorded.bits(), direct.bits(), "lr {lr}");
        }
        assert_ne!(recorded.bits(), before);
        // A recording outlives whoever made it, with the memory that it writes.
        drop(recorded);
        cuda.replay(&mut graph).expect("replay");
        cuda.synchronize().expect("memory that is still there");
    });
}

#[test]
fn a_failed_recording_leaves_the_device_usable() {
    in_orders(|cuda| {
        let step = Step::new(cuda);
        let failed = cuda.record(|| Err(Error::Internal("on purpose".into())));
        let error = failed.err().expect("an error");
        assert!(error.to_string().contains("on purpose"), "{error}");
        let params = step_params();
        let mut incoming = cuda.incoming(64).expect("host memory");
        let upload = cuda.record(|| cuda.upload(step.params.mem(), bytemuck::bytes_of(&params)));
        let fetch = cuda.record(|| cuda.fetch(&mut incoming, &[step.params.mem()]));
        for refused in [upload, fetch] {
            let error = refused
                .err()
                .expect("a replay would touch host memory that is gone");
            assert!(error.to_string().contains("recorded"), "{error}");
        }
        step.run().expect("step");
        cuda.synchronize().expect("synchronize");
    });
}
