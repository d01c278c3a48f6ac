//! Learning rates as pure functions of the epoch (METHOD 2.5): constant within an epoch, no ramp, no floor.

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// lr·(1 + cos(π·epoch/epochs))/2
    Cosine,
    /// lr, times 0.1 at each milestone
    Step,
    /// lr throughout
    Constant,
}

/// Factor of [`Schedule::Step`] at each milestone.
const DECAY: f64 = 0.1;

impl Schedule {
    /// Learning rate of `epoch` (from 0) out of `epochs`. A milestone m acts from epoch m on.
    pub fn at(self, lr: f64, epoch: u32, epochs: u32, milestones: &[u32]) -> f64 {
        match self {
            Schedule::Cosine => {
                let done = f64::from(epoch) / f64::from(epochs);
                lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            Schedule::Step => {
                let passed = milestones.iter().filter(|&&m| m <= epoch).count();
                lr * DECAY.powi(passed as i32)
            }
            Schedule::Constant => lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use approx::{assert_abs_diff_eq, assert_relative_eq};

    use super::*;

    /// Values of PyTorch's CosineAnnealingLR(T_max = 4) at lr 0.15.
    #[test]
    fn cosine_starts_at_lr_and_would_end_at_zero() {
        let at = |epoch| Schedule::Cosine.at(0.15, epoch, 4, &[]);
        let expected = [
            0.15,
            0.128_033_008_588_991_06,
            0.075,
            0.021_966_991_411_008_94,
            0.0,
        ];
        for (epoch, expected) in (0..).zip(expected) {
            assert_abs_diff_eq!(at(epoch), expected, epsilon = 1e-15);
        }
        assert_eq!(Schedule::Cosine.at(0.3, 0, 1, &[]), 0.3);
    }

    #[test]
    fn step_falls_at_milestones_in_any_order() {
        let at = |epoch| Schedule::Step.at(0.02, epoch, 300, &[250, 150]);
        assert_eq!([0, 149].map(at), [0.02; 2]);
        for (epoch, expected) in [(150, 0.002), (249, 0.002), (250, 0.0002), (299, 0.0002)] {
            assert_relative_eq!(at(epoch), expected, max_relative = 1e-15);
        }
        assert_eq!(Schedule::Step.at(0.02, 7, 9, &[]), 0.02);
    }

    #[test]
    fn constant_stays() {
        assert_eq!(
            [0, 5, 9].map(|e| Schedule::Constant.at(0.1, e, 10, &[3])),
            [0.1; 3]
        );
    }
}
