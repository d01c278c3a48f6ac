//! A comparison as tables: Markdown and CSV.

use std::fmt::Write;

use super::{Comparison, Row, Spread};

impl Comparison {
    /// The tables, in Markdown.
    pub fn markdown(&self) -> String {
        let mut rows = vec![words(&[
            "noise",
            "wrong labels",
            "method",
            "last epoch",
            "best epoch",
            "n",
            "seconds",
        ])];
        rows.push(words(&["--:", "--:", "---", "--:", "--:", "--:", "--:"]));
        rows.extend(self.table.iter().map(|cell| {
            vec![
                nominal(cell.noise),
                or_dash(cell.noise_realised, |r| format!("{:.1} %", 100.0 * r.mean)),
                cell.variant.clone(),
                or_dash(cell.last, percent),
                or_dash(cell.best, percent),
                match (cell.last.map_or(0, |last| last.n), cell.failed) {
                    (n, 0) => n.to_string(),
                    (n, failed) => format!("{n}, {failed} failed"),
                },
                or_dash(cell.seconds, |s| plus_minus(s, 1.0, 1)),
            ]
        }));
        let mut text = table(&rows);
        if !self.differences.is_empty() {
            let mut rows = vec![words(&[
                "noise",
                "paired difference, last epoch",
                "points",
                "lowest",
                "ahead in",
            ])];
            rows.push(words(&["--:", "---", "--:", "--:", "--:"]));
            rows.extend(self.differences.iter().map(|d| {
                vec![
                    nominal(d.noise),
                    format!("{} − {}", d.variant, d.against),
                    percent(d.last),
                    format!("{:+.2}", 100.0 * d.last.min),
                    format!("{} of {}", d.ahead, d.last.n),
                ]
            }));
            text = format!("{text}\n{}", table(&rows));
        }
        if !self.failures.is_empty() {
            let mut rows = vec![words(&["noise", "method", "seed", "failure"])];
            rows.push(words(&["--:", "---", "--:", "---"]));
            rows.extend(self.failures.iter().map(|f| {
                vec![
                    nominal(f.noise),
                    f.variant.clone(),
                    f.seed.to_string(),
                    f.failure.clone(),
                ]
            }));
            text = format!("{text}\n{}", table(&rows));
        }
        if !self.costs.is_empty() {
            let mut rows = vec![words(&[
                "step",
                "ordinary steps by operations",
                "measured",
                "10 to 90 % of windows",
                "ms",
            ])];
            rows.push(words(&["---", "--:", "--:", "--:", "--:"]));
            rows.extend(self.costs.iter().map(|cost| {
                let step = &cost.step;
                vec![
                    cost.variant.clone(),
                    format!("{:.3}", step.operations),
                    format!("{:.3}", step.ratio),
                    format!("{:.3} to {:.3}", step.ratio_p10, step.ratio_p90),
                    format!("{:.2}", 1e3 * step.meta_seconds),
                ]
            }));
            text = format!("{text}\n{}", table(&rows));
        }
        let _ = writeln!(
            text,
            "\nAccuracy in % on the test split, mean ± standard deviation over the n seeds that ended. The best epoch is chosen on the \
             test split. Seconds of one run, {} side by side.",
            self.side_by_side
        );
        if !self.costs.is_empty() {
            let _ = writeln!(
                text,
                "A step is measured beside an ordinary one (cross-entropy) on the same images, in turn: medians. By \
                 operations: multiply-adds of convolutions and linear layers."
            );
        }
        if self.finished() < self.planned {
            let _ = writeln!(
                text,
                "\nNot complete: {} of {} runs.",
                self.finished(),
                self.planned
            );
        }
        text
    }

    /// One line a run, first those that ended.
    pub fn csv(&self) -> String {
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let mut text =
            "variant,noise,seed,noise_realised,last_accuracy,best_accuracy,best_epoch,seconds,weights_sha256,failure\n".to_owned();
        for Row {
            variant,
            noise,
            summary: s,
        } in &self.runs
        {
            let realised = cell(s.noise_realised);
            let _ = writeln!(
                text,
                "\"{variant}\",{},{},{realised},{},{},{},{:.3},{},",
                cell(*noise),
                s.seed,
                s.last_accuracy,
                s.best_accuracy,
                s.best_epoch,
                s.seconds,
                s.weights_sha256,
            );
        }
        for f in &self.failures {
            let (noise, failure) = (cell(f.noise), f.failure.replace('"', "\"\""));
            let _ = writeln!(text, "\"{}\",{noise},{},,,,,,,\"{failure}\"", f.variant, f.seed);
        }
        text
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn table(rows: &[Vec<String>]) -> String {
    rows.iter()
        .map(|cells| format!("| {} |\n", cells.join(" | ")))
        .collect()
}

/// A nominal noise rate; there is none to labels of a file.
fn nominal(rate: Option<f64>) -> String {
    or_dash(rate, |rate| format!("{:.0} %", 100.0 * rate))
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or("-".to_owned(), text)
}

fn percent(spread: Spread) -> String {
    plus_minus(spread, 100.0, 2)
}

fn plus_minus(spread: Spread, factor: f64, digits: usize) -> String {
    let mean = factor * spread.mean;
    match spread.std {
        Some(std) => format!("{mean:.digits$} ± {:.digits$}", factor * std),
        None => format!("{mean:.digits$}"),
    }
}
