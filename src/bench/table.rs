//! A record as text.

use std::fmt::Write as _;

use indicatif::BinaryBytes;

use super::measure::Quantiles;
use super::record::{OperationRow, Record};
use super::run::Part;

/// Who measured what on what.
pub fn head(record: &Record) -> String {
    let (m, s) = (&record.machine, &record.settings);
    let mut text = format!("l2b {}, commit {}", record.l2b, record.commit);
    text += match record.dirty {
        Some(true) => " with changes\n",
        _ => "\n",
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    let mut device = format!("{}: {}", m.name, m.model);
    if let Some(threads) = m.threads {
        device += &format!(", {threads} threads");
    }
    for (what, value) in [("compute capability", &m.capability), ("CUDA", &m.driver)] {
        if let Some(value) = value {
            device += &format!(", {what} {value}");
        }
    }
    line("device", device);
    let [h, w, c] = s.image;
    line(
        "network",
        format!(
            "pre-activation residual network, width {}, blocks {:?}, {h}x{w}x{c}, {} classes, {}",
            s.width,
            s.blocks,
            s.classes,
            s.precision.name()
        ),
    );
    line(
        "batches",
        format!(
            "n = {}, m = {}, meta depth {}",
            s.batch, s.meta_batch, s.meta_depth
        ),
    );
    text
}

/// The denominators of everything below.
pub fn ceilings(record: &Record) -> String {
    let row = &record.ceilings;
    let text = format!(
        "ceilings   {} of multiply-adds by {} ({}), {} copied ({}, {} each way)\n\
         Below: median, 10th and 90th percentile of the windows; caches warm; of limit: the time at the ceiling that binds, \
         as a share.\n",
        rate(row.matrix.median, Unit::Flops),
        row.instruction,
        windows(row.matrix),
        rate(row.copy.median, Unit::Bytes),
        windows(row.copy),
        BinaryBytes(row.copy_bytes as u64),
    );
    if row.matrix.is_quiet() && row.copy.is_quiet() {
        return text;
    }
    text + "The ceilings vary by more than a fifth: something else uses this machine, and shares mean little.\n"
}

/// One part.
pub fn part(record: &Record, part: Part) -> String {
    match part {
        Part::Operations => operations(&record.operations),
        Part::Phases => phases(record),
        Part::Steps => steps(record),
        Part::Memory => memory(record),
        Part::Loader => loader(record),
    }
}

/// Operations, one a line.
pub fn operations(rows: &[OperationRow]) -> String {
    let mut text = format!(
        "\n{:>10} {:>9} {:>9} {:>14} {:>9}  {:>7}  operation, shape, form\n",
        "µs", "p10", "p90", "rate", "of limit", "ce/l2b"
    );
    for row in rows {
        let s = row.seconds;
        let (amount, unit, limit) = if row.bound_by_matrix {
            (row.flops, Unit::Flops, "m")
        } else {
            (row.bytes, Unit::Bytes, "c")
        };
        let calls = format!("{}/{}", row.calls_ce, row.calls_l2b);
        let _ = writeln!(
            text,
            "{:>10.1} {:>9.1} {:>9.1} {:>14} {:>7} {limit}  {calls:>7}  {} {} {}",
            1e6 * s.median,
            1e6 * s.p10,
            1e6 * s.p90,
            rate(amount / s.median, unit),
            percent(row.bound_seconds / s.median),
            row.operation.name(),
            row.shape,
            row.form
        );
    }
    text + "limit m: multiply-adds, c: copy; ce/l2b: calls in a step of each\n"
}

fn phases(record: &Record) -> String {
    let mut text = format!(
        "\n{:>10} {:>9} {:>9} {:>9} {:>11}  phase of an L2B step\n",
        "ms", "p10", "p90", "of limit", "of E floor"
    );
    for row in &record.phases {
        let _ = writeln!(
            text,
            "{} {:>9} {:>11}  {}",
            milliseconds(row.seconds),
            percent(row.bound_seconds / row.seconds.median),
            percent(row.e_floor_seconds / row.seconds.median),
            row.phase.name()
        );
    }
    text
}

fn steps(record: &Record) -> String {
    let mut text = format!(
        "\n{:>10} {:>9} {:>9} {:>10} {:>8} {:>10} {:>11}  step\n",
        "ms", "p10", "p90", "wall ms", "/ ce", "images/s", "of E floor"
    );
    for row in &record.steps {
        let _ = writeln!(
            text,
            "{} {:>10.3} {:>8.3} {:>10.0} {:>11}  {}",
            milliseconds(row.seconds),
            1e3 * row.wall_seconds.median,
            row.ratio_to_ce.median,
            row.images_per_second,
            percent(row.e_floor_seconds / row.seconds.median),
            row.objective
        );
    }
    let clocks = record.clocks.map_or("unknown".into(), |c| {
        format!("multiprocessors {} MHz, memory {} MHz", c.sm_mhz, c.memory_mhz)
    });
    text + &format!("clocks afterwards: {clocks}\n")
}

fn memory(record: &Record) -> String {
    let mut text = String::from("\n    planned       seen  device memory\n");
    for row in &record.memory {
        let bytes = |bytes: usize| BinaryBytes(bytes as u64).to_string();
        let seen = row.seen_bytes.map_or("-".into(), bytes);
        let _ = writeln!(
            text,
            "{:>11} {seen:>10}  {}",
            bytes(row.planned_bytes),
            row.objective
        );
    }
    text
}

fn loader(record: &Record) -> String {
    record.loader.map_or(String::new(), |row| {
        format!(
            "\nloader     {:.0} images/s of {} from mapped shards of {} ({})\n",
            row.images_per_second.median,
            BinaryBytes(row.image_bytes as u64),
            record.settings.data,
            windows(row.images_per_second),
        )
    })
}

#[derive(Clone, Copy)]
enum Unit {
    Flops,
    Bytes,
}

/// A rate with its unit.
fn rate(per_second: f64, unit: Unit) -> String {
    let (name, scale, prefix) = match unit {
        _ if per_second >= 1e12 => (unit, 1e12, "T"),
        _ => (unit, 1e9, "G"),
    };
    let name = match name {
        Unit::Flops => "FLOP/s",
        Unit::Bytes => "B/s",
    };
    format!("{:.1} {prefix}{name}", per_second / scale)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn windows(spread: Quantiles) -> String {
    let around = |value: f64| 100.0 * (value / spread.median - 1.0);
    format!(
        "{:+.0} to {:+.0} % over {} windows",
        around(spread.p10),
        around(spread.p90),
        spread.windows
    )
}

fn milliseconds(s: Quantiles) -> String {
    format!(
        "{:>10.3} {:>9.3} {:>9.3}",
        1e3 * s.median,
        1e3 * s.p10,
        1e3 * s.p90
    )
}
