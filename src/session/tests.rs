use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use tpo_core::head::NoHeads;
use tpo_core::traits::VisualShape;
use tpo_data::feed::{Cursor, Feed, FeedConfig, MixtureSpec, SourceSpec};
use tpo_data::prompts::{Dialogue, LayoutEncoder};
use tpo_data::synthetic::{Split, World, WorldConfig};
use tpo_data::{ClipRange, MediaLimits, VideoPart, open_video};

use super::{Question, Session, SessionOptions};
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
        slots: Arc::new(move |_| Ok(slots)),
        ..LayoutEncoder::videochat(Arc::new(crate::presets::mini_tokenizer().unwrap()), eos)
    };
    let dialogue = Dialogue {
        turns,
        ..Dialogue::default()
    };
    let media = session.media().unwrap();
    let video = VisualShape::video(media.size, media.frames.len());
    let trained = encoder.encode(&[video], &[], &dialogue).unwrap();
    let asked = Question::new("And now?");
    assert_eq!(
        session.prompt_ids("And now?", &asked).unwrap(),
        trained.prompt
    );
}

/// A row of training and a question in a chat about the same part of a video are told the same frame
/// times: counted from the part's first frame, as the reference rounds them.
#[test]
fn frame_times_are_told_as_in_training() {
    let device = DeviceChoice::Cpu.open().unwrap();
    let mut session = crate::presets::mini(&device, SessionOptions::default()).unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let video = open_video(assets.join("bouncing_shapes.mp4"), &MediaLimits::default()).unwrap();
    let [start, end] = [0.33, 1.6];
    let part = VideoPart::new(video.into(), ClipRange { start, end }).unwrap();
    session.load_reader(Arc::new(part), None).unwrap();
    let question = "At which timestamps does it turn?";
    let asked = session
        .prompt_ids(question, &Question::new(question))
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let row = serde_json::json!({
        "media": {"video": "bouncing_shapes.mp4", "range": [start, end]},
        "turns": [{"question": question, "answer": "Never."}],
    });
    std::fs::write(&rows, format!("{row}\n")).unwrap();
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![SourceSpec {
            media: Some(assets),
            ..SourceSpec::file(rows)
        }]),
        ..FeedConfig::default()
    };
    config.frames.num_frames = session.config().input.frames;
    config.loader.strict = true;
    let slots = session.looking.as_ref().unwrap().embeddings.counts[0];
    let encoder = LayoutEncoder {
        slots: Arc::new(move |_| Ok(slots)),
        ..LayoutEncoder::videochat(session.tokenizer.clone(), session.tokenizer.eos_ids()[0])
    };
    let tasks = session.model().registry();
    let heads = Arc::new(NoHeads::default());
    let mut feed = Feed::open(&config, tasks, encoder, heads, Cursor::default()).unwrap();
    let batch = feed.next_batch().unwrap().unwrap();
    let trained = &batch.tokens.ids[0][..asked.len()];
    assert_eq!(trained, asked.ids);
    let text = session.tokenizer.decode(trained, false).unwrap();
    assert!(text.contains("frames sampled at 0.0, "), "{text}");
}

#[test]
fn threads_answer_side_by_side_with_a_small_model() {
    let device = DeviceChoice::Cpu.open().unwrap();
    let mut session = Session::nano(&device, 1, SessionOptions::default()).unwrap();
    let batch = NonZeroUsize::new(8).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build();
    let pool = pool.unwrap();
    let beside = |session: &Session| pool.install(|| session.side_by_side(batch).unwrap().get());
    assert_eq!(beside(&session), 4);
    // Memory for three of them.
    let memory = session.memory().unwrap();
    let each = 8 * memory.per_question + memory.activations;
    session.options.memory = Some(memory.weights + 2 * (3 * each + 1));
    assert_eq!(beside(&session), 3);
    session.options.memory = Some(memory.weights);
    assert_eq!(beside(&session), 1);
    // All threads are for one batch where the model is large.
    session.options.memory = None;
    session.config.llm.intermediate_size = 1 << 20;
    assert!(session.memory().unwrap().weights > 64 << 20);
    assert_eq!(beside(&session), 1);
}
