//! `l2b meta-step`: one L2B step on a batch given in a file, so that anyone can check the engine against another
//! implementation. The formats are described in README, "The meta-step file".

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;

use crate::arch::{Architecture, ModelName};
use crate::budget::MetaDepth;
use crate::device::{Device, StepParams};
use crate::engine::{
    Engine, EngineOptions, Images, InnerProduct, NormMode, Outcome, Slot, VirtualStep, Weights,
};
use crate::model::{Init, Model, Tensor};
use crate::net::{Program, Reuse};
use crate::step::Objective;
use crate::tensor_file::{self, Stored};
use crate::weights::check_values;
use crate::{Error, Result, atomic};

/// Metadata key `l2b` of the input file. Other keys are ignored.
#[derive(Clone, Debug, Deserialize)]
struct Settings {
    model: ModelName,
    width: usize,
    #[serde(default = "four_stages_of_two")]
    blocks: Vec<usize>,
    in_channels: usize,
    image_size: ImageSize,
    num_classes: usize,
    norm: NormMode,
    mode: VirtualStep,
    /// Absent: the whole network.
    #[serde(default)]
    meta_depth: MetaDepth,
    lambda: f64,
    eta: f64,
    lr: f64,
    mu: f64,
    wd: f64,
    clip: f64,
    #[serde(default)]
    weights: Weights,
    /// T of `softmax`, threshold of `hard`.
    #[serde(default = "one")]
    temperature: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum ImageSize {
    Square(usize),
    HeightWidth([usize; 2]),
}

fn four_stages_of_two() -> Vec<usize> {
    vec![2; 4]
}

fn one() -> f64 {
    1.0
}

impl Settings {
    fn architecture(&self) -> Architecture {
        Architecture {
            model: self.model,
            width: self.width,
            blocks: self.blocks.clone(),
            in_channels: self.in_channels,
            image_size: match self.image_size {
                ImageSize::Square(side) => [side; 2],
                ImageSize::HeightWidth(size) => size,
            },
            num_classes: self.num_classes,
        }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let not_negative = [
            ("lambda", self.lambda),
            ("eta", self.eta),
            ("lr", self.lr),
            ("mu", self.mu),
            ("wd", self.wd),
            ("clip", self.clip),
        ];
        for (key, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return Err(metadata_error(path, key, "a finite number, 0 or more", value));
            }
        }
        let (fits, expected) = match self.weights {
            Weights::Hard => ((0.0..=1.0).contains(&self.temperature), "a threshold from 0 to 1"),
            _ => (
                self.temperature.is_finite() && self.temperature > 0.0,
                "a number above 0",
            ),
        };
        if !fits {
            return Err(metadata_error(path, "temperature", expected, self.temperature));
        }
        Ok(())
    }
}

fn metadata_error(path: &Path, key: &str, expected: &str, found: impl ToString) -> Error {
    Error::data(
        path,
        format!("metadata `l2b`, key `{key}`"),
        expected,
        found.to_string(),
        "",
    )
}

/// The tensors of a meta-step file, checked as they are taken.
struct Input<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, Stored>,
}

impl Input<'_> {
    fn get(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&Stored> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::data(
                self.path,
                format!("tensor `{name}`"),
                format!("{dtype:?} {shape:?}"),
                "no such tensor",
                "names are PyTorch's, e.g. layer1.0.bn1.running_mean; momentum buffers are momentum.NAME",
            ));
        };
        if tensor.dtype != dtype || tensor.shape != shape {
            return Err(Error::data(
                self.path,
                format!("tensor `{name}`"),
                format!("{dtype:?} {shape:?}"),
                format!("{:?} {:?}", tensor.dtype, tensor.shape),
                "",
            ));
        }
        Ok(tensor)
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let stored = self.get(name, Dtype::F32, shape)?;
        let values = stored.to_f64().expect("an F32 tensor has values");
        check_values(self.path, name, &values).map(|()| values)
    }

    /// Samples along the first axis of `name`.
    fn count(&self, name: &str) -> Result<usize> {
        let shape = self
            .tensors
            .get(name)
            .map(|t| t.shape.clone())
            .unwrap_or_default();
        match shape.first() {
            Some(&count) if count > 0 => Ok(count),
            _ => Err(Error::data(
                self.path,
                format!("tensor `{name}`"),
                "[n,C,H,W] with n of at least 1",
                if shape.is_empty() {
                    "no such tensor".into()
                } else {
                    format!("{shape:?}")
                },
                "",
            )),
        }
    }

    /// Images as [N,H,W,C] and labels.
    fn batch(&self, kind: &str, settings: &Architecture) -> Result<(Vec<f64>, Vec<i32>)> {
        let (images, labels) = (format!("{kind}.images"), format!("{kind}.labels"));
        let n = self.count(&images)?;
        let [height, width] = settings.image_size;
        let channels = settings.in_channels;
        let values = self.floats(&images, &[n, channels, height, width])?;
        let pixels = height * width;
        let mut nhwc = Vec::with_capacity(values.len());
        for image in values.chunks_exact(channels * pixels) {
            for pixel in 0..pixels {
                nhwc.extend((0..channels).map(|c| image[c * pixels + pixel]));
            }
        }
        let bytes = &self.get(&labels, Dtype::I64, &[n])?.bytes;
        let classes = settings.num_classes as i64;
        let labels = bytes
            .chunks_exact(8)
            .enumerate()
            .map(|(i, b)| {
                let label = i64::from_le_bytes(b.try_into().expect("eight bytes"));
                if (0..classes).contains(&label) {
                    Ok(label as i32)
                } else {
                    Err(Error::data(
                        self.path,
                        format!("tensor `{labels}`, element {i}"),
                        format!("a label in 0..{classes}"),
                        label.to_string(),
                        "",
                    ))
                }
            })
            .collect::<Result<_>>()?;
        Ok((nhwc, labels))
    }
}

/// A batch read from a file, on a device, with all that the step needs.
pub struct Loaded<D: Device> {
    pub engine: Engine<D>,
    pub params: StepParams,
    /// Train and meta images.
    pub sizes: (usize, usize),
}

/// Reads `input`: network, batches and settings.
///
/// # Errors
/// `Data` names the file, tensor or metadata key that is not as it should be.
pub fn load<D: Device>(device: D, input: &Path, inner_product: InnerProduct) -> Result<Loaded<D>> {
    let (tensors, metadata) = tensor_file::read(input)?;
    let settings = metadata
        .get("l2b")
        .ok_or_else(|| Error::data(input, "metadata key `l2b`", "a JSON object", "no such key", ""))?;
    let settings: Settings = serde_json::from_str(settings).map_err(|e| {
        Error::data(
            input,
            "metadata `l2b`",
            "the keys of a meta-step file",
            e.to_string(),
            "",
        )
    })?;
    settings.check(input)?;
    let file = Input { path: input, tensors };
    let architecture = settings.architecture();
    // Before the images: no batch can be read for a network that cannot be.
    let program = architecture.program().map_err(|e| e.in_file(input))?;
    let stages = program.stages.len();
    settings.meta_depth.check(stages).map_err(|_| {
        metadata_error(
            input,
            "meta_depth",
            &format!("0 to {stages}, or \"all\""),
            settings.meta_depth,
        )
    })?;
    let train = file.batch("train", &architecture)?;
    let val = file.batch("val", &architecture)?;
    let (n, m) = (train.1.len(), val.1.len());

    let model = load_model(&device, &file, program)?;
    let options = EngineOptions {
        virtual_step: settings.mode,
        meta_depth: settings.meta_depth,
        inner_product,
        norm: settings.norm,
        normalise: settings
            .weights
            .normalise(settings.temperature, settings.temperature),
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(device, model, options, &[n, m], Reuse::ByLifetime)?;
    engine.feed(Slot::Train, Images::Values(&train.0), &train.1)?;
    engine.feed(Slot::Meta, Images::Values(&val.0), &val.1)?;
    let params = StepParams {
        lr: settings.lr,
        lambda: settings.lambda,
        eta: settings.eta,
        mu: settings.mu,
        weight_decay: settings.wd,
        clip: settings.clip,
        seed: 0,
        step: 0,
        reserved: 0,
    };
    Ok(Loaded {
        engine,
        params,
        sizes: (n, m),
    })
}

/// Reads `input`, does the step on `device`, writes `output` (whole or not at all).
///
/// # Errors
/// Those of [`load`]; `Diverged` where the step gives no numbers.
pub fn run<D: Device>(device: D, input: &Path, output: &Path, inner_product: InnerProduct) -> Result<()> {
    let Loaded {
        mut engine, params, ..
    } = load(device, input, inner_product)?;
    engine.step(Objective::L2b, &params)?;
    let outcome = engine.outcome(Objective::L2b)?;
    engine.check(0, &outcome)?;
    atomic::write_file(output, &encode(&engine, &outcome)?)
}

fn load_model<D: Device>(device: &D, file: &Input, program: Program) -> Result<Model<D>> {
    // Before any memory is taken: a wrong size in the settings should not ask for the wrong amount.
    for param in &program.params {
        file.get(&param.name, Dtype::F32, &param.shape)?;
    }
    let model = Model::new(device, program, Init::Uniform, 0)?;
    for (index, param) in model.program.params.iter().enumerate() {
        for (name, arena) in [
            (param.name.clone(), &model.params),
            (format!("momentum.{}", param.name), &model.momentum),
        ] {
            let tensor = Tensor {
                values: file.floats(&name, &param.shape)?,
                shape: param.shape.clone(),
            };
            model.write_flat(device, arena, index, &tensor)?;
        }
    }
    for (index, (name, channels)) in model.running_names().into_iter().enumerate() {
        let values = file.floats(&name, &[channels])?;
        model.write_running(device, index, &values)?;
    }
    Ok(model)
}

/// The output file's bytes: floats as F64 where the device computes in f64, else as F32.
fn encode<D: Device>(engine: &Engine<D>, outcome: &Outcome) -> Result<Vec<u8>> {
    let n = outcome.loss_real.len();
    let mut tensors = BTreeMap::new();
    let mut put = |name: &str, shape: &[usize], values: Vec<f64>| {
        tensors.insert(name.to_owned(), Stored::floats::<D::Real>(shape, &values));
    };
    put(
        "logits",
        &[n, engine.model.program.classes()],
        engine.read_logits()?,
    );
    put("loss_real", &[n], outcome.loss_real.clone());
    put("loss_pseudo", &[n], outcome.loss_pseudo.clone());
    put("alpha_raw", &[n], outcome.alpha_raw.clone());
    put("beta_raw", &[n], outcome.beta_raw.clone());
    put("alpha", &[n], outcome.alpha.clone());
    put("beta", &[n], outcome.beta.clone());
    put("val_loss", &[1], vec![outcome.mean_val_loss()]);
    put("loss", &[1], vec![outcome.loss()]);
    let model = &engine.model;
    for (prefix, arena) in [
        ("grad", &engine.gradient),
        ("param", &model.params),
        ("momentum", &model.momentum),
    ] {
        for (name, tensor) in model.read_flat(&engine.device, arena)? {
            put(&format!("{prefix}.{name}"), &tensor.shape, tensor.values);
        }
    }
    if engine.options.norm == NormMode::Batch {
        for (name, tensor) in model.read_running(&engine.device)? {
            put(&format!("running.{name}"), &tensor.shape, tensor.values);
        }
    }
    let pseudo = outcome.pseudo_labels.iter().map(|&label| i64::from(label));
    tensors.insert("pseudo_labels".to_owned(), Stored::integers(&[n], pseudo));
    tensor_file::encode(&tensors, None)
}
