//! `l2b eval`.

use std::io::Write;

use clap::Args;

use super::{PredictionArgs, print};
use crate::evaluate::Scores;
use crate::train::labels;
use crate::{Error, Result};

/// Score trained weights on a dataset
#[derive(Args, Debug)]
pub struct EvalArgs {
    #[command(flatten)]
    prediction: PredictionArgs,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// Runs `l2b eval`, printing to `out`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &EvalArgs, out: &mut dyn Write) -> Result<()> {
    let predictions = args.prediction.predict()?;
    let classes = &predictions.classes;
    let scores = Scores::new(
        &predictions.probabilities,
        &labels(&predictions.set),
        classes.len(),
    );
    if args.json {
        let text = serde_json::to_string_pretty(&scores).map_err(|e| Error::Internal(e.to_string()))?;
        return print(out, &format!("{text}\n"));
    }
    print(out, &tables(&scores, classes))
}

fn tables(scores: &Scores, classes: &[String]) -> String {
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.2} %", 100.0 * s));
    let mut text = format!(
        "images             {}\naccuracy           {}\nbalanced accuracy  {}\nAUC (mean)         {}\ncross-entropy      {:.4}\n\n",
        scores.samples,
        percent(Some(scores.accuracy)),
        percent(Some(scores.balanced_accuracy)),
        scores.auc.map_or("-".to_owned(), |a| format!("{a:.4}")),
        scores.loss,
    );
    let width = classes
        .iter()
        .map(|c| c.chars().count())
        .max()
        .unwrap_or(0)
        .max("class".len());
    let cell = scores
        .confusion
        .iter()
        .flatten()
        .map(|n| n.to_string().len())
        .max()
        .unwrap_or(1)
        .max(3);
    text += &format!(
        "{:<width$}  {:>9}  confusion: rows true, columns predicted\n",
        "class", "accuracy"
    );
    for ((class, share), row) in classes.iter().zip(&scores.per_class).zip(&scores.confusion) {
        let counts: Vec<String> = row.iter().map(|n| format!("{n:>cell$}")).collect();
        text += &format!("{class:<width$}  {:>9}  {}\n", percent(*share), counts.join(" "));
    }
    text
}
