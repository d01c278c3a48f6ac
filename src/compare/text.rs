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
                format!("{:.0} %", 100.0 * cell.noise),
                cell.noise_realised
                    .map_or("-".into(), |r| format!("{:.1} %", 100.0 * r.mean)),
                cell.variant.clone(),
                percent(&cell.last),
                percent(&cell.best),
                cell.last.n.to_string(),
                plus_minus(&cell.seconds, 1.0, 1),
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
                    format!("{:.0} %", 100.0 * d.noise),
                    format!("{} − {}", d.variant, d.against),
                    percent(&d.last),
                    format!("{:+.2}", 100.0 * d.last.min),
                    format!("{} of {}", d.ahead, d.last.n),
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
            "\nAccuracy in % on the test split, mean ± standard deviation over n seeds. The best epoch is chosen on the \
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
        text
    }

    /// One line a run.
    pub fn csv(&self) -> String {
        let mut text =
            "variant,noise,seed,noise_realised,last_accuracy,best_accuracy,best_epoch,seconds,weights_sha256\n".to_owned();
        for Row {
            variant,
            noise,
            summary: s,
        } in &self.runs
        {
            let realised = s.noise_realised.map_or(String::new(), |r| r.to_string());
            let _ = writeln!(
                text,
                "\"{variant}\",{noise},{},{realised},{},{},{},{:.3},{}",
                s.seed, s.last_accuracy, s.best_accuracy, s.best_epoch, s.seconds, s.weights_sha256,
            );
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

fn percent(spread: &Spread) -> String {
    plus_minus(spread, 100.0, 2)
}

fn plus_minus(spread: &Spread, factor: f64, digits: usize) -> String {
    let mean = factor * spread.mean;
    match spread.std {
        Some(std) => format!("{mean:.digits$} ± {:.digits$}", factor * std),
        None => format!("{mean:.digits$}"),
    }
}
