//! Weights as files: PyTorch's state-dict names and layouts (`num_batches_tracked` included), so that PyTorch loads them
//! strictly; with a description of the network in the metadata, so that nothing else is needed to use them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::arch::Architecture;
use crate::device::Device;
use crate::model::{Init, Model, Tensor};
use crate::tensor_file::{Stored, TensorFile};
use crate::{Error, Result};

/// Metadata key of the description.
const DESCRIPTION: &str = "network";

/// What a network is and how its input is made; metadata of a weights file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Version of the program that wrote the file.
    pub version: String,
    pub architecture: Architecture,
    /// Class names; output i is class i.
    pub classes: Vec<String>,
    /// Input = (u8 / 255 − mean) / std, per channel.
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    /// Name of the dataset it was trained on.
    pub dataset: String,
    /// Epochs done.
    pub epoch: u32,
}

/// Parameters and running statistics of a model, by PyTorch's names. `updates`: steps that the statistics have seen.
///
/// # Errors
/// Those of the device.
pub fn state_dict<D: Device>(device: &D, model: &Model<D>, updates: u64) -> Result<BTreeMap<String, Stored>> {
    let params = model.read_flat(device, &model.params)?;
    let running = model.read_running(device)?;
    let mut tensors: BTreeMap<String, Stored> = params
        .into_iter()
        .chain(running)
        .map(|(name, t)| (name, stored::<D>(&t)))
        .collect();
    for norm in &model.program.norms {
        tensors.insert(
            format!("{}.num_batches_tracked", norm.name),
            Stored::integers(&[], [updates as i64]),
        );
    }
    Ok(tensors)
}

/// A tensor in the device's parameter type.
pub fn stored<D: Device>(tensor: &Tensor) -> Stored {
    Stored::floats::<D::Real>(&tensor.shape, &tensor.values)
}

/// A weights file.
pub fn encode(tensors: BTreeMap<String, Stored>, description: &Description) -> TensorFile {
    let text = serde_json::to_string(description).expect("a description is plain data");
    TensorFile {
        tensors,
        metadata: BTreeMap::from([(DESCRIPTION.to_owned(), text)]),
    }
}

/// Reads a weights file and its description.
///
/// # Errors
/// `Io`; `Data` for a damaged file, or one without a description.
pub fn load(path: &Path) -> Result<(TensorFile, Description)> {
    let file = TensorFile::load(path)?;
    let description: Description = file.json(path, DESCRIPTION)?;
    let channels = description.architecture.in_channels;
    let fits = description.classes.len() == description.architecture.num_classes
        && [&description.mean, &description.std]
            .iter()
            .all(|v| v.len() == channels)
        && description.mean.iter().all(|m| m.is_finite())
        && description.std.iter().all(|s| s.is_finite() && *s > 0.0);
    if !fits {
        let expected = "class names, mean and std that fit the architecture";
        return Err(Error::data(
            path,
            "metadata network",
            expected,
            "others",
            "the file is damaged",
        ));
    }
    Ok((file, description))
}

/// A model with the weights of a file.
///
/// # Errors
/// `Data` naming the size that no network can have, or the tensor that is missing, has another shape or holds something
/// that is not a finite number.
pub fn build<D: Device>(
    device: &D,
    path: &Path,
    file: &TensorFile,
    description: &Description,
) -> Result<Model<D>> {
    let program = description.architecture.program().map_err(|e| e.in_file(path))?;
    // Before any memory is taken: sizes in a damaged description must not ask for the wrong amount.
    for param in &program.params {
        checked(file, path, &param.name, &param.shape)?;
    }
    let model = Model::new(device, program, Init::Uniform, 0)?;
    restore(device, &model, path, file)?;
    Ok(model)
}

/// Puts parameters and running statistics of a file into a model.
///
/// # Errors
/// As [`build`].
pub fn restore<D: Device>(device: &D, model: &Model<D>, path: &Path, file: &TensorFile) -> Result<()> {
    restore_flat(device, model, &model.params, path, file, "")?;
    for (index, (name, channels)) in model.running_names().into_iter().enumerate() {
        let values = checked(file, path, &name, &[channels])?;
        model.write_running(device, index, &values)?;
    }
    Ok(())
}

/// Puts tensors named prefix + parameter into a flat arena.
///
/// # Errors
/// As [`build`].
pub fn restore_flat<D: Device>(
    device: &D,
    model: &Model<D>,
    flat: &D::Arena,
    path: &Path,
    file: &TensorFile,
    prefix: &str,
) -> Result<()> {
    for (index, param) in model.program.params.iter().enumerate() {
        let values = checked(file, path, &format!("{prefix}{}", param.name), &param.shape)?;
        model.write_flat(
            device,
            flat,
            index,
            &Tensor {
                shape: param.shape.clone(),
                values,
            },
        )?;
    }
    Ok(())
}

fn checked(file: &TensorFile, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
    let values = file.floats(path, name, shape)?;
    check_values(path, name, &values).map(|()| values)
}

/// Refuses values of a tensor that no network can have: not finite, or variances below 0.
///
/// # Errors
/// `Data` naming `path`, tensor and element.
pub(crate) fn check_values(path: &Path, name: &str, values: &[f64]) -> Result<()> {
    let (lowest, expected) = match name.ends_with("running_var") {
        true => (0.0, "a variance: a finite number, 0 or more"),
        false => (f64::MIN, "a finite number"),
    };
    // Written so that NaN fails.
    let Some(index) = values.iter().position(|v| !(lowest..=f64::MAX).contains(v)) else {
        return Ok(());
    };
    let what = format!("tensor {name}, element {index}");
    Err(Error::data(path, what, expected, values[index].to_string(), ""))
}
