//! `l2b data pack | noise | info`.

use super::progress_bar;
use crate::data::dataset::{Dataset, Split};
use crate::data::labels::Overlay;
use crate::data::noise::{Noise, NoiseKind};
use crate::data::pack::pack_idx;
use crate::data::source::Access;
use crate::data::split::{draw_per_class, remaining};
use crate::{Error, Result, task};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make, describe and check datasets
#[derive(Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand, Debug)]
enum DataCommand {
    Pack(PackArgs),
    Noise(NoiseArgs),
    Info(InfoArgs),
}

/// Pack an MNIST-like dataset (IDX files, plain or gzip) into a dataset folder
#[derive(Args, Debug)]
struct PackArgs {
    /// Folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]
    source: PathBuf,
    /// Dataset folder to make; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Name of the dataset [default: name of the output folder]
    #[arg(long)]
    name: Option<String>,
    /// Class names in the order of the labels, separated by commas [default: numbers]
    #[arg(long, value_delimiter = ',')]
    classes: Option<Vec<String>>,
}

/// Draw wrong labels for a split, and the clean images left out of it, into a labels file
#[derive(Args, Debug)]
struct NoiseArgs {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Labels file to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Rule by which labels go wrong
    #[arg(long, value_enum, default_value = "uniform")]
    kind: NoiseKind,
    /// Nominal rate, from 0 to 1; some kinds change fewer labels than that
    #[arg(long)]
    rate: f64,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Clean images of each class, taken out before the noise
    #[arg(long, default_value_t = 0, value_name = "K")]
    meta_per_class: u32,
    /// Seed of the choice of clean images
    #[arg(long, default_value_t = 0)]
    meta_seed: u64,
    /// Split whose labels go wrong
    #[arg(long, default_value = "train")]
    split: String,
}

/// Describe a dataset and its labels
#[derive(Args, Debug)]
struct InfoArgs {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Read every shard in full and compare hashes and checksums
    #[arg(long)]
    verify: bool,
    /// Labels files to describe too
    #[arg(long, num_args = 1.., value_name = "FILE")]
    labels: Vec<PathBuf>,
}

/// Which dataset, and how to read it.
#[derive(Args, Debug)]
pub struct DatasetArgs {
    /// Dataset folder, or `digits` for the bundled one
    #[arg(default_value = "digits")]
    dataset: PathBuf,
    /// Read files instead of mapping them, for file systems that map badly
    #[arg(long)]
    no_mmap: bool,
}

impl DatasetArgs {
    /// Opens the dataset.
    ///
    /// # Errors
    /// As [`task::open`].
    pub fn open(&self) -> Result<Dataset> {
        task::open(&self.dataset, self.no_mmap)
    }
}

/// Runs `l2b data …`, printing to `out`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &DataArgs, out: &mut dyn Write) -> Result<()> {
    let text = match &args.command {
        DataCommand::Pack(args) => pack(args)?,
        DataCommand::Noise(args) => noise(args)?,
        DataCommand::Info(args) => info(args)?,
    };
    out.write_all(text.as_bytes())
        .map_err(|e| Error::io("standard output", e))
}

fn pack(args: &PackArgs) -> Result<String> {
    let folder_name = args
        .out
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = args.name.clone().or(folder_name).unwrap_or_default();
    let bar = progress_bar(0, "packing {bar:40} {pos}/{len} images");
    pack_idx(
        &args.source,
        &args.out,
        &name,
        args.classes.as_deref(),
        |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    describe(&Dataset::open(&args.out, Access::Map)?)
}

fn noise(args: &NoiseArgs) -> Result<String> {
    let dataset = args.dataset.open()?;
    let split = dataset.split(&args.split)?;
    let classes = &dataset.manifest().classes;
    let n_classes = classes.len() as u32;
    let clean = split.clean_labels().unwrap_or(split.labels());
    let meta = draw_per_class(clean, classes, args.meta_per_class, args.meta_seed)?;
    let noise = Noise {
        kind: args.kind,
        rate: args.rate,
        seed: args.seed,
    };
    let samples = remaining(split.len(), &meta);
    let overlay = Overlay::draw(&split, n_classes, meta, noise)?;
    overlay.save(&args.out)?;
    let expected = noise.expected_rate(clean, &samples, n_classes);
    let mut table = noise_table();
    table.push(noise_row(&args.out.display().to_string(), &overlay));
    Ok(format!(
        "{}expected changed: {}\n",
        aligned(&table),
        percent(expected)
    ))
}

fn info(args: &InfoArgs) -> Result<String> {
    let dataset = args.dataset.open()?;
    let mut text = describe(&dataset)?;
    let n_classes = dataset.manifest().classes.len() as u32;
    let mut table = noise_table();
    for split in dataset.splits().filter(|split| split.clean_labels().is_some()) {
        table.push(noise_row("in the shards", &Overlay::none(split, Vec::new())));
    }
    for path in &args.labels {
        let split = overlay_split(&dataset, path)?;
        table.push(noise_row(
            &path.display().to_string(),
            &Overlay::load(path, &split, n_classes)?,
        ));
    }
    if table.len() > 1 {
        text += &format!("\n{}", aligned(&table));
    }
    if args.verify {
        let v = dataset.verify()?;
        text += &format!(
            "\nverified {} shards: {} equal their sha256, {} their checksums\n",
            v.shards, v.hashed, v.checksummed
        );
        if v.hashed.max(v.checksummed) < v.shards {
            text += "the others carry neither: damage to their images cannot be seen\n";
        }
    }
    Ok(text)
}

/// The split whose name a labels file carries.
fn overlay_split(dataset: &Dataset, path: &Path) -> Result<std::sync::Arc<Split>> {
    let name = Overlay::split_name(path)?;
    dataset.split(&name).map_err(|_| {
        let expected = "a split of this dataset";
        Error::data(
            path,
            "split",
            expected,
            format!("{name:?}"),
            "these labels were made for another dataset",
        )
    })
}

fn describe(dataset: &Dataset) -> Result<String> {
    let m = dataset.manifest();
    let list = |values: &[f64]| {
        values
            .iter()
            .map(|v| format!("{v:.4}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut text = format!(
        "{}: {} classes, images {} × {} × {} (channels, height, width)\nfolder {}\nmean {}   std {}   (of u8 / 255)\n\n",
        m.name,
        m.classes.len(),
        m.channels,
        m.height,
        m.width,
        dataset.folder().display(),
        list(&m.mean),
        list(&m.std),
    );
    let splits: Vec<_> = dataset.splits().collect();
    let header = ["split", "images", "shards", "also", "fingerprint"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for split in &splits {
        let also = [
            (split.clean_labels().is_some(), "clean_labels"),
            (split.has_masks(), "masks"),
            (split.ids().is_some(), "ids"),
        ];
        let also: Vec<&str> = also
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, name)| *name)
            .collect();
        let shards = m.splits[split.name()].len();
        table.push(vec![
            split.name().into(),
            split.len().to_string(),
            shards.to_string(),
            also.join(" "),
            split.fingerprint().into(),
        ]);
    }
    text += &aligned(&table);
    let mut header = vec!["class".to_owned()];
    header.extend(splits.iter().map(|split| split.name().to_owned()));
    let mut table = vec![header];
    for (label, class) in (0..).zip(&m.classes) {
        let count = |split: &&std::sync::Arc<Split>| split.labels().iter().filter(|&&l| l == label).count();
        let mut row = vec![class.clone()];
        row.extend(splits.iter().map(|split| count(split).to_string()));
        table.push(row);
    }
    Ok(format!("{text}\n{}", aligned(&table)))
}

fn noise_table() -> Vec<Vec<String>> {
    vec![
        ["labels", "split", "kind", "clean images", "nominal", "realised"]
            .map(str::to_owned)
            .to_vec(),
    ]
}

fn noise_row(name: &str, overlay: &Overlay) -> Vec<String> {
    vec![
        name.to_owned(),
        overlay.split.clone(),
        overlay.kind.clone(),
        overlay.meta_index.len().to_string(),
        overlay.nominal.map_or("-".to_owned(), percent),
        percent(overlay.realised),
    ]
}

fn percent(rate: f64) -> String {
    format!("{:.2} %", 100.0 * rate)
}

/// Rows in columns as wide as needed: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| {
            if c == 0 {
                format!("{cell:<w$}")
            } else {
                format!("{cell:>w$}")
            }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}
