//! What the comparison says in Markdown.

use super::{Agreement, QUANTITIES, Report};
use crate::device::choice::Precision;

impl Report {
    /// A table in Markdown: a line for each precision and quantity, figures for each state side by side.
    pub fn markdown(&self) -> String {
        let mut epochs: Vec<u32> = self.flips.iter().map(|row| row.epoch).collect();
        epochs.dedup();
        let mut precisions: Vec<Precision> = Vec::new();
        for row in &self.flips {
            if !precisions.contains(&row.precision) {
                precisions.push(row.precision);
            }
        }
        let mut text = "| precision | quantity |".to_owned();
        for epoch in &epochs {
            text += &format!(" after epoch {epoch}: cosine | sign % | relative error |");
        }
        text += "\n| --- | --- |";
        text += &" --: | --: | --: |".repeat(epochs.len());
        text += "\n";
        for &precision in &precisions {
            for quantity in QUANTITIES {
                text += &format!("| {} | {quantity} |", precision.name());
                let rows = self.rows.iter();
                for row in rows.filter(|row| row.precision == precision && row.quantity == quantity) {
                    let Agreement {
                        cosine,
                        sign,
                        relative_error,
                    } = row.agreement;
                    text += &format!(" {cosine:.7} | {:.2} | {relative_error:.1e} |", 100.0 * sign);
                }
                text += "\n";
            }
            text += &format!("| {} | pseudo-labels flipped |", precision.name());
            for row in self.flips.iter().filter(|row| row.precision == precision) {
                text += &format!(" {} of {} | | |", row.flips, row.of);
            }
            text += "\n";
        }
        text
    }
}
