//! `l2b predict`.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{PredictionArgs, print};
use crate::evaluate::argmax;
use crate::{Result, atomic};

/// Write class probabilities as CSV
#[derive(Args, Debug)]
pub struct PredictArgs {
    #[command(flatten)]
    prediction: PredictionArgs,
    /// File to write, which must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `l2b predict`: a line per image with its number in the split, the predicted label, all probabilities and the
/// label that the dataset gives it.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &PredictArgs, out: &mut dyn Write) -> Result<()> {
    if let Some(path) = &args.out {
        atomic::require_free(
            "--out",
            path,
            "predictions are never overwritten: choose another name",
        )?;
    }
    let predictions = args.prediction.predict()?;
    let classes = predictions.classes.len();
    let mut text = "id,label".to_owned();
    for class in 0..classes {
        let _ = write!(text, ",p{class}");
    }
    text += ",given\n";
    let given = predictions.set.split().labels();
    for (&id, p) in predictions
        .set
        .ids()
        .iter()
        .zip(predictions.probabilities.chunks_exact(classes))
    {
        let _ = write!(text, "{id},{}", argmax(p));
        for p in p {
            let _ = write!(text, ",{p:.9}");
        }
        let _ = writeln!(text, ",{}", given[id as usize]);
    }
    match &args.out {
        Some(path) => atomic::write_file(path, text.as_bytes()),
        None => print(out, &text),
    }
}
