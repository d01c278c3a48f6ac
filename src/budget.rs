//! What the meta pass may cost: how much of the network v = ∇f_val covers, how many clean images it takes, and what that
//! makes of a step.

use std::fmt;
use std::str::FromStr;

use crate::data::meta_draw::MetaDraw;
use crate::net::{Node, Program, Reach};
use crate::{Error, Result};

/// The parameters that v covers. The weights are then exactly those of v with zeros elsewhere: ηλ⟨v, ∇f_i⟩ over these
/// parameters alone; nothing is computed for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetaDepth {
    /// All of them.
    #[default]
    All,
    /// Those of the last stages, this many, and of the head.
    Stages(u32),
}

/// Budgets of the meta pass by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum MetaBudget {
    /// As many clean as train images, drawn uniformly; the gradient of the whole network
    Full,
    /// Three eighths as many, stratified by class; the gradient of the last two stages and the head
    Fast,
}

impl MetaBudget {
    /// Depth in a network of `stages` stages.
    pub fn depth(self, stages: usize) -> MetaDepth {
        match self {
            MetaBudget::Full => MetaDepth::All,
            MetaBudget::Fast => MetaDepth::Stages(stages.min(2) as u32),
        }
    }

    /// Clean images beside `batch` train images.
    pub fn meta_batch(self, batch: u32) -> u32 {
        match self {
            MetaBudget::Full => batch,
            MetaBudget::Fast => (u64::from(batch) * 3).div_ceil(8) as u32,
        }
    }

    /// How they are drawn.
    pub fn meta_draw(self) -> MetaDraw {
        match self {
            MetaBudget::Full => MetaDraw::Uniform,
            MetaBudget::Fast => MetaDraw::Stratified,
        }
    }
}

impl MetaDepth {
    /// Error::Config where a network of `stages` stages has not as many.
    pub fn check(self, stages: usize) -> Result<()> {
        match self {
            MetaDepth::Stages(count) if count as usize > stages => Err(Error::config(
                "--meta-depth",
                format!("0 (the head alone) to {stages}, the number of stages of the network, or all"),
                count.to_string(),
                "all also covers what comes before the first stage",
            )),
            _ => Ok(()),
        }
    }

    /// The reach of v in a network.
    ///
    /// # Errors
    /// As [`MetaDepth::check`].
    pub fn reach(self, program: &Program) -> Result<Reach> {
        self.check(program.stages.len())?;
        let start = match self {
            MetaDepth::All => 0,
            MetaDepth::Stages(0) => program.head,
            MetaDepth::Stages(count) => program.stages[program.stages.len() - count as usize],
        };
        Ok(Reach::from_node(program, start))
    }
}

impl FromStr for MetaDepth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(MetaDepth::All),
            _ => text
                .parse()
                .map(MetaDepth::Stages)
                .map_err(|_| format!("expected a number of stages or all, found {text:?}")),
        }
    }
}

impl fmt::Display for MetaDepth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            MetaDepth::All => f.write_str("all"),
            MetaDepth::Stages(count) => write!(f, "{count}"),
        }
    }
}

impl serde::Serialize for MetaDepth {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            MetaDepth::All => serializer.serialize_str("all"),
            MetaDepth::Stages(count) => serializer.serialize_u32(count),
        }
    }
}

impl<'de> serde::Deserialize<'de> for MetaDepth {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = MetaDepth;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of stages or \"all\"")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<MetaDepth, E> {
                let count = u32::try_from(value)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))?;
                Ok(MetaDepth::Stages(count))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<MetaDepth, E> {
                let count = u32::try_from(value)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))?;
                Ok(MetaDepth::Stages(count))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MetaDepth, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Operations of a meta step on n train and m clean images over those of an ordinary step on n: multiply-adds of
/// convolutions and linear layers, by far the most of both. Ordinary: forward, and adjoints of weights and inputs.
/// Meta: forward of all and adjoints within the reach of v for the m, and a tangent within the reach for the n.
pub fn operations(program: &Program, n: usize, m: usize, reach: &Reach) -> f64 {
    let full = Reach::full(program);
    let (mut ordinary, mut per_clean, mut tangent) = (0.0, 0.0, 0.0);
    for node in &program.nodes {
        let Node::Conv { x, y, weight, .. } = *node else {
            continue;
        };
        let y = program.values[y];
        let forward = (y.height * y.width) as f64 * program.params[weight].len() as f64;
        // Two products where the input takes part too, one where it does not, none outside.
        let derivative = |reach: &Reach| match (reach.takes(node), reach.moves(x)) {
            (true, true) => 2.0 * forward,
            (true, false) => forward,
            (false, _) => 0.0,
        };
        ordinary += forward + derivative(&full);
        per_clean += forward + derivative(reach);
        tangent += derivative(reach);
    }
    (n as f64 * (ordinary + tangent) + m as f64 * per_clean) / (n as f64 * ordinary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Architecture, ModelName};

    fn resnet18() -> Program {
        Architecture {
            model: ModelName::PreactResnet18,
            width: 64,
            blocks: vec![2; 4],
            in_channels: 3,
            image_size: [32, 32],
            num_classes: 10,
        }
        .program()
        .unwrap()
    }

    /// Stages of PreActResNet-18 weigh alike: 8/3 for the full step, (1 + 2/3·k/4) + (1 + 2·k/4)/3·m/n for k of them.
    #[test]
    fn operation_counts_are_near_those_of_equal_stages() {
        let program = resnet18();
        let of = |m, depth: MetaDepth| operations(&program, 512, m, &depth.reach(&program).unwrap());
        for (m, depth, want) in [
            (512, MetaDepth::All, 2.667),
            (128, MetaDepth::All, 1.917),
            (128, MetaDepth::Stages(2), 1.50),
            (64, MetaDepth::Stages(1), 1.23),
            (64, MetaDepth::Stages(0), 1.042),
        ] {
            let got = of(m, depth);
            assert!((got - want).abs() < 0.03, "m = {m}, depth {depth}: {got}");
        }
        assert!(of(512, MetaDepth::Stages(4)) < of(512, MetaDepth::All));
    }

    #[test]
    fn budgets_cost_what_they_promise() {
        let program = resnet18();
        let cost = |budget: MetaBudget| {
            let reach = budget.depth(4).reach(&program).unwrap();
            operations(&program, 512, budget.meta_batch(512) as usize, &reach)
        };
        assert!((cost(MetaBudget::Full) - 2.667).abs() < 0.01);
        assert!(cost(MetaBudget::Fast) < 1.6);
        assert_eq!(
            [1, 8, 20, 512].map(|n| MetaBudget::Fast.meta_batch(n)),
            [1, 3, 8, 192]
        );
    }

    #[test]
    fn more_stages_than_there_are_is_refused_by_name() {
        let error = MetaDepth::Stages(5).reach(&resnet18()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(
            text.contains("--meta-depth") && text.contains("to 4") && text.contains("found 5"),
            "{text}"
        );
    }

    #[test]
    fn reads_back_what_it_writes() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Table {
            depth: MetaDepth,
        }
        for depth in [MetaDepth::All, MetaDepth::Stages(0), MetaDepth::Stages(7)] {
            assert_eq!(depth.to_string().parse(), Ok(depth));
            let text = toml::to_string(&Table { depth }).unwrap();
            assert_eq!(toml::from_str(&text), Ok(Table { depth }));
        }
        for bad in ["-1", "1.5", "", "most"] {
            assert!(bad.parse::<MetaDepth>().is_err(), "{bad}");
        }
        assert!(toml::from_str::<Table>("depth = -1").is_err());
    }
}
