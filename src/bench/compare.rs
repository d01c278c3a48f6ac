//! Two records side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::measure::Quantiles;
use super::record::Record;
use crate::{Error, Result};

/// A figure that two records share.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    /// New median over old.
    pub ratio: f64,
    pub verdict: Verdict,
}

/// Whether two medians differ by more than the windows of each run do among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The middle 80 % of both runs overlap.
    Same,
    Better,
    Worse,
}

/// A figure of one record.
struct Figure {
    spread: Quantiles,
    /// Whether less is better.
    time: bool,
}

fn figures(record: &Record) -> Vec<(String, Figure)> {
    let mut all = Vec::new();
    let mut put = |name: String, spread: Quantiles, time: bool| all.push((name, Figure { spread, time }));
    put("ceiling: multiply-adds".into(), record.ceilings.matrix, false);
    put("ceiling: copy".into(), record.ceilings.copy, false);
    for row in &record.operations {
        let name = format!("{} {} {}", row.operation.name(), row.shape, row.form);
        put(name, row.seconds, true);
    }
    for row in &record.phases {
        put(format!("phase: {}", row.phase.name()), row.seconds, true);
    }
    for row in &record.steps {
        put(format!("step: {}", row.objective), row.seconds, true);
    }
    if let Some(row) = &record.loader {
        put("loader".into(), row.images_per_second, false);
    }
    all
}

/// Every figure that both records hold, in the new one's order.
///
/// # Errors
/// `Config` naming the device or setting in which the records differ; `old_path` is the old one's file.
pub fn compare(old: &Record, new: &Record, old_path: &Path) -> Result<Vec<Row>> {
    refuse_others(old, new, old_path)?;
    let old: BTreeMap<String, Figure> = figures(old).into_iter().collect();
    Ok(figures(new)
        .into_iter()
        .filter_map(|(name, figure)| {
            let before = old.get(&name)?;
            let (now, then) = (figure.spread, before.spread);
            let less = now.p90 < then.p10;
            let more = now.p10 > then.p90;
            let verdict = match (less, more) {
                (false, false) => Verdict::Same,
                _ if less == figure.time => Verdict::Better,
                _ => Verdict::Worse,
            };
            Some(Row {
                name,
                ratio: now.median / then.median,
                verdict,
            })
        })
        .collect())
}

/// Fails unless both were measured on the same kind of device with the same settings.
pub fn refuse_others(old: &Record, new: &Record, old_path: &Path) -> Result<()> {
    let sides = [old, new].map(|r| {
        let (m, s) = (&r.machine, &r.settings);
        [
            ("device", m.model.clone()),
            ("name of the device", m.name.clone()),
            ("threads", format!("{:?}", m.threads)),
            ("precision", s.precision.name().to_owned()),
            (
                "network",
                format!(
                    "width {}, blocks {:?}, images {:?}, {} classes",
                    s.width, s.blocks, s.image, s.classes
                ),
            ),
            (
                "batch and meta batch",
                format!("{} and {}", s.batch, s.meta_batch),
            ),
            ("meta depth", s.meta_depth.to_string()),
            ("data of the loader", s.data.clone()),
            ("caches", s.caches.clone()),
        ]
    });
    let [old, new] = sides;
    for ((what, old), (_, new)) in old.into_iter().zip(new) {
        if old != new {
            let what = format!("{what} of --compare {}", old_path.display());
            let hint = "times compare only on one kind of device with the same settings";
            return Err(Error::config(what, new, old, hint));
        }
    }
    Ok(())
}

/// As text: a line per figure.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("new / old\n");
    for row in rows {
        let mark = match row.verdict {
            Verdict::Same => "",
            Verdict::Better => "  better",
            Verdict::Worse => "  WORSE",
        };
        let _ = writeln!(text, "{:>9.3}  {}{mark}", row.ratio, row.name);
    }
    let count = |verdict| rows.iter().filter(|r| r.verdict == verdict).count();
    let _ = writeln!(
        text,
        "{} figures, {} better and {} worse by more than the spread (10th to 90th percentile apart)",
        rows.len(),
        count(Verdict::Better),
        count(Verdict::Worse)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{example, spread};
    use super::*;

    #[test]
    fn a_record_equals_itself() {
        let rows = compare(&example(), &example(), Path::new("old")).unwrap();
        assert_eq!(rows.len(), 6);
        assert!(
            rows.iter().all(|r| r.ratio == 1.0 && r.verdict == Verdict::Same),
            "{rows:?}"
        );
    }

    #[test]
    fn less_time_and_more_rate_are_better_beyond_the_spread_alone() {
        let verdict = |change: &dyn Fn(&mut Record), name: &str| {
            let mut new = example();
            change(&mut new);
            let rows = compare(&example(), &new, Path::new("old")).unwrap();
            let row = rows.into_iter().find(|r| r.name.contains(name)).unwrap();
            (row.verdict, (row.ratio * 100.0).round())
        };
        assert_eq!(
            verdict(&|r| r.steps[0].seconds = spread(2e-3), "step: ce"),
            (Verdict::Better, 50.0)
        );
        assert_eq!(
            verdict(&|r| r.steps[0].seconds = spread(8e-3), "step: ce"),
            (Verdict::Worse, 200.0)
        );
        // 10 % more, while the windows differ by 30 %.
        assert_eq!(
            verdict(&|r| r.steps[0].seconds = spread(4.4e-3), "step: ce"),
            (Verdict::Same, 110.0)
        );
        assert_eq!(
            verdict(&|r| r.ceilings.copy = spread(2e10), "copy"),
            (Verdict::Better, 200.0)
        );
        assert_eq!(
            verdict(&|r| r.operations[0].seconds = spread(2e-3), "conv_forward"),
            (Verdict::Worse, 200.0)
        );
    }

    #[test]
    fn figures_of_one_record_alone_are_left_out() {
        let mut new = example();
        new.operations[0].shape = "32,8,8,16,32,3,1,1".into();
        new.loader = None;
        let rows = compare(&example(), &new, Path::new("old")).unwrap();
        assert_eq!(rows.len(), 4);
        assert!(table(&rows).contains("4 figures, 0 better and 0 worse"));
    }

    #[test]
    fn another_device_or_setting_is_refused_by_name() {
        type Change = fn(&mut Record);
        let changes: [(Change, &str); 4] = [
            (
                |r| r.machine.model = "another".into(),
                "device of --compare old.json",
            ),
            (|r| r.machine.threads = Some(1), "threads"),
            (|r| r.settings.batch = 64, "batch"),
            (
                |r| r.settings.precision = crate::device::choice::Precision::F64,
                "precision",
            ),
        ];
        for (change, part) in changes {
            let mut old = example();
            change(&mut old);
            let error = compare(&old, &example(), Path::new("old.json")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
