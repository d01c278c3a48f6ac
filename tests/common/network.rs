//! A program on a device with its passes laid open: what gradient checks and the tests of the method need.
#![allow(dead_code)] // Each test executable uses its part.

use l2b::Result;
use l2b::arch::{Architecture, ModelName};
use l2b::device::{Device, Element, Mem, Region, Statistics};
use l2b::model::{Init, Model, read, write};
use l2b::net::{Pass, Plan, Program, Reach, Reuse, Sink};
use l2b::random::{Purpose, Stream};

/// Values in ±1, a pure function of the seed.
pub fn uniform(seed: u64, count: usize) -> Vec<f64> {
    let mut stream = Stream::new(seed, Purpose::Init).view(7);
    (0..count).map(|_| 2.0 * stream.uniform_f64() - 1.0).collect()
}

/// Labels below `classes`.
pub fn labels(seed: u64, count: usize, classes: usize) -> Vec<i32> {
    let mut stream = Stream::new(seed, Purpose::Noise).view(7);
    (0..count).map(|_| stream.below(classes as u32) as i32).collect()
}

/// A model at random parameters, planned for one batch size.
pub struct Net<D: Device> {
    pub device: D,
    pub model: Model<D>,
    pub plan: Plan<D::Algorithm>,
    pub arena: D::Arena,
    pub statistics: Statistics,
    /// The whole network, unless a test restricts it.
    pub reach: Reach,
    gradient: D::Arena,
    v: D::Arena,
    contraction: D::Arena,
}

impl<D: Device> Net<D> {
    /// Weights as drawn, γ in 0.5..1.5, β and running means in ±0.5, running variances in 0.5..1.5.
    pub fn new(
        device: D,
        program: Program,
        batch: usize,
        statistics: Statistics,
        reuse: Reuse,
        seed: u64,
    ) -> Self {
        let model: Model<D> = Model::new(&device, program, Init::He, seed).unwrap();
        let real = size_of::<D::Real>();
        for (index, param) in model.program.params.iter().enumerate() {
            if param.shape.len() == 1 {
                let centre = f64::from(u8::from(param.role == l2b::net::ParamRole::Gamma));
                let values: Vec<f64> = uniform(seed + 1 + index as u64, param.len())
                    .iter()
                    .map(|u| centre + 0.5 * u)
                    .collect();
                write::<D>(&device, model.layout[index].of(&model.params), &values).unwrap();
            }
        }
        for (index, [mean, var]) in model.running_layout.iter().enumerate() {
            let values = uniform(seed + 1000 + index as u64, mean.bytes / real);
            let means: Vec<f64> = values.iter().map(|u| 0.5 * u).collect();
            let vars: Vec<f64> = values.iter().rev().map(|u| 1.0 + 0.5 * u).collect();
            write::<D>(&device, mean.of(&model.running), &means).unwrap();
            write::<D>(&device, var.of(&model.running), &vars).unwrap();
        }
        let plan = Plan::new(&model.program, &device, batch, reuse).unwrap();
        let zeroed = |bytes: usize| {
            let arena = device.alloc(bytes).unwrap();
            device.fill(Region { offset: 0, bytes }.of(&arena), 0).unwrap();
            arena
        };
        let flat = model.flat_bytes();
        Net {
            arena: zeroed(plan.bytes),
            gradient: zeroed(flat),
            v: zeroed(flat),
            contraction: zeroed(batch * real),
            plan,
            reach: Reach::full(&model.program),
            model,
            statistics,
            device,
        }
    }

    pub fn pass(&self) -> Pass<'_, D> {
        Pass {
            device: &self.device,
            program: &self.model.program,
            plan: &self.plan,
            arena: &self.arena,
            layout: &self.model.layout,
            params: self.model.theta(),
            running_layout: &self.model.running_layout,
            running: self.model.running(),
            statistics: self.statistics,
            reach: &self.reach,
        }
    }

    pub fn image_len(&self) -> usize {
        self.model
            .program
            .rows(self.model.program.input(), self.plan.batch)
            .len()
    }

    pub fn logits_len(&self) -> usize {
        self.plan.batch * self.model.program.classes()
    }

    /// All parameters in layout order, without the padding.
    pub fn read_flat(&self, arena: &D::Arena) -> Vec<f64> {
        self.model
            .layout
            .iter()
            .flat_map(|region| read::<D>(&self.device, region.of(arena)).unwrap())
            .collect()
    }

    pub fn write_flat(&self, arena: &D::Arena, values: &[f64]) {
        let mut rest = values;
        for region in &self.model.layout {
            let (head, tail) = rest.split_at(region.bytes / size_of::<D::Real>());
            write::<D>(&self.device, region.of(arena), head).unwrap();
            rest = tail;
        }
        assert!(rest.is_empty());
    }

    pub fn params(&self) -> Vec<f64> {
        self.read_flat(&self.model.params)
    }

    pub fn set_params(&self, values: &[f64]) {
        self.write_flat(&self.model.params, values);
    }

    /// Logits of images [N,H,W,C] at the current parameters.
    pub fn forward(&self, images: &[f64]) -> Vec<f64> {
        let pass = self.pass();
        write_act(&self.device, pass.input(), images).unwrap();
        pass.arrange().unwrap();
        pass.forward().unwrap();
        read::<D>(&self.device, pass.output()).unwrap()
    }

    /// Tangent of the logits along v, after `forward`.
    pub fn tangent(&self, v: &[f64]) -> Vec<f64> {
        self.write_flat(&self.v, v);
        let pass = self.pass();
        pass.arrange_along(self.model.flat(&self.v)).unwrap();
        pass.tangent(self.model.flat(&self.v)).unwrap();
        read::<D>(&self.device, pass.output_tangent()).unwrap()
    }

    /// Gradient of ⟨dz, logits⟩, after `forward`.
    pub fn backward(&self, dz: &[f64]) -> Vec<f64> {
        let pass = self.pass();
        write::<D>(&self.device, pass.output_adjoint(), dz).unwrap();
        pass.backward(&Sink::Gradient(self.model.flat(&self.gradient)))
            .unwrap();
        self.read_flat(&self.gradient)
    }

    /// What a backward pass finds where it writes.
    pub fn write_gradient(&self, values: &[f64]) {
        self.write_flat(&self.gradient, values);
    }

    /// ⟨v, ∇⟨dz_i, logits_i⟩⟩ for each sample i, by contraction, after `forward`.
    pub fn contract(&self, dz: &[f64], v: &[f64]) -> Vec<f64> {
        self.write_flat(&self.v, v);
        let out = Region {
            offset: 0,
            bytes: self.plan.batch * size_of::<D::Real>(),
        }
        .of(&self.contraction);
        self.device.fill(out, 0).unwrap();
        let pass = self.pass();
        write::<D>(&self.device, pass.output_adjoint(), dz).unwrap();
        let sink = Sink::Contraction {
            out,
            v: self.model.flat(&self.v),
            scratch: self.model.flat(&self.gradient),
        };
        pass.arrange_along(self.model.flat(&self.v)).unwrap();
        pass.backward(&sink).unwrap();
        read::<D>(&self.device, out).unwrap()
    }
}

pub fn write_act<D: Device>(device: &D, span: Mem<D>, values: &[f64]) -> Result<()> {
    let values: Vec<D::Act> = values.iter().map(|&v| D::Act::from_f64(v)).collect();
    device.upload(span, bytemuck::cast_slice(&values))
}

pub fn read_act<D: Device>(device: &D, span: Mem<D>) -> Result<Vec<f64>> {
    let mut values = vec![D::Act::from_f64(0.0); span.bytes / size_of::<D::Act>()];
    device.download(bytemuck::cast_slice_mut(&mut values), span)?;
    Ok(values.into_iter().map(Element::to_f64).collect())
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// a + h·b.
pub fn along(a: &[f64], h: f64, b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + h * b).collect()
}

/// v, zero but for the parameters of the nodes from `start` on.
pub fn restricted(program: &Program, start: usize, v: &[f64]) -> Vec<f64> {
    let mut inside = vec![false; program.params.len()];
    for node in &program.nodes[start..] {
        node.params(program).into_iter().for_each(|id| inside[id] = true);
    }
    let lengths = program.params.iter().zip(inside);
    let keep = lengths.flat_map(|(param, inside)| std::iter::repeat_n(inside, param.len()));
    v.iter()
        .zip(keep)
        .map(|(&v, keep)| if keep { v } else { 0.0 })
        .collect()
}

/// Softmax probabilities [n][classes].
pub fn softmax(logits: &[f64], classes: usize) -> Vec<f64> {
    logits
        .chunks(classes)
        .flat_map(|z| {
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
            z.iter().map(|z| (z - top).exp() / sum).collect::<Vec<_>>()
        })
        .collect()
}

/// Cross-entropy per sample.
pub fn cross_entropy(logits: &[f64], labels: &[i32], classes: usize) -> Vec<f64> {
    softmax(logits, classes)
        .chunks(classes)
        .zip(labels)
        .map(|(p, &y)| -p[y as usize].ln())
        .collect()
}

/// w_i·(softmax(z_i) − e_y).
pub fn cross_entropy_adjoint(logits: &[f64], labels: &[i32], weights: &[f64], classes: usize) -> Vec<f64> {
    let mut d = softmax(logits, classes);
    for ((d, &y), w) in d.chunks_mut(classes).zip(labels).zip(weights) {
        d[y as usize] -= 1.0;
        d.iter_mut().for_each(|d| *d *= w);
    }
    d
}

/// Lowest index of the largest logit.
pub fn argmax(logits: &[f64], classes: usize) -> Vec<i32> {
    logits
        .chunks(classes)
        .map(|z| (0..classes).fold(0, |best, c| if z[c] > z[best] { c } else { best }) as i32)
        .collect()
}

/// The pre-activation residual network.
pub fn preact(width: usize, blocks: &[usize], channels: usize, size: [usize; 2], classes: usize) -> Program {
    Architecture {
        model: ModelName::PreactResnet18,
        width,
        blocks: blocks.to_vec(),
        in_channels: channels,
        image_size: size,
        num_classes: classes,
    }
    .program()
    .unwrap()
}

/// The last value as logits: pool and linear layer.
pub fn finish(mut net: Program, x: usize) -> Program {
    let pooled = net.global_pool(x);
    net.linear("linear", pooled, 3);
    net
}

/// relu(bn(conv) + bn(1×1 conv)), then relu(bn(conv) + x): both operands pending, then one.
pub fn post_activation() -> Program {
    let mut net = Program::new(6, 5, 2);
    let stem = net.conv("stem", 0, 4, 3, 1, 1);
    let stem = net.norm("stem_bn", stem, true);
    let a = net.conv("a", stem, 6, 3, 2, 1);
    let a = net.norm("a_bn", a, false);
    let b = net.conv("b", stem, 6, 1, 2, 0);
    let b = net.norm("b_bn", b, false);
    let y = net.join(a, b);
    let y = net.relu(y);
    let c = net.conv("c", y, 6, 3, 1, 1);
    let c = net.norm("c_bn", c, false);
    let y = net.join(c, y);
    let y = net.relu(y);
    finish(net, y)
}
