use std::sync::Arc;

use tpo_core::traits::VisualShape;
use tpo_data::prompts::{Dialogue, LayoutEncoder};
use tpo_data::synthetic::{Split, World, WorldConfig};

use super::{Question, SessionOptions};
use crate::device::DeviceChoice;

/// A model that runs as trained must read its own conversation as its training would lay it out.
#[test]
fn turns_lie_as_in_training() {
    let device = DeviceChoice::Cpu.open().unwrap();
    let mut session = crate::presets::mini(&device, SessionOptions::default()).unwrap();
    let world = World::new(WorldConfig::default(), 1).unwrap();
    let clip = world.clip(Split::HeldOut, 12);
    let frames: Vec<_> = clip.scene.render_all();
    let frames = frames.iter().map(|f| f.to_frame().unwrap()).collect();
    session
        .load_frames(clip.name(), frames, clip.scene.fps)
        .unwrap();
    let look = clip.scene.objects[0].look.phrase();
    let questions = [
        "How many shapes are there?".to_string(),
        format!("Where is the {look} at the start?"),
        "How many shapes are there?".to_string(),
    ];
    let mut replies = Vec::new();
    for question in &questions {
        let reply = session.ask(Question::new(question)).unwrap();
        replies.push(reply.collect_reply().unwrap());
    }
    let [first, place, again] = &replies[..] else {
        unreachable!()
    };
    assert_eq!(place.tasks.len(), 1, "{place:?}");
    assert!(
        !first.text.is_empty() && !again.text.is_empty(),
        "{again:?}"
    );

    let registry = session.model().registry();
    let region = registry.require("region").unwrap();
    let call = [region.routing.id, region.placeholder.id];
    assert!(session.history.answers[1].windows(2).any(|ids| ids == call));
    let eos = session.tokenizer().eos_ids()[0];
    let said = |i: usize| {
        let ids: &[u32] = &session.history.answers[i];
        assert_eq!(ids.last(), Some(&eos));
        session
            .tokenizer()
            .decode(&ids[..ids.len() - 1], false)
            .unwrap()
    };
    let mut turns: Vec<_> = (0..3).map(|i| (questions[i].clone(), said(i))).collect();
    turns.push(("And now?".into(), String::new()));
    let slots = session.looking.as_ref().unwrap().embeddings.counts[0];
    let encoder = LayoutEncoder {
        slots: Arc::new(move |_| slots),
        ..LayoutEncoder::videochat(Arc::new(crate::presets::mini_tokenizer().unwrap()), eos)
    };
    let dialogue = Dialogue {
        turns,
        ..Dialogue::default()
    };
    let media = session.media().unwrap();
    let video = VisualShape::video(media.size, media.frames.len());
    let trained = encoder.encode(Some(&video), &[], &dialogue).unwrap();
    let asked = Question::new("And now?");
    assert_eq!(
        session.prompt_ids("And now?", &asked).unwrap(),
        trained.prompt
    );
}
