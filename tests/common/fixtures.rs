//! Comparison of a meta-step output with the double-backprop reference in `tests/fixtures`, device by device.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use l2b::device::Device;
use l2b::engine::InnerProduct;
use safetensors::{Dtype, SafeTensors};

/// Where the fixtures are: `L2B_FIXTURES`, for a test executable that runs away from the sources.
pub fn folder() -> PathBuf {
    std::env::var_os("L2B_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        PathBuf::from,
    )
}

/// Names of all cases, sorted.
pub fn cases() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("tests/fixtures, or the folder that L2B_FIXTURES names")
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".input.safetensors").map(str::to_owned)
        })
        .collect();
    names.sort();
    assert!(names.len() >= 14, "only {} cases", names.len());
    names
}

pub fn input(case: &str) -> PathBuf {
    folder().join(format!("{case}.input.safetensors"))
}

/// Tensors as f64, and the metadata.
pub fn load(path: &Path) -> (BTreeMap<String, Vec<f64>>, BTreeMap<String, String>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F64 => data
                    .chunks(8)
                    .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                Dtype::F32 => data
                    .chunks(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                Dtype::I64 => data
                    .chunks(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name, values)
        })
        .collect();
    let metadata = header.metadata().clone().unwrap_or_default();
    (tensors, metadata.into_iter().collect())
}

/// How far a tensor may be from the reference.
#[allow(dead_code)] // each test program uses its own part
#[derive(Clone, Copy)]
pub enum Bound {
    /// Relative L2 error.
    F64(f64),
    /// max(floor, 20 × the reference's own f32 noise on that tensor), relative L2 (DESIGN 8).
    F32 { floor: f64 },
}

/// Runs one case on a device and compares every tensor of the output. Returns the worst ratio of error to bound.
pub fn check<D: Device>(device: D, case: &str, inner_product: InnerProduct, bound: Bound) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    l2b::meta_step::run(device, &input(case), &output, inner_product).unwrap();
    let (got, _) = load(&output);
    let (want, metadata) = load(&self::folder().join(format!("{case}.expected.safetensors")));
    let noise: BTreeMap<String, f64> = serde_json::from_str(&metadata["noise"]).unwrap();

    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        want.keys().collect::<Vec<_>>(),
        "{case}"
    );
    assert_eq!(got["pseudo_labels"], want["pseudo_labels"], "{case}");
    // What the gradients are made of: the scale for tensors that are zero in exact arithmetic.
    let gradient_norm = want
        .iter()
        .filter(|(name, _)| name.starts_with("grad."))
        .map(|(_, g)| norm(g).powi(2))
        .sum::<f64>()
        .sqrt();
    let mut worst = (0.0, String::new(), 0.0, 0.0);
    for (name, want) in &want {
        let got = &got[name];
        assert_eq!(got.len(), want.len(), "{case} {name}");
        let error = norm(&got.iter().zip(want).map(|(g, w)| g - w).collect::<Vec<_>>());
        let size = norm(want);
        let relative = if size > 0.0 {
            error / size
        } else if name.starts_with("grad.") && gradient_norm > 0.0 {
            error / gradient_norm
        } else {
            // Exactly zero in the reference: exactly zero here.
            if error == 0.0 { 0.0 } else { f64::INFINITY }
        };
        let allowed = match bound {
            Bound::F64(bound) => bound,
            Bound::F32 { floor } => floor.max(20.0 * noise.get(name).copied().unwrap_or(0.0)),
        };
        let ratio = relative / allowed;
        // NaN is the worst of all.
        if ratio > worst.0 || ratio.is_nan() {
            worst = (ratio, name.clone(), relative, allowed);
        }
    }
    let (ratio, name, relative, allowed) = worst;
    assert!(
        ratio <= 1.0,
        "{case}: {name}: relative error {relative:.3e}, allowed {allowed:.3e}"
    );
    ratio
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}
