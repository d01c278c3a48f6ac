use clap::{Parser, Subcommand};

/// Training image networks on wrongly labelled data
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Data(l2b::commands::data::DataArgs),
}

fn main() -> std::process::ExitCode {
    let Command::Data(args) = Cli::parse().command;
    match l2b::commands::data::run(&args, &mut std::io::stdout().lock()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code().into()
        }
    }
}
