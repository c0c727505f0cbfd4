//! Adapters that change between stages.

use burn::tensor::Device;
use tpo::VideoChatTpo;
use tpo::llm::LoraConfig;
use tpo::train::trainer::{StepReport, train_plan};
use tpo::train::{Hooks, Stage, TrainData, TrainOptions};

use super::tiny::*;

fn lora(rank: usize, targets: &[&str]) -> LoraConfig {
    LoraConfig {
        rank,
        alpha: 8.0,
        dropout: 0.1,
        targets: targets.iter().map(|t| t.to_string()).collect(),
    }
}

/// Keeps the model at the end of every stage, and the losses.
#[derive(Default)]
struct Ends(Vec<VideoChatTpo>, Vec<f64>);

impl Hooks<VideoChatTpo> for Ends {
    fn event(&mut self, event: &tpo::train::TrainEvent) -> tpo::train::Result<()> {
        if let tpo::train::TrainEvent::StepFinished(StepReport { loss, .. }) = event {
            self.1.push(*loss);
        }
        Ok(())
    }

    fn checkpoint(
        &mut self,
        model: &VideoChatTpo,
        _: &tpo::train::TrainState,
        _: bool,
    ) -> tpo::train::Result<()> {
        self.0.push(model.clone());
        Ok(())
    }
}

/// Two stages of adapters alone, the second with `second`.
fn run(second: Option<LoraConfig>) -> tpo::train::Result<Ends> {
    let config = config(0.0);
    let first = stage(&["llm.**.lora.*"], 3, 1);
    let mut last = first.clone();
    last.name = "last".into();
    last.length = tpo::train::StageLength::Steps(1);
    // So small a rate that the end of the stage is its start.
    last.groups[0].learning_rate = 1e-12;
    last.weight_decay = 0.0;
    last.lora = second;
    let stages = [first, last];
    let mut ends = Ends::default();
    let mut options = TrainOptions::new(&Device::flex());
    options.seed = 3;
    let mut open =
        |_: &Stage, _: usize, _: u64| Ok(Box::new(data(&config, 1)) as Box<dyn TrainData>);
    train_plan(model(&config), &stages, None, options, &mut open, &mut ends)?;
    Ok(ends)
}

fn lm_loss(model: &VideoChatTpo) -> f32 {
    let device = Device::flex();
    let given = batch(&config(0.0), 50, 3, &device).batch;
    let loss = model.forward(given, &[]).unwrap().lm_loss.unwrap();
    loss.into_scalar()
}

const Q: &str = "llm.model.layers.0.self_attn.q_proj";

#[test]
fn another_rank_starts_fresh_where_the_old_one_ended() {
    let _lock = alone();
    let ends = run(Some(lora(2, &["q_proj", "down_proj"]))).unwrap();
    let (before, after) = (bits(&ends.0[0]), bits(&ends.0[1]));
    let name = |end: &str| format!("{Q}.{end}");
    // 4 rows of 24 numbers, then 2.
    assert_eq!(before[&name("lora.a")].len(), 4 * 24 * 4);
    assert_eq!(after[&name("lora.a")].len(), 2 * 24 * 4);
    assert!(!after.contains_key("llm.model.layers.0.self_attn.v_proj.lora.a"));
    assert_ne!(before[&name("weight")], after[&name("weight")], "merged");
    let (a, b) = (lm_loss(&ends.0[0]), lm_loss(&ends.0[1]));
    assert!((a - b).abs() < 1e-5, "the function stays: {a} and {b}");
    // The draws follow from the seed.
    let again = run(Some(lora(2, &["q_proj", "down_proj"]))).unwrap();
    assert!(after == bits(&again.0[1]));
    assert_eq!(ends.1, again.1);
    let llm = &ends.0[1].llm.config().lora;
    assert_eq!(
        llm.as_ref().map(|l| (l.rank, l.targets.len())),
        Some((2, 2))
    );
}

#[test]
fn another_dropout_or_alpha_keeps_the_adapters() {
    let _lock = alone();
    let ends = run(Some(lora(4, &[]))).unwrap();
    let (before, after) = (bits(&ends.0[0]), bits(&ends.0[1]));
    assert_eq!(
        before[&format!("{Q}.weight")],
        after[&format!("{Q}.weight")]
    );
    let config = ends.0[1].llm.config().lora.clone().unwrap();
    assert_eq!((config.rank, config.dropout), (4, 0.1));
    // Dropout is at work: the step of the last stage sees another loss than without it.
    let without = run(None).unwrap();
    assert_eq!(without.1[..3], ends.1[..3]);
    assert_ne!(without.1[3], ends.1[3]);
    let louder = run(Some(LoraConfig {
        alpha: 16.0,
        ..lora(4, &[])
    }))
    .unwrap();
    let (a, b) = (lm_loss(&louder.0[0]), lm_loss(&louder.0[1]));
    assert!((a - b).abs() < 1e-5, "{a} and {b}");
}

#[test]
fn layers_that_do_not_exist_are_named() {
    let _lock = alone();
    let Err(error) = run(Some(lora(4, &["w_proj"]))) else {
        panic!("must be refused");
    };
    let text = error.to_string();
    assert!(
        text.contains("stages[1] `last`.lora") && text.contains("w_proj"),
        "{text}"
    );
}
