//! Questions about clips of the synthetic world, without any file.

use std::sync::Arc;

use rayon::prelude::*;
use tpo_data::schema::{BoxCoords, Saliency};
use tpo_data::synthetic::{Clip, Split, World, WorldConfig};

use super::item::{Ask, Expected, Item, ItemKind, MediaRef};
use super::prompts::Prompts;
use crate::error::Result;

/// Clips of the world.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldSpec {
    /// Bounds of the world.
    pub world: WorldConfig,
    /// Its seed.
    pub seed: u64,
    /// Which part.
    pub split: Split,
    /// How many clips, from the first.
    pub clips: u64,
    /// Put short-answer questions as multiple choice.
    pub choices: bool,
}

impl WorldSpec {
    /// Every question of the kinds `wanted` (of every kind when empty) about the clips.
    ///
    /// # Errors
    /// [`DataError::InvalidSynthetic`](tpo_data::DataError) for bounds that cannot work.
    pub fn items(&self, prompts: &Prompts, wanted: &[ItemKind]) -> Result<Vec<Item>> {
        let world = World::new(self.world.clone(), self.seed)?;
        let of_clip = |index| self.clip(Arc::new(world.clip(self.split, index)), prompts);
        let clips: Vec<Vec<Item>> = (0..self.clips).into_par_iter().map(of_clip).collect();
        let mut items: Vec<Item> = clips.into_iter().flatten().collect();
        items.retain(|i| wanted.is_empty() || wanted.contains(&i.kind()));
        Ok(items)
    }

    fn clip(&self, clip: Arc<Clip>, prompts: &Prompts) -> Vec<Item> {
        let mut items = Vec::new();
        let frames = clip.scene.render_all();
        let name = clip.name();
        let mut add = |number: usize, ask: Ask, expected: Expected, group: &str| {
            items.push(Item {
                id: format!("{name}/{number}"),
                sample: name.clone(),
                query_id: None,
                media: MediaRef::Clip(clip.clone()),
                ask,
                expected,
                group: group.into(),
            });
        };
        let head = |task: &str, question: &str| Ask {
            text: question.into(),
            task: Some(task.into()),
            ..Ask::default()
        };
        for (i, q) in clip.questions(&frames).into_iter().enumerate() {
            if self.choices {
                let ask = prompts.multiple_choice(&q.question, &q.options);
                let expected = Expected::MultipleChoice {
                    options: q.options,
                    correct: Some(q.correct),
                };
                add(i, ask, expected, q.kind.name());
            } else {
                let ask = Ask {
                    text: q.question,
                    ..Ask::default()
                };
                add(i, ask, Expected::Text(Some(q.answer)), q.kind.name());
            }
        }
        for (i, q) in clip.region_queries(&frames).into_iter().enumerate() {
            let area = BoxCoords::Normalised(q.area.to_array());
            let expected = Expected::Region(Some(area));
            let start = q.frame == clip.first_seen();
            let when = if start { "start" } else { "end" };
            add(i, head("region", &q.question), expected, when);
        }
        for (i, q) in clip.temporal_queries().into_iter().enumerate() {
            let expected = Expected::Temporal {
                spans: Some(q.spans.iter().map(|(a, b)| [*a, *b]).collect()),
                saliency: Some(Saliency {
                    clip_seconds: 1.0 / clip.scene.fps,
                    clips: (0..q.saliency.len() as u32).collect(),
                    scores: q.saliency.iter().map(|s| vec![*s]).collect(),
                }),
            };
            let kind = clip.scene.events[q.event].kind.name();
            add(i, head("temporal", &q.question), expected, kind);
        }
        for (i, q) in clip.mask_queries(&frames).into_iter().enumerate() {
            let ask = head("mask", &q.question);
            add(i, ask, Expected::Mask(Some(q.track())), "all");
        }
        items
    }
}
