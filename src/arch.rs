//! Named networks, as programs.

use crate::net::Program;
use crate::{Error, Result};

/// Which network, and its size.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    pub model: ModelName,
    /// Channels of the first stage; each later stage doubles them.
    pub width: usize,
    /// Residual blocks of each stage; the first block of every stage but the first halves the image.
    pub blocks: Vec<usize>,
    pub in_channels: usize,
    /// Height and width.
    pub image_size: [usize; 2],
    pub num_classes: usize,
}

/// Networks by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelName {
    /// Pre-activation residual network without batch-norm in the stem (METHOD 4.1, variant A).
    PreactResnet18,
}

/// Largest width, image side and number of input channels.
const LARGEST: usize = 16384;
/// A size that no image network reaches: larger ones are mistakes.
const MOST_PARAMETERS: f64 = 4e9;

impl Architecture {
    /// The program. Parameter names are PyTorch's: `conv1`, `layerS.B.{bn1,conv1,shortcut.0,bn2,conv2}`, `linear`.
    pub fn program(&self) -> Result<Program> {
        self.check()?;
        match self.model {
            ModelName::PreactResnet18 => Ok(self.preact_resnet().absorb_joins()),
        }
    }

    fn check(&self) -> Result<()> {
        let [height, width] = self.image_size;
        let positive = [
            ("width", self.width),
            ("in_channels", self.in_channels),
            ("image height", height),
            ("image width", width),
        ];
        for (what, value) in positive {
            if value == 0 || value > LARGEST {
                return Err(Error::config(
                    format!("model {what}"),
                    format!("1 to {LARGEST}"),
                    value.to_string(),
                    "",
                ));
            }
        }
        if self.num_classes < 2 || self.num_classes > 1 << 20 {
            return Err(Error::config(
                "model num_classes",
                "2 to 1048576",
                self.num_classes.to_string(),
                "",
            ));
        }
        if self.blocks.is_empty() || self.blocks.len() > 8 || self.blocks.iter().any(|&b| b == 0 || b > 1000)
        {
            return Err(Error::config(
                "model blocks",
                "1 to 8 stages of 1 to 1000 blocks",
                format!("{:?}", self.blocks),
                "for example [2, 2, 2, 2]",
            ));
        }
        // Rough, in floating point, so that no hostile size overflows: the exact program is built after this.
        let parameters: f64 = self
            .blocks
            .iter()
            .enumerate()
            .map(|(stage, &blocks)| {
                let channels = self.width as f64 * 2f64.powi(stage as i32);
                blocks as f64 * 18.0 * channels * channels
            })
            .sum();
        if parameters > MOST_PARAMETERS {
            return Err(Error::config(
                "model width and blocks",
                format!("at most {MOST_PARAMETERS:e} parameters"),
                format!("about {parameters:.1e}"),
                "",
            ));
        }
        Ok(())
    }

    fn preact_resnet(&self) -> Program {
        let [height, width] = self.image_size;
        let mut net = Program::new(height, width, self.in_channels);
        let mut x = net.conv("conv1", net.input(), self.width, 3, 1, 1);
        for (stage, &blocks) in self.blocks.iter().enumerate() {
            let channels = self.width << stage;
            net.begin_stage();
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                x = preact_block(&mut net, &name, x, channels, stride);
            }
        }
        net.begin_head();
        let pooled = net.global_pool(x);
        net.linear("linear", pooled, self.num_classes);
        net
    }
}

/// o = relu(bn1(x)); conv2(relu(bn2(conv1(o)))) + (1×1 convolution of o where the shape changes, else x).
fn preact_block(net: &mut Program, name: &str, x: usize, channels: usize, stride: usize) -> usize {
    let o = net.norm(&format!("{name}.bn1"), x, true);
    let shortcut = if stride != 1 || net.values[x].channels != channels {
        net.conv(&format!("{name}.shortcut.0"), o, channels, 1, stride, 0)
    } else {
        x
    };
    let y = net.conv(&format!("{name}.conv1"), o, channels, 3, stride, 1);
    let y = net.norm(&format!("{name}.bn2"), y, true);
    let y = net.conv(&format!("{name}.conv2"), y, channels, 3, 1, 1);
    net.join(y, shortcut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preact(width: usize, classes: usize) -> Architecture {
        Architecture {
            model: ModelName::PreactResnet18,
            width,
            blocks: vec![2, 2, 2, 2],
            in_channels: 3,
            image_size: [32, 32],
            num_classes: classes,
        }
    }

    /// METHOD 4.1: 11 171 146 parameters for 10 classes, 11 217 316 for 100.
    #[test]
    fn parameter_counts_are_the_reference_ones() {
        assert_eq!(preact(64, 10).program().unwrap().parameter_count(), 11_171_146);
        assert_eq!(preact(64, 100).program().unwrap().parameter_count(), 11_217_316);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bad in [
            Architecture {
                width: 0,
                ..preact(64, 10)
            },
            Architecture {
                blocks: vec![],
                ..preact(64, 10)
            },
            Architecture {
                blocks: vec![1, 0],
                ..preact(64, 10)
            },
            Architecture {
                num_classes: 1,
                ..preact(64, 10)
            },
            Architecture {
                image_size: [0, 32],
                ..preact(64, 10)
            },
        ] {
            assert!(matches!(bad.program(), Err(Error::Config { .. })), "{bad:?}");
        }
    }
}
