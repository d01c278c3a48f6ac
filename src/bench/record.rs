//! The JSON record of a run of `l2b bench`. Times are seconds; a part that was not measured is absent or empty.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::case::Operation;
use super::machine::{Clocks, Machine};
use super::measure::Quantiles;
use crate::budget::MetaDepth;
use crate::device::choice::Precision;
use crate::phase::Phase;
use crate::{Error, Result, atomic};

/// Version of the format; another one is refused.
pub const SCHEMA: u32 = 2;

/// Everything that one run found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub schema: u32,
    /// Version of l2b.
    pub l2b: String,
    /// Git commit of the binary; "unknown" where it was not built in a checkout.
    pub commit: String,
    /// Whether files differed from that commit.
    pub dirty: Option<bool>,
    /// UTC, RFC 3339.
    pub date: String,
    /// Whether all parts that were asked for are there: a run that is interrupted leaves what it has.
    pub complete: bool,
    pub machine: Machine,
    pub settings: Settings,
    /// Seen after whole steps; None where the driver does not tell.
    pub clocks: Option<Clocks>,
    pub ceilings: CeilingRow,
    pub operations: Vec<OperationRow>,
    pub phases: Vec<PhaseRow>,
    pub steps: Vec<StepRow>,
    pub loader: Option<LoaderRow>,
    pub memory: Vec<MemoryRow>,
}

/// What was measured. Two records compare where these agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub precision: Precision,
    pub width: usize,
    pub blocks: Vec<usize>,
    /// Height, width, channels.
    pub image: [usize; 3],
    pub classes: usize,
    /// n
    pub batch: usize,
    /// m
    pub meta_batch: usize,
    pub meta_depth: MetaDepth,
    /// Dataset of the loader.
    pub data: String,
    /// State of the caches when a window starts: "warm".
    pub caches: String,
}

/// The denominators, measured in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CeilingRow {
    /// Floating-point operations per second of multiply-adds in the run's precision.
    pub matrix: Quantiles,
    /// The instruction that did them.
    pub instruction: String,
    /// Bytes read and written per second by a copy.
    pub copy: Quantiles,
    /// Bytes of that copy.
    pub copy_bytes: usize,
}

/// One operation alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationRow {
    pub operation: Operation,
    /// As `--shape` and `--form` take them.
    pub shape: String,
    pub form: String,
    /// Calls in one step.
    pub calls_ce: usize,
    pub calls_l2b: usize,
    pub seconds: Quantiles,
    pub flops: f64,
    /// Where every operand goes through memory once.
    pub bytes: f64,
    /// The longer of both at the ceilings.
    pub bound_seconds: f64,
    /// Whether the multiply-adds are the longer.
    pub bound_by_matrix: bool,
}

/// A phase of an L2B step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRow {
    pub phase: Phase,
    pub seconds: Quantiles,
    /// Sum over its operations.
    pub bound_seconds: f64,
    pub e_floor_seconds: f64,
}

/// Whole steps of one objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRow {
    pub objective: String,
    /// By the device's clock.
    pub seconds: Quantiles,
    pub wall_seconds: Quantiles,
    /// To the cross-entropy step of the same round.
    pub ratio_to_ce: Quantiles,
    pub images_per_second: f64,
    pub e_floor_seconds: f64,
}

/// Train and meta batches from mapped shards, as training takes them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderRow {
    pub images_per_second: Quantiles,
    /// Bytes of one image.
    pub image_bytes: usize,
}

/// Device memory of one objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRow {
    pub objective: String,
    /// By the plan; nothing else is allocated in a step.
    pub planned_bytes: usize,
    /// What the engine took by the count of a GPU's driver.
    pub seen_bytes: Option<usize>,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// `Io`; `Data` for a file that is no record, or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let refuse = |e: serde_json::Error| {
            let hint = "it is what `l2b bench --out FILE` writes";
            Error::data(path, "record of l2b bench", "its JSON", e.to_string(), hint)
        };
        let Version { schema } = serde_json::from_slice(&text).map_err(refuse)?;
        if schema != SCHEMA {
            let hint = "compare with a record of the same version of l2b";
            let (expected, found) = (SCHEMA.to_string(), schema.to_string());
            return Err(Error::data(path, "schema", expected, found, hint));
        }
        serde_json::from_slice(&text).map_err(refuse)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        atomic::write_file(path, (text + "\n").as_bytes())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn spread(median: f64) -> Quantiles {
        Quantiles {
            median,
            p10: 0.9 * median,
            p90: 1.2 * median,
            windows: 30,
        }
    }

    /// A record with a row of everything.
    pub fn example() -> Record {
        Record {
            schema: SCHEMA,
            l2b: "0.1.0".into(),
            commit: "unknown".into(),
            dirty: None,
            date: "2026-11-24T00:00:00Z".into(),
            complete: true,
            machine: Machine {
                name: "cpu".into(),
                model: "a processor".into(),
                threads: Some(2),
                driver: None,
                capability: None,
                memory_bytes: None,
            },
            settings: Settings {
                precision: Precision::F32,
                width: 16,
                blocks: vec![1, 1],
                image: [8, 8, 1],
                classes: 10,
                batch: 32,
                meta_batch: 16,
                meta_depth: MetaDepth::All,
                data: "digits".into(),
                caches: "warm".into(),
            },
            clocks: Some(Clocks {
                sm_mhz: 1980,
                memory_mhz: 2619,
            }),
            ceilings: CeilingRow {
                matrix: spread(1e11),
                instruction: "AVX2 multiply-add".into(),
                copy: spread(1e10),
                copy_bytes: 1 << 20,
            },
            operations: vec![OperationRow {
                operation: Operation::ConvForward,
                shape: "32,8,8,16,16,3,1,1".into(),
                form: "pending+sums".into(),
                calls_ce: 1,
                calls_l2b: 2,
                seconds: spread(1e-3),
                flops: 1e7,
                bytes: 1e5,
                bound_seconds: 1e-4,
                bound_by_matrix: true,
            }],
            phases: vec![PhaseRow {
                phase: Phase::MetaForward,
                seconds: spread(2e-3),
                bound_seconds: 1e-3,
                e_floor_seconds: 1.5e-3,
            }],
            steps: vec![StepRow {
                objective: "ce".into(),
                seconds: spread(4e-3),
                wall_seconds: spread(4.1e-3),
                ratio_to_ce: spread(1.0),
                images_per_second: 8000.0,
                e_floor_seconds: 2e-3,
            }],
            loader: Some(LoaderRow {
                images_per_second: spread(1e5),
                image_bytes: 64,
            }),
            memory: vec![MemoryRow {
                objective: "l2b".into(),
                planned_bytes: 1 << 20,
                seen_bytes: None,
            }],
        }
    }

    #[test]
    fn a_record_round_trips_and_its_keys_are_these() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        let record = example();
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "ceilings",
                "clocks",
                "commit",
                "complete",
                "date",
                "dirty",
                "l2b",
                "loader",
                "machine",
                "memory",
                "operations",
                "phases",
                "schema",
                "settings",
                "steps"
            ]
        );
        assert_eq!(json["operations"][0]["operation"], "conv_forward");
        assert_eq!(json["phases"][0]["phase"], "meta_forward");
        assert_eq!(json["settings"]["precision"], "f32");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        let newer = serde_json::to_string(&example()).unwrap();
        let newer = newer.replace("\"schema\":2", "\"schema\":3");
        for (text, part) in [
            ("", "EOF"),
            ("[1, 2]", "record of l2b bench"),
            ("{\"schema\": 2}", "missing field"),
            (&newer, "schema: expected 2, found 3"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            let error = error.to_string();
            assert!(error.contains(part) && error.contains("record.json"), "{error}");
        }
        let missing = Record::read(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.exit_code(), 1);
    }
}
