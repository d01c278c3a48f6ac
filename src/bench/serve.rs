//! Steps on request, for comparison with other programs in turn: one JSON request a line in, one JSON answer a line out.
//!
//! ```text
//! -> {"ready": true, "device": "cpu", "precision": "f32", "n": 32, "m": 32}
//! <- {"objective": "l2b", "steps": 5}            ce, l2rw or l2b
//! -> {"objective": "l2b", "steps": 5, "seconds": 8.1, "device_seconds": 8.1, "peak_bytes": 414904320}
//! <- {"quit": true}                              or the end of the input
//! ```
//!
//! Every request starts from the same state, so each does the same work. A request that is not understood, or whose steps
//! end in something that is not a number, is answered by `{"error": "..."}`.

use std::io::{BufRead, Write};

use serde::Deserialize;
use serde_json::json;

use super::workload::{OBJECTIVES, Workload};
use crate::device::Device;
use crate::step::Objective;
use crate::{Error, Result};

/// Most steps of one request: a larger number is a mistake.
const MOST_STEPS: usize = 1_000_000;

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    Steps { objective: String, steps: usize },
    Quit { quit: bool },
}

/// What a line asks for; None: the end.
fn parse(line: &str) -> Result<Option<(&'static str, Objective, usize)>, String> {
    let expected = r#"expected {"objective": "ce", "l2rw" or "l2b", "steps": N} or {"quit": true}"#;
    match serde_json::from_str(line) {
        Ok(Request::Quit { quit: true }) => Ok(None),
        Ok(Request::Steps { objective, steps }) => {
            let known = OBJECTIVES.into_iter().find(|(name, _)| *name == objective);
            let (name, objective) = known.ok_or(format!("{expected}, found objective {objective:?}"))?;
            if !(1..=MOST_STEPS).contains(&steps) {
                return Err(format!("steps: expected 1 to {MOST_STEPS}, found {steps}"));
            }
            Ok(Some((name, objective, steps)))
        }
        _ => Err(format!("{expected}, found {line:?}")),
    }
}

/// Answers requests until the end of `input`.
///
/// # Errors
/// `Io` of either side; those of the device, which end it.
pub fn serve<D: Device>(
    workload: &mut Workload<D>,
    precision: &str,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<()> {
    let mut say = |value: serde_json::Value| {
        let written = writeln!(output, "{value}").and_then(|()| output.flush());
        written.map_err(|e| Error::io("standard output", e))
    };
    let (n, m) = workload.sizes;
    let device = workload.engine.device.name();
    say(json!({"ready": true, "device": device, "precision": precision, "n": n, "m": m}))?;
    for line in input.split(b'\n') {
        let line = line.map_err(|e| Error::io("standard input", e))?;
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            continue;
        }
        match parse(line.trim()) {
            Err(error) => say(json!({"error": error}))?,
            Ok(None) => break,
            Ok(Some((name, objective, steps))) => {
                let taken = match workload.steps(objective, steps) {
                    Err(error @ Error::Diverged { .. }) => {
                        say(json!({"error": error.to_string()}))?;
                        continue;
                    }
                    taken => taken?,
                };
                say(json!({
                    "objective": name,
                    "steps": steps,
                    "seconds": taken.seconds,
                    "device_seconds": taken.device_seconds,
                    "peak_bytes": workload.engine.bytes(),
                }))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::preact;
    use crate::budget::MetaDepth;
    use crate::device::cpu::Cpu;

    #[test]
    fn one_answer_a_request() {
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let network = preact(4, vec![1], [8, 8], 1, 3);
        let mut workload = Workload::random(device, &network, (6, 3), MetaDepth::All).unwrap();
        let input = concat!(
            "{\"objective\": \"l2b\", \"steps\": 2}\n",
            "\n",
            "{\"objective\": \"l2c\", \"steps\": 2}\n",
            "{\"objective\": \"ce\", \"steps\": 0}\n",
            "{\"objective\": \"ce\", \"steps\": -1}\n",
            "{\"objective\": \"ce\", \"steps\": 1, \"more\": 1}\n",
            "{\"quit\": false}\n",
            "not json\n",
            "\u{fffd}\n",
            "{\"objective\": \"ce\", \"steps\": 1}\n",
            "{\"quit\": true}\n",
            "{\"objective\": \"l2rw\", \"steps\": 1}\n",
        );
        let mut output = Vec::new();
        serve(&mut workload, "f32", input.as_bytes(), &mut output).unwrap();
        let answers: Vec<serde_json::Value> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 10, "{answers:?}");
        assert_eq!(
            answers[0],
            json!({"ready": true, "device": "cpu", "precision": "f32", "n": 6, "m": 3})
        );
        for (i, objective, steps) in [(1, "l2b", 2), (9, "ce", 1)] {
            let answer = &answers[i];
            assert_eq!(
                (answer["objective"].as_str(), answer["steps"].as_u64()),
                (Some(objective), Some(steps))
            );
            assert!(answer["seconds"].as_f64().unwrap() > 0.0);
            assert!(answer["device_seconds"].as_f64().unwrap() > 0.0);
            assert_eq!(answer["peak_bytes"], workload.engine.bytes());
        }
        for (i, part) in [(2, "l2c"), (3, "found 0"), (4, "expected"), (7, "not json")] {
            let error = answers[i]["error"].as_str().unwrap();
            assert!(error.contains(part), "{error}");
        }
    }

    /// Nothing is timed of steps that a divergence has stopped, and the next request starts afresh.
    #[test]
    fn a_divergence_is_an_answer_and_does_not_stay() {
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let network = preact(4, vec![1], [8, 8], 1, 3);
        let mut workload = Workload::random(device, &network, (6, 3), MetaDepth::All).unwrap();
        let after = |workload: &mut Workload<Cpu<f32>>, lr| {
            workload.params.lr = lr;
            let input = "{\"objective\": \"l2b\", \"steps\": 3}";
            let mut output = Vec::new();
            serve(workload, "f32", input.as_bytes(), &mut output).unwrap();
            let theta = workload.engine.model.theta();
            let mut bytes = vec![0; theta.bytes];
            workload.engine.device.download(&mut bytes, theta).unwrap();
            (String::from_utf8(output).unwrap(), bytes)
        };
        let (answer, first) = after(&mut workload, 0.1);
        assert!(answer.contains("peak_bytes"), "{answer}");
        let (answer, _) = after(&mut workload, f64::NAN);
        assert!(
            answer.contains("error") && !answer.contains("seconds"),
            "{answer}"
        );
        let (answer, again) = after(&mut workload, 0.1);
        assert!(answer.contains("peak_bytes"), "{answer}");
        assert!(again == first);
    }

    /// Two requests do the same work: they end in the same bits.
    #[test]
    fn every_request_starts_from_the_same_state() {
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let network = preact(4, vec![1], [8, 8], 1, 3);
        let mut workload = Workload::random(device, &network, (6, 3), MetaDepth::All).unwrap();
        let mut outcome = |objective| {
            workload.steps(objective, 3).unwrap();
            workload.engine.outcome(objective).unwrap()
        };
        let first = outcome(Objective::L2b);
        outcome(Objective::CrossEntropy);
        assert_eq!(outcome(Objective::L2b), first);
    }
}
