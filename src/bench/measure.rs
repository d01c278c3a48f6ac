//! Windows of device time, and their quantiles.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::device::Device;

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    /// Windows of each measurement.
    pub count: usize,
    /// Fewer where this many seconds are over, but at least [`Windows::LEAST`].
    pub seconds: f64,
}

impl Windows {
    pub const LEAST: usize = 3;
    /// Calls are repeated until a window lasts this long: well above the resolution of any clock used.
    const SHORTEST: f64 = 5e-3;
    const MOST_CALLS: f64 = 1000.0;

    /// Whether another window is due after `done` of them.
    pub fn more(&self, done: usize, start: Instant) -> bool {
        done < self.count && (done < Self::LEAST || start.elapsed().as_secs_f64() < self.seconds)
    }

    /// Calls in a window, where one lasts `seconds`.
    pub fn calls(seconds: f64) -> usize {
        (Self::SHORTEST / seconds.max(1e-9))
            .clamp(1.0, Self::MOST_CALLS)
            .ceil() as usize
    }
}

/// Median and the 10th and 90th percentile of some windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
    pub windows: usize,
}

impl Quantiles {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Quantiles {
            median: at(0.5),
            p10: at(0.1),
            p90: at(0.9),
            windows: values.len(),
        }
    }

    /// Whether the middle 80 % of the windows lie within a fifth of the median.
    pub fn is_quiet(&self) -> bool {
        self.p10 > 0.8 * self.median && self.p90 < 1.2 * self.median
    }

    /// Of the values' images under a falling function such as seconds -> rate.
    pub fn inverse(&self, amount: f64) -> Self {
        Quantiles {
            median: amount / self.median,
            p10: amount / self.p90,
            p90: amount / self.p10,
            windows: self.windows,
        }
    }
}

/// Seconds of `work` by the device's clock.
///
/// # Errors
/// Those of the work and the device.
pub fn device_seconds<D: Device>(device: &D, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let from = device.mark()?;
    work()?;
    let to = device.mark()?;
    device.seconds(&from, &to)
}

/// Seconds of one call, over windows of many. The caller has made the call at least once: what is timed is warm, caches
/// included. A device that records gets each window in one piece, as it gets a step: small operations are then not timed
/// by how fast the host asks for them.
///
/// # Errors
/// Those of the call and the device.
pub fn time<D: Device>(
    device: &D,
    windows: &Windows,
    mut call: impl FnMut() -> Result<()>,
) -> Result<Quantiles> {
    device.synchronize()?;
    let calls = Windows::calls(device_seconds(device, &mut call)?);
    let mut work = || (0..calls).try_for_each(|_| call());
    let mut recording = device.record(&mut work)?;
    let mut window = || {
        let seconds = device_seconds(device, || match &mut recording {
            Some(recording) => device.replay(recording),
            None => work(),
        })?;
        Ok::<f64, crate::Error>(seconds / calls as f64)
    };
    window()?;
    let start = Instant::now();
    let mut seconds = Vec::with_capacity(windows.count);
    while windows.more(seconds.len(), start) {
        seconds.push(window()?);
    }
    Ok(Quantiles::of(&seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_their_inverse() {
        let values: Vec<f64> = (1..=11).rev().map(f64::from).collect();
        let spread = Quantiles::of(&values);
        assert_eq!(
            (spread.median, spread.p10, spread.p90, spread.windows),
            (6.0, 2.0, 10.0, 11)
        );
        let rate = spread.inverse(60.0);
        assert_eq!((rate.median, rate.p10, rate.p90), (10.0, 6.0, 30.0));
        assert_eq!(Quantiles::of(&[3.0]).p90, 3.0);
    }

    #[test]
    fn windows_end_by_count_or_time() {
        let windows = Windows {
            count: 5,
            seconds: 0.0,
        };
        let start = Instant::now();
        assert!(windows.more(2, start) && !windows.more(3, start));
        let windows = Windows {
            seconds: 1e9,
            ..windows
        };
        assert!(windows.more(4, start) && !windows.more(5, start));
        assert_eq!((Windows::calls(1.0), Windows::calls(0.0)), (1, 1000));
        assert_eq!(Windows::calls(3e-3), 2);
    }
}
