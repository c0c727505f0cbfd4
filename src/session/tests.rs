use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use tpo_core::head::NoHeads;
use tpo_core::prompt::PromptIds;
use tpo_core::traits::VisualShape;
use tpo_data::feed::{Cursor, Feed, FeedConfig, MixtureSpec, SourceSpec};
use tpo_data::prompts::Dialogue;
use tpo_data::synthetic::{Split, World, WorldConfig};
use tpo_data::{ClipRange, MediaLimits, VideoPart, open_video};
use tpo_llm::vocabulary::TokenPlan;

use super::{Question, Session, SessionOptions};
use crate::device::DeviceChoice;
use crate::model::PromptStyle;
use crate::training::DataContext;

/// Every prompt style.
const STYLES: [PromptStyle; 2] = [PromptStyle::VideoChat, PromptStyle::Qwen];

/// The mini model with conversations laid out as `style` says. It was trained on VideoChat's; its words in
/// another are of no use, but its ids are.
fn session(style: PromptStyle) -> Session {
    let device = DeviceChoice::Cpu.open().unwrap();
    let mini = crate::presets::mini(&device, SessionOptions::default()).unwrap();
    let mut tokenizer = crate::presets::mini_tokenizer().unwrap();
    let (mut model, mut config) = (mini.model().clone(), mini.config().clone());
    let ends = style.layout().ends().iter().copied();
    let tokens = ends.chain(["<|im_start|>"]);
    let rows = config.llm.vocab_size;
    let plan = TokenPlan::new(&tokenizer, rows, tokens);
    model.llm = plan.apply(&mut tokenizer, model.llm).unwrap();
    config.llm.vocab_size = model.llm.config().vocab_size;
    config.prompt = style;
    Session::new(model, config, tokenizer, &device, SessionOptions::default()).unwrap()
}

/// Lays out a row as training of the session's model does.
fn trained(session: &Session, visuals: &[VisualShape], turns: &[(String, String)]) -> PromptIds {
    let context = DataContext::new(session.config(), &session.tokenizer);
    let dialogue = Dialogue {
        turns: turns.to_vec(),
        ..Dialogue::default()
    };
    let encoder = context.encoder().unwrap();
    encoder.encode(visuals, &[], &dialogue).unwrap().prompt
}

/// A model that runs as trained must read its own conversation as its training would lay it out.
#[test]
fn turns_lie_as_in_training() {
    for style in STYLES {
        let mut session = session(style);
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
        let learned = style == PromptStyle::VideoChat;
        for (i, text) in questions.iter().enumerate() {
            let mut question = Question::new(text);
            if !learned {
                // So that there is an answer, whatever the model makes of this layout.
                question = question.with_task("region");
            }
            let reply = session.ask(question).unwrap().collect_reply().unwrap();
            let calls = usize::from(i == 1 || !learned);
            assert_eq!(reply.tasks.len(), calls, "{reply:?}");
            assert!(calls > 0 || !reply.text.is_empty(), "{reply:?}");
        }

        let registry = session.model().registry();
        let region = registry.require("region").unwrap();
        let call = [region.routing.id, region.placeholder.id];
        assert!(session.history.answers[1].windows(2).any(|ids| ids == call));
        let end = session.ends[0];
        let name = style.layout().ends().first().copied();
        let name = name.unwrap_or("</s>");
        assert_eq!(session.tokenizer().token_to_id(name), Some(end));
        let said = |i: usize| {
            let ids: &[u32] = &session.history.answers[i];
            assert_eq!(ids.last(), Some(&end));
            session
                .tokenizer()
                .decode(&ids[..ids.len() - 1], false)
                .unwrap()
        };
        let mut turns: Vec<_> = (0..3).map(|i| (questions[i].clone(), said(i))).collect();
        turns.push(("And now?".into(), String::new()));
        let media = session.media().unwrap();
        let video = VisualShape::video(media.size, media.frames.len());
        let asked = Question::new("And now?");
        assert_eq!(
            session.prompt_ids("And now?", &asked).unwrap(),
            trained(&session, &[video], &turns),
            "{style:?}"
        );
    }
}

/// Several images: refused in words before anything is encoded, or in their places.
#[test]
fn images_lie_as_in_training() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [(9, 7), (5, 8)].map(|(width, height)| {
        let path = dir.path().join(format!("{width}.png"));
        image::RgbImage::new(width, height).save(&path).unwrap();
        path
    });
    for style in STYLES {
        let mut session = session(style);
        let found = session.load_images(&paths);
        if style == PromptStyle::VideoChat {
            let error = found.unwrap_err().to_string();
            assert!(error.contains("2 videos or images"), "{error}");
            assert!(session.media().is_none());
            continue;
        }
        assert_eq!(found.unwrap().size, (9, 7));
        let shapes = [VisualShape::image((9, 7)), VisualShape::image((5, 8))];
        let rows: usize = shapes
            .iter()
            .map(|s| session.config().rows(s).unwrap())
            .sum();
        for question in ["Which is larger?", "Is <image> larger than <image>?"] {
            let asked = Question::new(question);
            let ids = session.prompt_ids(question, &asked).unwrap();
            let turns = [(question.to_string(), String::new())];
            assert_eq!(ids, trained(&session, &shapes, &turns));
            assert_eq!(ids.visual_slots(), rows);
            session.prepare(&asked).unwrap();
        }
        for question in ["What is <image>?", "<|im_start|>"] {
            assert!(session.prepare(&Question::new(question)).is_err());
        }
        let none: [&Path; 0] = [];
        assert!(session.load_images(&none).is_err());
    }
}

/// A layout whose end of an answer the tokenizer does not know cannot be used.
#[test]
fn answers_need_their_end() {
    let mini = crate::presets::mini_tokenizer().unwrap();
    let mut config = crate::presets::mini_config().unwrap();
    assert_eq!(config.ends(&mini).unwrap(), mini.eos_ids());
    config.prompt = PromptStyle::Qwen;
    let error = config.ends(&mini).unwrap_err().to_string();
    assert!(error.contains("`<|im_end|>`"), "{error}");
    let error = DataContext::new(&config, &Arc::new(mini)).encoder();
    assert!(error.is_err());
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
    let context = DataContext::new(session.config(), &session.tokenizer);
    let encoder = context.encoder().unwrap();
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
