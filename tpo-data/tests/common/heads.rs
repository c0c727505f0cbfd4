//! Heads and tokens of a model, for tests of the feed.

use tpo_core::head::{TargetMaker, TargetSet};
use tpo_core::token::{TaskRegistry, TaskTokens, TokenId};
use tpo_core::truth::{Truth, TruthTarget};

/// Annotations as targets: a box for `region`, the truth itself for the others.
pub struct Truths;

impl TargetMaker for Truths {
    fn add_target(&self, truth: &Truth, targets: &mut TargetSet) -> tpo_core::Result<()> {
        let moments = matches!(truth.target, TruthTarget::Moments { .. });
        let set = TargetSet::new();
        targets.append(match truth.task.as_str() {
            "region" => set.with("region", vec![truth.to_box()?]),
            "temporal" if !moments => return Err(truth.unusable("no moments")),
            "temporal" | "mask" => set.with(&truth.task, vec![truth.clone()]),
            _ => return Err(truth.unusable("no head learns it")),
        })
    }
}

/// The seven tokens of VideoChat-TPO.
pub fn registry() -> TaskRegistry {
    let mut registry = TaskRegistry::new();
    for (name, routing, placeholder) in [
        ("region", ("<box_begin>", 32_000), ("<boxes>", 32_003)),
        ("temporal", ("<time_begin>", 32_001), ("<temp>", 32_002)),
        ("mask", ("<track_begin>", 32_004), ("<tracking>", 32_005)),
    ] {
        registry
            .register(TaskTokens {
                name: name.into(),
                routing: TokenId::new(routing.0, routing.1),
                placeholder: TokenId::new(placeholder.0, placeholder.1),
            })
            .unwrap();
    }
    registry.box_prompt = Some(TokenId::new("<track_box>", 32_006));
    registry
}
