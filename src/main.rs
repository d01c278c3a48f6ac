//! The command line: parses, calls the library, prints errors. Exit codes: 0 done, 1 I/O or internal, 2 usage or
//! configuration, 3 data, 4 device, 5 diverged.

use std::io::Write;
use std::panic::{PanicHookInfo, catch_unwind};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use l2b::Result;
use l2b::commands::{bench, compare, data, devices, eval, meta_step, numerics, predict, train};

/// Training image networks on wrongly labelled data
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<train::TrainArgs>),
    Eval(eval::EvalArgs),
    Predict(predict::PredictArgs),
    MetaStep(meta_step::MetaStepArgs),
    Compare(Box<compare::CompareArgs>),
    Numerics(Box<numerics::NumericsArgs>),
    Data(data::DataArgs),
    Bench(Box<bench::BenchArgs>),
    /// List what can compute
    Devices,
}

fn run(command: &Command, out: &mut dyn Write) -> Result<()> {
    match command {
        Command::Train(args) => train::run(args, out),
        Command::Eval(args) => eval::run(args, out),
        Command::Predict(args) => predict::run(args, out),
        Command::MetaStep(args) => meta_step::run(args),
        Command::Compare(args) => compare::run(args, out),
        Command::Numerics(args) => numerics::run(args, out),
        Command::Data(args) => data::run(args, out),
        Command::Bench(args) => bench::run(args, out),
        Command::Devices => devices::run(out),
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let done = match Cli::try_parse() {
        Ok(cli) => catch_unwind(|| run(&cli.command, &mut std::io::stdout())),
        Err(error) if error.kind() == ErrorKind::DisplayVersion => {
            catch_unwind(|| devices::run(&mut std::io::stdout()))
        }
        Err(error) => error.exit(),
    };
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            report(&error);
            error.exit_code().into()
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// The error and what caused it.
fn report(error: &l2b::Error) {
    let mut text = format!("error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Most messages already quote their cause.
        if !text.contains(&inner_text) {
            text += &format!("\ncaused by: {inner_text}");
        }
        cause = inner.source();
    }
    eprintln!("{text}");
}

/// A panic is a fault of this program: one line, no backtrace.
fn report_panic(info: &PanicHookInfo) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info
        .location()
        .map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
    eprintln!(
        "error: internal error: {message}{place}\nhint: this is a fault of l2b itself; please report it"
    );
}
