//! The text of an explanation.

use std::fmt;

use super::{Explanation, StageExplanation};
use crate::stage::StageLength;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            recipe,
            model,
            seed,
            ..
        } = self;
        write!(
            f,
            "{recipe}: {model}, {} parameters, seed {seed}",
            thousands(self.parameters)
        )?;
        for (i, stage) in self.stages.iter().enumerate() {
            write!(f, "\n\nstage {}/{}: {stage}", i + 1, self.stages.len())?;
        }
        Ok(())
    }
}

impl fmt::Display for StageExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = &self.stage;
        writeln!(f, "{}", stage.name)?;
        let length = match stage.length {
            StageLength::Epochs(1) => "1 epoch".to_string(),
            StageLength::Epochs(n) => format!("{n} epochs"),
            StageLength::Steps(n) => format!("{} steps", thousands(n)),
        };
        let of = match self.samples {
            Some(n) => format!(" of {} samples", thousands(n)),
            None => " of a number of samples that is not known yet".into(),
        };
        write!(f, "  length     {length}")?;
        if let StageLength::Epochs(_) = stage.length {
            f.write_str(&of)?;
            if let Some(steps) = self.steps {
                write!(f, " = {} steps", thousands(steps))?;
            }
        }
        if let Some(steps) = self.steps {
            let warmup = stage.schedule.warmup_steps(steps);
            write!(f, ", {} of them warm-up", thousands(warmup))?;
        }
        writeln!(
            f,
            "\n  batch      {} = {} a forward pass x {} of gradient accumulation",
            stage.total_batch(),
            stage.batch_size,
            stage.accumulation
        )?;
        let schedule = &stage.schedule;
        writeln!(
            f,
            "  schedule   {}, warm-up {} of the steps, never below {} of the rate",
            format!("{:?}", schedule.decay).to_lowercase(),
            schedule.warmup_ratio,
            schedule.floor
        )?;
        writeln!(
            f,
            "  optimizer  AdamW {} / {}, epsilon {:e}, {}, {}",
            stage.adamw.beta_1,
            stage.adamw.beta_2,
            stage.adamw.epsilon,
            stage.clip_norm.map_or("no clipping".into(), |n| format!(
                "gradients clipped at norm {n}"
            )),
            format!("{:?}", stage.precision).to_lowercase()
        )?;
        for group in &stage.groups {
            if let Some(muon) = &group.muon {
                writeln!(
                    f,
                    "             matrices of {}: Muon {}, {} iterations",
                    group.name, muon.momentum, muon.iterations
                )?;
            }
        }
        write!(f, "  loss       language x {}", stage.loss.language)?;
        for (name, head) in &stage.loss.heads {
            write!(f, ", {name} x {}", head.weight)?;
            for (term, weight) in &head.terms {
                write!(f, " ({term} {weight})")?;
            }
        }
        if stage.loss.heads.is_empty() {
            writeln!(f, ", heads x {}", stage.loss.other_heads)?
        } else {
            writeln!(f, ", other heads x {}", stage.loss.other_heads)?
        }
        if let Some(data) = &stage.data {
            write!(f, "  data       ")?;
            for (i, source) in data.sources.iter().enumerate() {
                let comma = if i > 0 { ", " } else { "" };
                write!(f, "{comma}{}", source.name)?;
                if source.weight != 1.0 {
                    write!(f, " x {}", source.weight)?;
                }
                if source.repeat > 1 {
                    write!(f, " ({} times)", source.repeat)?;
                }
            }
            writeln!(f, "; temperature {}", data.temperature)?;
        }
        if let Some(evaluation) = &stage.evaluation {
            write!(f, "  evaluation ")?;
            for (i, source) in evaluation.data.sources.iter().enumerate() {
                let comma = if i > 0 { ", " } else { "" };
                write!(f, "{comma}{}", source.name)?;
            }
            match stage.evaluate_every {
                Some(StageLength::Epochs(n)) => write!(f, "; every {n} epochs and at the end")?,
                Some(StageLength::Steps(n)) => {
                    write!(f, "; every {} steps and at the end", thousands(n))?;
                }
                None => f.write_str("; at the end")?,
            }
            match evaluation.batches {
                Some(n) => writeln!(f, ", at most {n} batches")?,
                None => writeln!(f)?,
            }
        }
        if let Some(lora) = &stage.lora {
            let targets = if lora.targets.is_empty() {
                "all layers".to_string()
            } else {
                lora.targets.join(", ")
            };
            writeln!(
                f,
                "  adapters   rank {}, alpha {}, dropout {} on {targets}; {}",
                lora.rank,
                lora.alpha,
                lora.dropout,
                if self.new_adapters {
                    "those before are merged into the weights, new ones are drawn"
                } else {
                    "those before go on"
                }
            )?;
        }
        let learning: Vec<String> = self
            .trainable_of
            .iter()
            .map(|(part, n)| match n {
                0 => format!("{part} frozen"),
                n => format!("{part} {}", thousands(*n)),
            })
            .collect();
        writeln!(f, "  learns     {}", learning.join(", "))?;
        let m = &self.memory;
        writeln!(
            f,
            "  memory     {} = weights {} + gradients {} + optimizer {} + checkpoint in writing {} + process {} + \
             batches {} + activations {} + kept by the allocator {}",
            gib(m.total(false)),
            gib(m.weights),
            gib(m.gradients),
            gib(m.optimizer),
            gib(m.checkpoint),
            gib(m.process),
            gib(m.batches),
            gib(m.activations),
            gib(m.allocator(false)),
        )?;
        writeln!(
            f,
            "             {} with --gradient-checkpointing: activations {}",
            gib(m.total(true)),
            gib(m.checkpointed)
        )?;
        writeln!(
            f,
            "             on a GPU {}, with --gradient-checkpointing {}: attention scores and an unpacked weight {}, \
             {} (computed, not measured)",
            gib(m.total_on_accelerator(false)),
            gib(m.total_on_accelerator(true)),
            gib(m.accelerator),
            gib(m.accelerator_checkpointed)
        )?;
        for (i, line) in self.groups.to_string().lines().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "    {line}")?;
        }
        Ok(())
    }
}

fn thousands(n: u64) -> String {
    crate::groups::thousands(n as usize)
}

fn gib(bytes: u64) -> String {
    let gib = bytes as f64 / (1_u64 << 30) as f64;
    match gib {
        g if g >= 1.0 => format!("{g:.1} GiB"),
        g => format!("{:.1} MiB", g * 1024.0),
    }
}
