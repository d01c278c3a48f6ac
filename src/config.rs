//! What a run is made of: every hyper-parameter once, with its default, its meaning and its range.
//!
//! The struct is the command line (clap), the TOML recipe (serde) and the resolved `config.toml` of a run folder alike.
//! `recipe.rs` decides which of them wins.

mod method;

use std::path::{Path, PathBuf};

use clap::builder::RangedU64ValueParser;
use clap::{Args, Command, FromArgMatches};
use serde::{Deserialize, Serialize};

use crate::budget::{MetaBudget, MetaDepth};
use crate::data::meta_draw::MetaDraw;
use crate::data::noise::NoiseKind;
use crate::device::choice::{DeviceChoice, Precision};
use crate::device::{AugmentShape, StepParams};
use crate::engine::{EngineOptions, InnerProduct, NormMode, VirtualStep, Weights};
use crate::evaluate::plain;
use crate::model::Init;
use crate::schedule::Schedule;
use crate::{Error, Result};

pub use method::Method;

/// Name of the dataset inside the binary.
pub const BUNDLED: &str = "digits";

/// Nominal noise rate of the bundled dataset where none is asked for.
const DEFAULT_NOISE: f64 = 0.4;

/// Clean images per class where the true labels are known and nothing else says what is clean.
pub(crate) const DEFAULT_META_PER_CLASS: u32 = 10;

/// Epochs of plain cross-entropy where nothing else is asked for.
const DEFAULT_WARM_UP: u32 = 2;

/// Whole numbers as large as TOML has them.
fn whole<T: TryFrom<u64>>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(..=i64::MAX as u64)
}

/// Everything a run depends on.
#[derive(Clone, Debug, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// `digits` (in the binary) or a dataset folder
    #[arg(long, default_value = BUNDLED, help_heading = "Data")]
    pub data: PathBuf,
    /// Overlay file with noisy labels and the clean set, from `l2b data noise`
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// Nominal noise rate, 0 to 1 [default: 0.4 for digits, 0 for folders, whose labels then stay as given]
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// Rule by which labels go wrong
    #[arg(long, value_enum, default_value_t = NoiseKind::Uniform, help_heading = "Data")]
    pub noise_kind: NoiseKind,
    /// Split that holds the clean images
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_split: Option<String>,
    /// Clean images per class, taken out of train [default: 10 where true labels are known: in digits, under --noise, in
    /// clean_labels]
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_per_class: Option<u32>,
    /// Read with positional reads instead of a memory map
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", help_heading = "Data")]
    pub no_mmap: bool,
    /// Pixels of padding before a random crop
    #[arg(long, default_value_t = 0, help_heading = "Data")]
    pub pad: u32,
    /// Mirror half of the train images
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", help_heading = "Data")]
    pub flip: bool,

    /// What is trained
    #[arg(long, value_enum, default_value_t = Method::L2b, help_heading = "Method")]
    pub method: Method,
    /// Epochs of cross-entropy on the given labels before the method starts [default: 2]
    #[arg(long, help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<u32>,
    /// Cost of the meta pass by name: what --meta-batch, --meta-draw and --meta-depth are unless given
    #[arg(long, value_enum, default_value_t = MetaBudget::Full, help_heading = "Method")]
    pub meta_budget: MetaBudget,
    /// Clean images per step [default: as --meta-budget says, or all there are]
    #[arg(long, help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_batch: Option<u32>,
    /// How they are drawn [default: as --meta-budget says]
    #[arg(long, value_enum, help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_draw: Option<MetaDraw>,
    /// Stages that the meta gradient covers with the head, from the last one on (0: the head alone), or all [default: as
    /// --meta-budget says]
    #[arg(long, value_name = "STAGES", help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_depth: Option<MetaDepth>,
    /// Virtual step: the real optimizer's, or plain SGD
    #[arg(long, value_enum, default_value_t = VirtualStep::Momentum, help_heading = "Method")]
    pub virtual_step: VirtualStep,
    /// How the gradients' inner products are computed
    #[arg(long, value_enum, default_value_t = InnerProduct::Tangent, help_heading = "Method")]
    pub inner_product: InnerProduct,
    /// Batch-norm statistics in training
    #[arg(long, value_enum, default_value_t = NormMode::Batch, help_heading = "Method")]
    pub norm: NormMode,
    /// How raw weights become weights
    #[arg(long, value_enum, default_value_t = Weights::Org, help_heading = "Method")]
    pub weights: Weights,
    /// Temperature of softmax weights
    #[arg(long, default_value_t = 10.0, help_heading = "Method")]
    pub temperature: f64,
    /// Threshold of hard weights
    #[arg(long, default_value_t = 0.0, help_heading = "Method")]
    pub threshold: f64,
    /// Step size of the weights
    #[arg(long, default_value_t = 1.0, help_heading = "Method")]
    pub eta: f64,
    /// Share of the given label in bootstrapping
    #[arg(long, default_value_t = 0.8, help_heading = "Method")]
    pub bootstrap: f64,

    /// Channels of the first stage of the pre-activation residual network
    #[arg(long, value_parser = whole::<usize>(), default_value_t = 16, help_heading = "Model")]
    pub width: usize,
    /// Residual blocks of each stage
    #[arg(long, value_parser = whole::<usize>(), value_delimiter = ',', default_values_t = [1, 1, 1], help_heading = "Model")]
    pub blocks: Vec<usize>,
    /// How weights start
    #[arg(long, value_enum, default_value_t = Init::He, help_heading = "Model")]
    pub init: Init,

    /// Passes over the train images
    #[arg(long, default_value_t = 30, help_heading = "Optimizer")]
    pub epochs: u32,
    /// Train images per step
    #[arg(long, default_value_t = 64, help_heading = "Optimizer")]
    pub batch: u32,
    /// Learning rate at the start
    #[arg(long, default_value_t = 0.05, help_heading = "Optimizer")]
    pub lr: f64,
    /// How the learning rate falls
    #[arg(long, value_enum, default_value_t = Schedule::Cosine, help_heading = "Optimizer")]
    pub schedule: Schedule,
    /// Epochs at which --schedule step divides the learning rate by 10
    #[arg(long, value_delimiter = ',', default_values_t = [150], help_heading = "Optimizer")]
    pub milestones: Vec<u32>,
    /// SGD momentum
    #[arg(long, default_value_t = 0.9, help_heading = "Optimizer")]
    pub momentum: f64,
    /// Weight decay, on every parameter
    #[arg(long, default_value_t = 5e-4, help_heading = "Optimizer")]
    pub weight_decay: f64,
    /// Largest gradient norm; 0: no clipping
    #[arg(long, default_value_t = 0.0, help_heading = "Optimizer")]
    pub clip: f64,

    /// auto, cpu, cuda, cuda:N or emulator
    #[arg(long, default_value_t = DeviceChoice::Auto, help_heading = "Run")]
    pub device: DeviceChoice,
    /// Number format [default: f32; of `train` on a GPU bf16]
    #[arg(long, value_enum, help_heading = "Run")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Threads of the CPU device [default: one per core]; no result depends on it
    #[arg(long, value_parser = whole::<usize>(), help_heading = "Run")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Seed of clean set, noise, initial weights and order
    #[arg(long, value_parser = whole::<u64>(), default_value_t = 0, help_heading = "Run")]
    pub seed: u64,
    /// Images per step of an evaluation
    #[arg(long, default_value_t = 128, help_heading = "Run")]
    pub eval_batch: u32,
    /// Folder to write, which must not exist [default: a new one under runs/]
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> Self {
        let matches = RunConfig::augment_args(Command::new("defaults")).get_matches_from(["defaults"]);
        RunConfig::from_arg_matches(&matches).expect("defaults are valid")
    }
}

impl RunConfig {
    /// Fills in what depends on other options, then checks every range.
    ///
    /// # Errors
    /// `Config` naming the option.
    pub fn resolve(mut self) -> Result<Self> {
        if self.labels.is_some() && self.noise.is_some() {
            return Err(conflict(
                "noise",
                "labels",
                "the overlay file already holds noisy labels",
            ));
        }
        if self.meta_per_class.is_some() && self.meta_split.is_some() {
            return Err(conflict(
                "meta-per-class",
                "meta-split",
                "choose one source of clean images",
            ));
        }
        if self.meta_per_class.is_some() && self.labels.is_some() {
            return Err(conflict(
                "meta-per-class",
                "labels",
                "the overlay file names its clean images",
            ));
        }
        if self.labels.is_none() {
            let noise = if self.is_bundled() { DEFAULT_NOISE } else { 0.0 };
            let noise = *self.noise.get_or_insert(noise);
            // Labels to draw noise over are the truth; whether those of a folder are, `Task::open` asks the folder.
            if self.meta_split.is_none() && (noise > 0.0 || self.is_bundled()) {
                self.meta_per_class.get_or_insert(DEFAULT_META_PER_CLASS);
            }
        }
        let stages = self.blocks.len();
        let budget = self.budget();
        self.meta_depth.get_or_insert(budget.depth(stages));
        self.meta_draw.get_or_insert(budget.meta_draw());
        let last = self.epochs.saturating_sub(1);
        let warm_up = *self.warm_up.get_or_insert(DEFAULT_WARM_UP.min(last));
        self.check()?;
        if self.method == Method::L2rw && matches!(self.weights, Weights::Softmax | Weights::Hard) {
            return Err(Error::config(
                "--weights of l2rw",
                "org or sigmoid",
                if self.weights == Weights::Hard {
                    "hard"
                } else {
                    "softmax"
                },
                "softmax and hard weights are defined over given and pseudo-labels together",
            ));
        }
        if self.method.warms_up() && warm_up > last {
            return Err(Error::config(
                "--warm-up",
                format!("0 to {last}, fewer than --epochs"),
                warm_up.to_string(),
                format!("otherwise {} never starts", self.method.name()),
            ));
        }
        Ok(self)
    }

    /// Whether the dataset is the one inside the binary.
    pub fn is_bundled(&self) -> bool {
        self.data == Path::new(BUNDLED)
    }

    /// Number format of the run.
    pub fn precision(&self) -> Precision {
        self.precision.unwrap_or(Precision::F32)
    }

    /// Budget of the meta pass. Where there is none it changes nothing: the clean images alone are learned from as ever.
    pub fn budget(&self) -> MetaBudget {
        match self.method.objective().is_meta() {
            true => self.meta_budget,
            false => MetaBudget::Full,
        }
    }

    /// Depth of the meta gradient; set by [`RunConfig::resolve`].
    pub fn depth(&self) -> MetaDepth {
        self.meta_depth.unwrap_or_default()
    }

    /// How clean images are drawn; set by [`RunConfig::resolve`].
    pub fn draw(&self) -> MetaDraw {
        self.meta_draw.unwrap_or(MetaBudget::Full.meta_draw())
    }

    /// Epochs of plain cross-entropy; set by [`RunConfig::resolve`].
    pub fn warm_up_epochs(&self) -> u32 {
        if self.method.warms_up() {
            self.warm_up.unwrap_or(0)
        } else {
            0
        }
    }

    fn check(&self) -> Result<()> {
        let number = |what: &str, value: f64, fits: bool, expected: &str, hint: &str| {
            if fits {
                Ok(())
            } else {
                Err(Error::config(
                    format!("--{what}"),
                    expected,
                    value.to_string(),
                    hint,
                ))
            }
        };
        // Every condition is written so that NaN fails.
        let from_zero = |what: &str, value: f64| {
            number(
                what,
                value,
                value >= 0.0 && value.is_finite(),
                "a finite number, 0 or more",
                "",
            )
        };
        let share = |what: &str, value: f64, hint: &str| {
            number(
                what,
                value,
                (0.0..=1.0).contains(&value),
                "a number from 0 to 1",
                hint,
            )
        };
        if let Some(noise) = self.noise {
            share("noise", noise, "40 % is 0.4")?;
        }
        share("bootstrap", self.bootstrap, "it is the share of the given label")?;
        share("threshold", self.threshold, "")?;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        number(
            "lr",
            self.lr,
            positive(self.lr),
            "a finite number above 0",
            "0.05 is the default",
        )?;
        number(
            "temperature",
            self.temperature,
            positive(self.temperature),
            "a finite number above 0",
            "",
        )?;
        number("eta", self.eta, positive(self.eta), "a finite number above 0", "")?;
        let below_one = (0.0..1.0).contains(&self.momentum);
        number(
            "momentum",
            self.momentum,
            below_one,
            "0 or more and below 1",
            "0.9 is the default",
        )?;
        from_zero("weight-decay", self.weight_decay)?;
        from_zero("clip", self.clip)?;
        for (what, value, most) in [
            ("epochs", u64::from(self.epochs), 1_000_000),
            ("batch", u64::from(self.batch), 1 << 20),
            ("eval-batch", u64::from(self.eval_batch), 1 << 20),
            ("meta-batch", self.meta_batch.map_or(1, u64::from), 1 << 20),
            (
                "meta-per-class",
                self.meta_per_class.map_or(1, u64::from),
                1 << 30,
            ),
            ("threads", self.threads.map_or(1, |t| t as u64), 4096),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::config(
                    format!("--{what}"),
                    format!("1 to {most}"),
                    value.to_string(),
                    "",
                ));
            }
        }
        if self.schedule == Schedule::Step && self.milestones.iter().all(|&m| m >= self.epochs) {
            return Err(Error::config(
                "--milestones of --schedule step",
                format!("one below {}, the number of epochs", self.epochs),
                format!("{:?}", self.milestones),
                "otherwise the learning rate never falls, which is --schedule constant",
            ));
        }
        self.depth().check(self.blocks.len())?;
        if self.pad > 1024 {
            return Err(Error::config(
                "--pad",
                "0 to 1024",
                self.pad.to_string(),
                "4 is usual for 32×32 images",
            ));
        }
        Ok(())
    }

    /// What the engine needs to know.
    pub fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            virtual_step: self.virtual_step,
            meta_depth: self.depth(),
            inner_product: self.inner_product,
            norm: self.norm,
            normalise: self.weights.normalise(self.temperature, self.threshold),
            bootstrap: self.bootstrap,
        }
    }

    /// Learning rate of an epoch, from 0.
    pub fn lr_at(&self, epoch: u32) -> f64 {
        self.schedule.at(self.lr, epoch, self.epochs, &self.milestones)
    }

    /// What a step of an epoch (both from 0, steps through all epochs) needs.
    pub fn step_params(&self, epoch: u32, step: u32) -> StepParams {
        let lr = self.lr_at(epoch);
        StepParams {
            lr,
            // The virtual step is the real one's size (METHOD 1.5).
            lambda: lr,
            eta: self.eta,
            mu: self.momentum,
            weight_decay: self.weight_decay,
            clip: self.clip,
            seed: self.seed,
            step,
            reserved: 0,
        }
    }

    /// How a batch of `n` images `[H,W,C]` is augmented; `view` as in `random.rs`.
    pub fn augment(&self, n: usize, image: [usize; 3], view: u16) -> AugmentShape {
        AugmentShape {
            pad: self.pad as i32,
            flip: i32::from(self.flip),
            view: i32::from(view),
            ..plain(n, image)
        }
    }

    /// The TOML that [`RunConfig::from_toml`] reads back.
    ///
    /// # Errors
    /// `Internal` for a path that is no text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Internal(format!("config.toml: {e}")))
    }
}

fn conflict(option: &str, other: &str, hint: &str) -> Error {
    Error::config(
        format!("--{option}"),
        format!("no --{other} beside it"),
        "both",
        hint,
    )
}
