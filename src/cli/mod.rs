//! The program `tpo` as a library: every command, its arguments and its help, for any heads. A program
//! with your own heads is this line with your set of them:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     tpo::cli::main::<tpo::BuiltInHeads>()
//! }
//! ```

mod assemble;
mod average;
mod chat;
mod convert;
mod data;
mod doctor;
mod evaluate;
mod features;
mod generate;
mod inspect;
mod pretrain;
mod shared;
mod synthetic;
mod track;
mod train;
mod warnings;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tpo_core::head::HeadSet;
use tpo_core::threads::{in_pool, set_threads};

use shared::{End, Outcome};

/// Video language models that answer with boxes, time spans and masks: ask them, train them,
/// measure them.
///
/// Without a model of your own everything runs on the mini model that comes with the program; a
/// program with heads of its own needs a model that was trained with them. The mini knows coloured
/// shapes of a synthetic world only: circles, squares, triangles, stars, crosses and diamonds, in red,
/// green, blue, yellow, purple, orange, cyan and white, which blink, grow, spin, change colour, stop,
/// leave and return, or collide. It can be asked where a shape is at the start and at the end.
#[derive(Parser)]
#[command(name = "tpo", version, after_help = HELP)]
struct Program {
    /// Threads that compute on the CPU [default: TPO_THREADS, else one for each physical core]
    #[arg(long, value_name = "N", global = true)]
    threads: Option<NonZeroUsize>,
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
First steps:
  tpo synthetic out/world held_out 1                            a clip of the mini model's world
  tpo chat --video out/world/held_out-000000.gif --ask 'Where is the orange star at the start?'
  tpo train recipes/nano/stages.toml --export models/mine       a minute on a laptop
  tpo chat --model models/mine --video out/world/held_out-000000.gif --ask 'Where is the orange star?'
  tpo help train                                                everything about one command

The recipe nano shows that all of it runs; in a minute its model learns nothing, and its answer says so.

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
    Assemble(assemble::Args),
    Average(average::Args),
    #[command(visible_alias = "export")]
    Convert(convert::Args),
    Inspect(inspect::Args),
    Generate(generate::Args),
    Synthetic(synthetic::Args),
    Doctor(doctor::Args),
}

/// Runs the command that the arguments of the process name, with errors and warnings on standard error.
/// A program that wants the warnings of the libraries elsewhere sets its own `tracing` subscriber first.
///
/// The exit code is 0 when all is well, 1 when the command ran and found something wrong or was
/// stopped, 2 when it could not do what was asked.
pub fn main<H: HeadSet>() -> ExitCode {
    let Program { threads, command } = Program::parse();
    warnings::Warnings::listen();
    let set = threads.map_or(Ok(()), set_threads);
    let failed = |error: String| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    };
    match set {
        Ok(()) => in_pool(|| match run::<H>(command) {
            Ok(End::Fine) => ExitCode::SUCCESS,
            Ok(End::Wrong) => ExitCode::from(1),
            Err(error) => failed(error.to_string()),
        }),
        Err(error) => failed(error.to_string()),
    }
}

fn run<H: HeadSet>(command: Command) -> Outcome {
    match command {
        Command::Chat(args) => chat::run::<H>(*args),
        Command::Track(args) => track::run::<H>(*args),
        Command::Train(args) => train::run::<H>(*args),
        Command::Evaluate(args) => evaluate::run::<H>(*args),
        Command::Data(args) => data::run::<H>(args),
        Command::Features(args) => features::run(args),
        Command::Pretrain(args) => pretrain::run(args),
        Command::Assemble(args) => assemble::run(args),
        Command::Average(args) => average::run(args),
        Command::Convert(args) => convert::run::<H>(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Synthetic(args) => synthetic::run(args),
        Command::Doctor(args) => doctor::run::<H>(args),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::{Device, Tensor};
    use clap::CommandFactory;
    use tpo_core::head::{HeadContext, LossTerms, ModelSizes, TaskHead};
    use tpo_core::truth::Truth;

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
    /// What the program does with these arguments.
    fn tpo<H: HeadSet>(args: &[&str]) -> Outcome {
        run::<H>(Program::try_parse_from([&["tpo"], args].concat())?.command)
    }

    fn refusal(args: &[&str]) -> String {
        let end = tpo::<crate::BuiltInHeads>(args);
        end.expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_there_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let file = at("in.json");
        std::fs::write(&file, "[]").unwrap();
        let convert = ["data", "convert", "--from", "llava", &file, "--out"];
        let other = dir.path().join(".").join("in.json");
        let error = refusal(&[&convert[..], &[other.to_str().unwrap()]].concat());
        assert!(error.contains("--out is the input"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "[]");

        // A file that ends early is no success with fewer rows.
        let said = r#"{"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]}"#;
        let cut = at("cut.json");
        std::fs::write(&cut, format!("[{said}, {}", &said[..40])).unwrap();
        let rows = at("rows.jsonl");
        let error = refusal(&["data", "convert", "--from", "llava", &cut, "--out", &rows]);
        assert!(error.contains("the file ends inside a value"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

        let whole = at("whole.json");
        std::fs::write(&whole, format!("[{said}]")).unwrap();
        let convert = |input: &str, more: &[&str]| {
            let args = ["data", "convert", "--from", "llava", input, "--out", &rows];
            tpo::<crate::BuiltInHeads>(&[&args[..], more].concat())
        };
        // Of no row there is no file, and none is lost for it.
        assert_eq!(convert(&file, &[]).unwrap(), End::Wrong);
        assert!(!dir.path().join("rows.jsonl").exists());
        std::fs::write(&rows, "mine").unwrap();
        let error = convert(&whole, &[]).unwrap_err().to_string();
        assert!(error.contains("--overwrite to replace it"), "{error}");
        assert_eq!(convert(&file, &["--overwrite"]).unwrap(), End::Wrong);
        assert_eq!(std::fs::read_to_string(&rows).unwrap(), "mine");
        assert_eq!(convert(&whole, &["--overwrite"]).unwrap(), End::Fine);
        assert!(std::fs::read_to_string(&rows).unwrap().contains("A cat."));

        let world = at("world");
        let export = ["synthetic", "--export", &world, "train", "1"];
        assert_eq!(tpo::<crate::BuiltInHeads>(&export).unwrap(), End::Fine);
        let rows = std::fs::read(dir.path().join("world/rows.jsonl")).unwrap();
        let error = refusal(&["synthetic", "--export", &world, "held_out", "1"]);
        assert!(error.contains("is there already"), "{error}");
        assert_eq!(
            std::fs::read(dir.path().join("world/rows.jsonl")).unwrap(),
            rows
        );

        let model = at("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(dir.path().join("model/tpo.json"), "mine").unwrap();
        let error = refusal(&["pretrain", "--sizes", "assets/mini", "--out", &model]);
        assert!(error.contains("holds a model already"), "{error}");
        for wrong in [
            ["--perception-rate", "nan"],
            ["--mask-rate", "0"],
            ["--perception-steps", "0"],
        ] {
            let pretrain = ["pretrain", "--sizes", "assets/mini", "--out", &model];
            assert!(refusal(&[&pretrain[..], &wrong].concat()).contains(wrong[0]));
        }

        // The directory of an evaluation is new or one of an evaluation.
        let nano = ["evaluate", "--preset", "nano", "--device", "cpu", "--out"];
        let error = refusal(&[&nano[..], &[&world, "--synthetic", "1"]].concat());
        assert!(error.contains("is no run of an evaluation"), "{error}");
    }

    #[test]
    fn an_evaluation_without_an_answer_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out").display().to_string();
        let nano = ["evaluate", "--preset", "nano", "--device", "cpu"];
        let none = ["--synthetic", "1", "--task", "own", "--out", &out];
        let end = tpo::<crate::BuiltInHeads>(&[&nano[..], &none].concat());
        assert_eq!(end.unwrap(), End::Wrong);
        let error = refusal(&["evaluate", "--task", "own", "--predictions", "p.jsonl"]);
        assert!(error.contains("give --model"), "{error}");
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out").display().to_string();
        let nano = ["evaluate", "--preset", "nano", "--device", "cpu"];
        let nano = [&nano[..], &["--synthetic", "1", "--out", &out]].concat();
        for (more, says) in [
            (["--prompts", "videochat2"], "--multiple-choice"),
            (["--json", "s.json"], "--json is not needed"),
            (["--expect", "s.json"], "--expect compares scores of files"),
            (["--limit", "3"], "--limit counts rows of --data"),
        ] {
            let error = refusal(&[&nano[..], &more].concat());
            assert!(error.contains(says), "{error}");
        }
        let boxes = ["track", "--video", "v.mp4", "--box", "0,0,1,1"];
        for more in [["--quantize", "q8_0"], ["--model", "assets/mini"]] {
            let error = refusal(&[&boxes[..], &more].concat());
            assert!(error.contains("--ask"), "{error}");
        }
        let explain = ["train", "--explain", "--device", "cpu"];
        let towers = ["--towers", "no/such", "recipes/nano/stages.toml"];
        let error = refusal(&[&explain[..], &towers].concat());
        assert!(
            error.contains("not a folder of InternVideo2-CLIP"),
            "{error}"
        );
    }

    /// A head that learns numbers.
    #[derive(burn::module::Module, Debug)]
    struct CountHead {
        #[module(skip)]
        none: (),
    }

    impl TaskHead for CountHead {
        type Config = BTreeMap<String, String>;
        type Target = f32;
        type Output = Tensor<2>;
        type Prediction = f32;
        const NAME: &'static str = "count";

        fn init(_: &Self::Config, _: &ModelSizes, _: &Device) -> tpo_core::Result<Self> {
            Ok(Self { none: () })
        }
        fn target(&self, truth: &Truth) -> tpo_core::Result<f32> {
            truth.to_value()
        }
        fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> tpo_core::Result<Tensor<2>> {
            Ok(task)
        }
        fn loss(
            &self,
            _: &Tensor<2>,
            _: &[f32],
            _: &HeadContext<'_>,
        ) -> tpo_core::Result<LossTerms> {
            Ok(LossTerms::new())
        }
        fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> tpo_core::Result<Vec<f32>> {
            Ok(out.into_data().iter::<f32>().collect())
        }
    }

    tpo_core::heads! {
        struct CountHeads { count: CountHead }
    }

    /// A row is also bad when the head of its annotation can learn nothing from it.
    #[test]
    fn validation_asks_the_heads() {
        let dir = tempfile::tempdir().unwrap();
        let picture = image::RgbImage::new(8, 8);
        picture.save(dir.path().join("a.png")).unwrap();
        let path = dir.path().join("rows.jsonl");
        let file = path.display().to_string();
        let validate = ["data", "validate", &file];
        let write = |value: &str| {
            let count = serde_json::json!({"task": "count", "query": "How many?", "value": value});
            let row = serde_json::json!({"media": {"image": "a.png"}, "annotations": [count]});
            let text = row.to_string().replace("\"3\"", "3");
            std::fs::write(&path, text).unwrap();
        };
        write("here");
        assert_eq!(tpo::<CountHeads>(&validate).unwrap(), End::Wrong);
        // A program without the head cannot know.
        assert_eq!(tpo::<crate::BuiltInHeads>(&validate).unwrap(), End::Fine);
        write("3");
        assert_eq!(tpo::<CountHeads>(&validate).unwrap(), End::Fine);
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(tpo::<CountHeads>(&validate).unwrap(), End::Wrong);
    }
}
