//! The program `tpo` as a library: every command, its arguments and its help, for any heads. A program
//! with your own heads is this line with your set of them:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     tpo::cli::main::<tpo::BuiltInHeads>()
//! }
//! ```

mod average;
mod chat;
mod data;
mod evaluate;
mod features;
mod generate;
mod inspect;
mod pretrain;
mod shared;
mod synthetic;
mod track;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tpo_core::head::HeadSet;

/// Video language models that answer with boxes, time spans and masks: ask them, train them,
/// measure them.
///
/// Without a model of your own everything runs on the mini model that comes with the program. It
/// knows coloured shapes of a synthetic world only: circle square triangle star cross diamond; red
/// green blue yellow purple orange cyan white; blink grow spin change colour stop leave and return
/// collide; at the start, at the end.
#[derive(Parser)]
#[command(name = "tpo", version, after_help = HELP)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
First steps:
  tpo synthetic out/world                                       draw clips of the mini model's world
  tpo chat --video assets/bouncing_shapes.mp4 --ask 'Where is the red circle at the start?'
  tpo train recipes/nano/stages.toml --export models/mine       a minute on a laptop
  tpo chat --model models/mine --video assets/bouncing_shapes.mp4 --ask 'Where is the red circle?'
  tpo help train                                                everything about one command

From a checkout, `cargo run --release --example check_parity -- tests/fixtures` holds the library against
what the reference computes, and says which fixtures pass.

Exit code: 0 when all is well; 1 when the command ran and found something wrong (bad rows, a damaged
checkpoint, scores unlike --expect) or was stopped; 2 when it could not do what was asked.";

#[derive(Subcommand)]
enum Command {
    Chat(Box<chat::Args>),
    Track(Box<track::Args>),
    Train(Box<train::Args>),
    Evaluate(Box<evaluate::Args>),
    Data(data::Args),
    Features(features::Args),
    Pretrain(pretrain::Args),
    Average(average::Args),
    Inspect(inspect::Args),
    Generate(generate::Args),
    Synthetic(synthetic::Args),
}

/// Runs the command that the arguments of the process name, with errors on standard error.
///
/// The exit code is 0 when all is well, 1 when the command ran and found something wrong or was
/// stopped, 2 when it could not do what was asked.
pub fn main<H: HeadSet>() -> ExitCode {
    let done = match Program::parse().command {
        Command::Chat(args) => chat::run::<H>(*args),
        Command::Track(args) => track::run::<H>(*args),
        Command::Train(args) => train::run::<H>(*args),
        Command::Evaluate(args) => evaluate::run::<H>(*args),
        Command::Data(args) => data::run(args),
        Command::Features(args) => features::run(args),
        Command::Pretrain(args) => pretrain::run(args),
        Command::Average(args) => average::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Synthetic(args) => synthetic::run(args),
    };
    match done {
        Ok(shared::End::Fine) => ExitCode::SUCCESS,
        Ok(shared::End::Wrong) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_teaches() {
        let mut program = Program::command();
        program.build();
        program.clone().debug_assert();
        for command in program.get_subcommands_mut() {
            let name = command.get_name().to_string();
            if name == "help" {
                continue;
            }
            assert!(command.get_about().is_some(), "{name} says nothing");
            let help = command.render_long_help().to_string();
            assert!(
                help.contains(&format!("tpo {name} ")),
                "{name} has no example"
            );
        }
    }
}
