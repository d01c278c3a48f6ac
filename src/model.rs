//! What a run learns: parameters, momentum, running statistics; and their exchange with the outside by PyTorch's names.

use std::collections::BTreeMap;

use crate::Result;
use crate::device::{Device, Element, Mem, Region};
use crate::net::{ParamRole, Program};
use crate::random::{Purpose, Stream};

/// How weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Convolutions normal with variance 2/fan-in; linear layers and biases as `Uniform`.
    He,
    /// Everything uniform in ±1/√fan-in, PyTorch's default.
    Uniform,
}

/// A tensor on the host, in PyTorch's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// Parameters, momentum buffers and running statistics of a program, on a device.
pub struct Model<D: Device> {
    pub program: Program,
    /// Where each parameter lies in `params` and `momentum` (and in gradients and v).
    pub layout: Vec<Region>,
    /// Where each norm's running mean and variance lie in `running`.
    pub running_layout: Vec<[Region; 2]>,
    pub params: D::Arena,
    pub momentum: D::Arena,
    pub running: D::Arena,
    flat_bytes: usize,
    running_bytes: usize,
}

impl<D: Device> Model<D> {
    /// A model with γ = 1, β = 0, running mean 0 and variance 1, no momentum, and weights drawn from `seed`.
    pub fn new(device: &D, program: Program, init: Init, seed: u64) -> Result<Self> {
        let real = size_of::<D::Real>();
        let (layout, flat_bytes) = program.param_layout(real);
        let (running_layout, running_bytes) = program.running_layout(real);
        let zeroed = |bytes: usize| -> Result<D::Arena> {
            let arena = device.alloc(bytes)?;
            device.fill(Region { offset: 0, bytes }.of(&arena), 0)?;
            Ok(arena)
        };
        let model = Model {
            params: zeroed(flat_bytes)?,
            momentum: zeroed(flat_bytes)?,
            running: zeroed(running_bytes)?,
            program,
            layout,
            running_layout,
            flat_bytes,
            running_bytes,
        };
        for (index, param) in model.program.params.iter().enumerate() {
            let values = initial(&model.program, index, init, seed);
            let span = model.layout[index].of(&model.params);
            write::<D>(device, span, &to_device_order(&param.shape, &values))?;
        }
        for [_, var] in &model.running_layout {
            write::<D>(device, var.of(&model.running), &vec![1.0; var.bytes / real])?;
        }
        Ok(model)
    }

    /// Bytes of a flat arena in parameter layout.
    pub fn flat_bytes(&self) -> usize {
        self.flat_bytes
    }

    /// θ, flat.
    pub fn theta(&self) -> Mem<'_, D> {
        self.flat(&self.params)
    }

    /// Momentum buffers, flat.
    pub fn buf(&self) -> Mem<'_, D> {
        self.flat(&self.momentum)
    }

    /// A flat arena of parameter layout, whole.
    pub fn flat<'a>(&self, arena: &'a D::Arena) -> Mem<'a, D> {
        Region {
            offset: 0,
            bytes: self.flat_bytes,
        }
        .of(arena)
    }

    /// The running statistics, flat.
    pub fn running(&self) -> Mem<'_, D> {
        Region {
            offset: 0,
            bytes: self.running_bytes,
        }
        .of(&self.running)
    }

    /// Every parameter's values in `flat` (θ, momentum, a gradient …) by PyTorch's name.
    pub fn read_flat(&self, device: &D, flat: &D::Arena) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (param, region) in self.program.params.iter().zip(&self.layout) {
            let values = to_torch_order(&param.shape, &read::<D>(device, region.of(flat))?);
            all.insert(
                param.name.clone(),
                Tensor {
                    shape: param.shape.clone(),
                    values,
                },
            );
        }
        Ok(all)
    }

    /// Writes one parameter's values into `flat`. The tensor has the parameter's shape.
    pub fn write_flat(&self, device: &D, flat: &D::Arena, index: usize, tensor: &Tensor) -> Result<()> {
        let param = &self.program.params[index];
        assert_eq!(param.shape, tensor.shape, "{}", param.name);
        let values = to_device_order(&param.shape, &tensor.values);
        write::<D>(device, self.layout[index].of(flat), &values)
    }

    /// Names of the running statistics with their channels, in layout order: mean and variance of each norm.
    pub fn running_names(&self) -> Vec<(String, usize)> {
        let mut names = Vec::new();
        for norm in &self.program.norms {
            let channels = self.program.values[norm.of].channels;
            names.push((format!("{}.running_mean", norm.name), channels));
            names.push((format!("{}.running_var", norm.name), channels));
        }
        names
    }

    /// The running statistics by PyTorch's name.
    pub fn read_running(&self, device: &D) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for ((name, channels), region) in self
            .running_names()
            .into_iter()
            .zip(self.running_layout.iter().flatten())
        {
            all.insert(
                name,
                Tensor {
                    shape: vec![channels],
                    values: read::<D>(device, region.of(&self.running))?,
                },
            );
        }
        Ok(all)
    }

    /// Writes the `index`-th running statistic of [`Model::running_names`].
    pub fn write_running(&self, device: &D, index: usize, values: &[f64]) -> Result<()> {
        let region = self.running_layout[index / 2][index % 2];
        write::<D>(device, region.of(&self.running), values)
    }
}

/// Reads a span of `Real` values.
pub fn read<D: Device>(device: &D, span: Mem<D>) -> Result<Vec<f64>> {
    let mut values = vec![D::Real::from_f64(0.0); span.bytes / size_of::<D::Real>()];
    device.download(bytemuck::cast_slice_mut(&mut values), span)?;
    Ok(values.into_iter().map(Element::to_f64).collect())
}

/// Writes a span of `Real` values.
pub fn write<D: Device>(device: &D, span: Mem<D>, values: &[f64]) -> Result<()> {
    let values: Vec<D::Real> = values.iter().map(|&v| D::Real::from_f64(v)).collect();
    device.upload(span, bytemuck::cast_slice(&values))
}

/// Initial values of a parameter in PyTorch's order: the same bits on every device.
fn initial(program: &Program, index: usize, init: Init, seed: u64) -> Vec<f64> {
    let param = &program.params[index];
    let mut stream = Stream::new(seed, Purpose::Init).index(index as u32);
    let count = param.len();
    let mut uniform = |fan_in: usize| -> Vec<f64> {
        let bound = 1.0 / (fan_in as f64).sqrt();
        (0..count)
            .map(|_| bound * (2.0 * stream.uniform_f64() - 1.0))
            .collect()
    };
    match param.role {
        ParamRole::Gamma => vec![1.0; count],
        ParamRole::Beta => vec![0.0; count],
        ParamRole::ConvWeight if init == Init::He => {
            let std = (2.0 / param.fan_in() as f64).sqrt();
            (0..count).map(|_| std * normal(&mut stream)).collect()
        }
        ParamRole::ConvWeight | ParamRole::LinearWeight => uniform(param.fan_in()),
        ParamRole::Bias(weight) => uniform(program.params[weight].fan_in()),
    }
}

/// A standard normal draw (Box-Muller; 1 − u keeps the logarithm finite).
fn normal(stream: &mut Stream) -> f64 {
    let radius = (-2.0 * (1.0 - stream.uniform_f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * stream.uniform_f64()).cos()
}

/// [K,C,R,S] -> [K,R,S,C]; other shapes unchanged.
fn to_device_order(shape: &[usize], values: &[f64]) -> Vec<f64> {
    permute(shape, values, |taps, channels, tap, channel| {
        (tap * channels + channel, channel * taps + tap)
    })
}

/// [K,R,S,C] -> [K,C,R,S]; other shapes unchanged.
fn to_torch_order(shape: &[usize], values: &[f64]) -> Vec<f64> {
    permute(shape, values, |taps, channels, tap, channel| {
        (channel * taps + tap, tap * channels + channel)
    })
}

/// Moves within each filter: `place` gives (to, from) of one tap and channel.
fn permute(
    shape: &[usize],
    values: &[f64],
    place: impl Fn(usize, usize, usize, usize) -> (usize, usize),
) -> Vec<f64> {
    let [filters, channels, r, s] = *shape else {
        return values.to_vec();
    };
    let taps = r * s;
    let size = channels * taps;
    let mut out = vec![0.0; values.len()];
    for filter in 0..filters {
        for tap in 0..taps {
            for channel in 0..channels {
                let (to, from) = place(taps, channels, tap, channel);
                out[filter * size + to] = values[filter * size + from];
            }
        }
    }
    out
}
