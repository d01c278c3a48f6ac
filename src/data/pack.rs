//! Raw datasets into dataset folders; with `idx`, the only code that knows raw formats.

use super::idx::{self, Idx};
use super::manifest::Manifest;
use super::writer::{DatasetWriter, Samples};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Packs the four files of an MNIST-like dataset, `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` in `source`, into
/// the new dataset folder `target` with splits `train` and `test`. `classes` names the classes in the order of the
/// labels; without names they are called by number. Mean and standard deviation are those of all train pixels.
/// `progress` hears of samples written and of their total.
///
/// # Errors
/// `Io`; `Data` naming the raw file that is wrong; `Config` if `target` exists or the class names do not fit.
pub fn pack_idx(
    source: &Path,
    target: &Path,
    name: &str,
    classes: Option<&[String]>,
    mut progress: impl FnMut(usize, usize),
) -> Result<()> {
    let train = read_pair(source, "train")?;
    let test = read_pair(source, "t10k")?;
    if train.shape != test.shape {
        let path = find(source, "t10k-images", "idx3-ubyte")?;
        let (expected, found) = (
            format!("{:?}, as in train", train.shape),
            format!("{:?}", test.shape),
        );
        return Err(Error::data(path, "height and width", expected, found, ""));
    }
    let n_classes = 1 + train
        .labels
        .iter()
        .chain(&test.labels)
        .copied()
        .max()
        .unwrap_or(0) as usize;
    let classes = match classes {
        None => (0..n_classes.max(2)).map(|class| class.to_string()).collect(),
        Some(names) if names.len() >= n_classes => names.to_vec(),
        Some(names) => {
            let expected = format!("at least {n_classes} names, for labels up to {}", n_classes - 1);
            return Err(Error::config(
                "class names",
                expected,
                names.len().to_string(),
                "",
            ));
        }
    };
    let [height, width] = train.shape.map(|size| size as u32);
    let empty = Manifest {
        name: name.to_owned(),
        classes,
        channels: 1,
        height,
        width,
        mean: vec![],
        std: vec![],
        splits: Default::default(),
    };
    let mut writer = DatasetWriter::create(target, empty)?;
    let (mut done, total) = (0, train.labels.len() + test.labels.len());
    for (split, raw) in [("train", &train), ("test", &test)] {
        let n = writer.samples_per_shard();
        let images = raw.images.chunks(n * train.shape[0] * train.shape[1]);
        for (images, labels) in images.zip(raw.labels.chunks(n)) {
            writer.write_shard(
                split,
                Samples {
                    images,
                    labels,
                    ..Samples::default()
                },
            )?;
            done += labels.len();
            progress(done, total);
        }
    }
    let (mean, std) = mean_std(&train.images, 1);
    writer.finish(mean, std)
}

/// Mean and population standard deviation of u8 / 255 for each channel of images `[..,C]`; exact sums from counts.
pub fn mean_std(images: &[u8], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let mut counts = vec![[0u64; 256]; channels];
    for pixel in images.chunks_exact(channels) {
        for (count, &value) in counts.iter_mut().zip(pixel) {
            count[value as usize] += 1;
        }
    }
    let one = |count: [u64; 256]| {
        let n: u64 = count.iter().sum();
        let weighted = |f: &dyn Fn(f64) -> f64| {
            let terms = (0..256).map(|u| count[u] as f64 * f(u as f64 / 255.0));
            terms.sum::<f64>() / n.max(1) as f64
        };
        let mean = weighted(&|x| x);
        (mean, weighted(&|x| (x - mean) * (x - mean)).sqrt())
    };
    counts.into_iter().map(one).unzip()
}

struct Raw {
    /// `[n,H,W]`
    images: Vec<u8>,
    labels: Vec<i32>,
    /// `[H, W]`
    shape: [usize; 2],
}

fn read_pair(source: &Path, prefix: &str) -> Result<Raw> {
    let images_path = find(source, &format!("{prefix}-images"), "idx3-ubyte")?;
    let labels_path = find(source, &format!("{prefix}-labels"), "idx1-ubyte")?;
    let Idx {
        shape,
        values: images,
    } = idx::read(&images_path, 3)?;
    let labels = idx::read(&labels_path, 1)?.values;
    if labels.len() != shape[0] {
        let expected = format!("{}, one for each image of {}", shape[0], images_path.display());
        return Err(Error::data(
            labels_path,
            "labels",
            expected,
            labels.len().to_string(),
            "",
        ));
    }
    let (labels, shape) = (labels.into_iter().map(i32::from).collect(), [shape[1], shape[2]]);
    Ok(Raw {
        images,
        labels,
        shape,
    })
}

/// The file `STEM-KIND` or `STEM.KIND`, plain or gzip.
fn find(source: &Path, stem: &str, kind: &str) -> Result<PathBuf> {
    let names = ["-", "."]
        .into_iter()
        .flat_map(|dot| ["", ".gz"].map(|end| format!("{stem}{dot}{kind}{end}")));
    let paths: Vec<PathBuf> = names.map(|name| source.join(name)).collect();
    match paths.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            let hint = "an MNIST-like dataset is a folder of four files; see `l2b data pack --help`";
            Err(Error::data(
                source,
                "files",
                format!("{stem}-{kind}[.gz]"),
                "no such file",
                hint,
            ))
        }
    }
}
