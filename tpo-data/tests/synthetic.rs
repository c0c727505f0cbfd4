//! The synthetic world: what it says about its clips is what the pixels show.

use std::collections::BTreeSet;

use tpo_data::FrameSampling;
use tpo_data::sampling::frame_indices;
use tpo_data::synthetic::{
    Clip, Colour, Event, EventKind, Look, QuestionKind, RowsConfig, Shape, Split, World,
    WorldConfig, is_held_out_event, is_held_out_look,
};

fn is_held_out(look: &Look) -> bool {
    let (shape, colour) = (look.shape(), look.colour);
    shape.is_some_and(|s| colour.is_some_and(|c| is_held_out_look(s, c)))
}

fn world(seed: u64) -> World {
    World::new(WorldConfig::default(), seed).unwrap()
}

fn clips(split: Split, count: u64) -> impl Iterator<Item = Clip> {
    let world = world(3);
    (0..count).map(move |i| world.clip(split, i))
}

#[test]
fn a_clip_is_a_function_of_its_address() {
    assert_eq!(
        world(1).clip(Split::Train, 9),
        world(1).clip(Split::Train, 9)
    );
    let address = [
        world(1).clip(Split::Train, 9),
        world(2).clip(Split::Train, 9),
        world(1).clip(Split::Validation, 9),
        world(1).clip(Split::Train, 10),
    ];
    for (i, a) in address.iter().enumerate() {
        for b in &address[..i] {
            assert_ne!(a.scene, b.scene);
        }
    }
    // The same on every machine and in every version: the first clip, by its numbers.
    let scene = world(1).clip(Split::Train, 0).scene;
    let sum: u64 = scene
        .render(5)
        .rgb()
        .iter()
        .fold(0, |h, b| h * 31 % 1_000_000_007 + *b as u64);
    assert_eq!(
        sum, PINNED,
        "the world changed, so trained models no longer fit their card"
    );
}

/// Hash of a frame of the world of seed 1.
const PINNED: u64 = 940_703_830;

#[test]
fn training_never_shows_what_is_held_out() {
    for split in [Split::Train, Split::Validation] {
        for clip in clips(split, 400) {
            for o in &clip.scene.objects {
                assert!(!is_held_out(&o.look));
            }
            for e in &clip.scene.events {
                let shape = clip.scene.objects[e.object].look.shape().unwrap();
                assert!(!is_held_out_event(e.kind, shape));
                if let Some(becomes) = e.becomes {
                    assert!(!is_held_out_look(shape, becomes));
                }
            }
            // Nor is it named: in questions, answers and wrong answers.
            let frames = clip.scene.render_all();
            let mut texts: Vec<String> = clip.caption(&frames).into_iter().collect();
            for q in clip.questions(&frames) {
                texts.extend([q.question, q.answer]);
                texts.extend(q.options);
            }
            for text in texts {
                for &shape in Shape::ALL {
                    for &colour in Colour::ALL {
                        let phrase = format!("{} {}", colour.name(), shape.name());
                        assert!(
                            !is_held_out_look(shape, colour) || !text.contains(&phrase),
                            "{text}"
                        );
                    }
                }
            }
        }
    }
    let mut new = 0;
    for clip in clips(Split::HeldOut, 400) {
        let scene = &clip.scene;
        let look = scene.objects.iter().any(|o| is_held_out(&o.look));
        let event = scene
            .events
            .iter()
            .any(|e| is_held_out_event(e.kind, scene.objects[e.object].look.shape().unwrap()));
        new += (look || event) as usize;
    }
    assert_eq!(new, 400);
}

#[test]
fn grey_clips_have_no_colour_and_name_none() {
    let config = WorldConfig {
        grey: 0.5,
        ..WorldConfig::default()
    };
    let world = World::new(config, 3).unwrap();
    let (mut grey, mut asked) = (0, 0);
    for index in 0..200 {
        let clip = world.clip(Split::Train, index);
        let frames = clip.scene.render_all();
        let looks: Vec<_> = clip.scene.objects.iter().map(|o| o.look).collect();
        let without = looks.iter().filter(|l| l.colour.is_none()).count();
        assert!(without == 0 || without == looks.len());
        let flat = |rgb: &[u8]| rgb[0] == rgb[1] && rgb[1] == rgb[2];
        let pixels = frames.iter().all(|f| f.rgb().chunks(3).all(flat));
        assert_eq!(pixels, without > 0, "{}", clip.name());
        if without == 0 {
            continue;
        }
        grey += 1;
        for (i, look) in looks.iter().enumerate() {
            assert!(looks[..i].iter().all(|l| l.outline != look.outline));
            // Every pixel of it can be told from the background, which is 60 to 149.
            for (state, frame) in clip.scene.objects[i].states.iter().zip(&frames) {
                assert!(state.colour[0] < 40 || state.colour[0] >= 190);
                assert!(state.visible || frame.visible(i) == 0);
            }
        }
        let kind = |e: &Event| e.kind != EventKind::ChangeColour;
        assert!(clip.scene.events.iter().all(kind));
        let mut texts: Vec<String> = clip.caption(&frames).into_iter().collect();
        for q in clip.questions(&frames) {
            assert!(q.kind != QuestionKind::Attribute && q.kind != QuestionKind::ShapeOf);
            asked += 1;
            texts.extend([q.question, q.answer]);
            texts.extend(q.options);
        }
        texts.extend(clip.region_queries(&frames).into_iter().map(|q| q.question));
        texts.extend(clip.temporal_queries().into_iter().map(|q| q.question));
        for text in texts {
            for &colour in Colour::ALL {
                assert!(!text.contains(colour.name()), "{text}");
            }
        }
    }
    assert!(
        (70..130).contains(&grey) && asked > 5 * grey,
        "{grey} {asked}"
    );
    let crowded = WorldConfig {
        grey: 0.1,
        max_objects: 7,
        ..WorldConfig::default()
    };
    let error = World::new(crowded, 3).unwrap_err().to_string();
    assert!(error.contains("max_objects is 7"), "{error}");
}

#[test]
fn clips_of_one_outline_differ_in_colour() {
    let config = WorldConfig {
        one_outline: 0.5,
        ..WorldConfig::default()
    };
    for (split, seed) in [(Split::Train, 3), (Split::HeldOut, 4)] {
        let world = World::new(config.clone(), seed).unwrap();
        let mut alike = 0;
        for index in 0..200 {
            let looks: Vec<_> = world
                .clip(split, index)
                .scene
                .objects
                .iter()
                .map(|o| o.look)
                .collect();
            for (i, look) in looks.iter().enumerate() {
                let same = |l: &Look| (l.outline, l.colour) == (look.outline, look.colour);
                assert!(!looks[..i].iter().any(same));
                assert!(split == Split::HeldOut || !is_held_out(look));
            }
            alike += usize::from(looks.iter().all(|l| l.outline == looks[0].outline));
        }
        // A few clips are alike by chance.
        assert!((80..125).contains(&alike), "{split:?} {alike}");
    }
    // Eight shapes of an outline that has six colours: two are others.
    let crowded = WorldConfig {
        one_outline: 1.0,
        min_objects: 8,
        max_objects: 8,
        ..WorldConfig::default()
    };
    let clip = World::new(crowded, 3).unwrap().clip(Split::Train, 0);
    let first = clip.scene.objects[0].look.outline;
    let of_it = clip
        .scene
        .objects
        .iter()
        .filter(|o| o.look.outline == first);
    assert!((6..=7).contains(&of_it.count()));
    let wrong = WorldConfig {
        one_outline: 1.5,
        ..WorldConfig::default()
    };
    let error = World::new(wrong, 3).unwrap_err().to_string();
    assert!(error.contains("one_outline is 1.5"), "{error}");
}

#[test]
fn irregular_outlines_are_called_by_their_colour_and_show_every_event() {
    let config = WorldConfig {
        irregular: 0.5,
        ..WorldConfig::default()
    };
    let world = World::new(config, 3).unwrap();
    let (mut irregular, mut kinds) = (0, BTreeSet::new());
    for index in 0..200 {
        let clip = world.clip(Split::Train, index);
        let looks: Vec<_> = clip.scene.objects.iter().map(|o| o.look).collect();
        let without = looks.iter().filter(|l| l.shape().is_none()).count();
        assert!(without == 0 || without == looks.len());
        if without == 0 {
            continue;
        }
        irregular += 1;
        kinds.extend(clip.scene.events.iter().map(|e| e.kind.name()));
        let colours: BTreeSet<_> = looks.iter().map(|l| l.colour).collect();
        assert_eq!(colours.len(), looks.len());
        let frames = clip.scene.render_all();
        let mut texts: Vec<String> = clip.caption(&frames).into_iter().collect();
        for q in clip.questions(&frames) {
            assert!(q.kind != QuestionKind::Attribute && q.kind != QuestionKind::ShapeOf);
            // Outlines with a name are asked for, and there are none.
            if matches!(q.kind, QuestionKind::Count | QuestionKind::Existence) {
                let named = Shape::ALL.iter().any(|s| q.question.contains(s.name()));
                assert!(!named || ["0", "no"].contains(&q.answer.as_str()), "{q:?}");
            } else {
                texts.extend([q.question, q.answer]);
            }
        }
        texts.extend(clip.region_queries(&frames).into_iter().map(|q| q.question));
        texts.extend(clip.temporal_queries().into_iter().map(|q| q.question));
        texts.extend(clip.mask_queries(&frames).into_iter().map(|q| q.question));
        for text in texts {
            let named = |word: &str| Shape::ALL.iter().any(|s| s.name() == word);
            assert!(!text.split([' ', '.', '?']).any(named), "{text}");
        }
    }
    assert!((70..130).contains(&irregular), "{irregular}");
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    for clip in (0..50).map(|i| world.clip(Split::HeldOut, i)) {
        assert!(clip.scene.objects.iter().all(|o| o.look.shape().is_some()));
    }
}

#[test]
fn clips_of_one_colour_differ_in_outline() {
    let config = WorldConfig {
        one_colour: 1.0,
        ..WorldConfig::default()
    };
    for split in [Split::Train, Split::HeldOut] {
        let world = World::new(config.clone(), 3).unwrap();
        for index in 0..100 {
            let clip = world.clip(split, index);
            let looks: Vec<_> = clip.scene.objects.iter().map(|o| o.look).collect();
            let outlines: BTreeSet<_> = looks.iter().map(|l| l.shape()).collect();
            assert_eq!(outlines.len(), looks.len());
            assert!(looks.iter().all(|l| l.colour == looks[0].colour));
            assert!(split == Split::HeldOut || looks.iter().all(|l| !is_held_out(l)));
        }
    }
}

#[test]
fn crossed_clips_need_outline_and_colour() {
    let config = WorldConfig {
        crossed: 1.0,
        ..WorldConfig::default()
    };
    for (split, seed) in [(Split::Train, 3), (Split::HeldOut, 4)] {
        let world = World::new(config.clone(), seed).unwrap();
        let mut pairs = [0, 0];
        for index in 0..200 {
            let clip = world.clip(split, index);
            let looks: Vec<_> = clip.scene.objects.iter().map(|o| o.look).collect();
            let outlines: BTreeSet<_> = looks.iter().map(|l| l.shape()).collect();
            let colours: BTreeSet<_> = looks.iter().map(|l| l.colour).collect();
            assert!(split == Split::HeldOut || looks.iter().all(|l| !is_held_out(l)));
            match looks.len() {
                // Two share the outline or the colour.
                2 => {
                    assert_eq!(outlines.len() + colours.len(), 3, "{looks:?}");
                    pairs[outlines.len() - 1] += 1;
                }
                _ => assert_eq!((outlines.len(), colours.len()), (2, 2), "{looks:?}"),
            }
            for (i, look) in looks.iter().enumerate() {
                let same = |l: &Look| (l.outline, l.colour) == (look.outline, look.colour);
                assert!(!looks[..i].iter().any(same));
            }
        }
        assert!(pairs.iter().all(|n| *n > 15), "{pairs:?}");
    }
}

#[test]
fn boxes_are_tight_and_spans_are_the_frames_of_the_events() {
    for clip in clips(Split::Train, 60) {
        let scene = &clip.scene;
        let frames = scene.render_all();
        for query in clip.mask_queries(&frames) {
            for (f, (rle, area)) in query.masks.iter().zip(&query.boxes).enumerate() {
                let mask = rle.decode().unwrap();
                assert_eq!(mask.area(), frames[f].visible(query.object));
                let Some(area) = area else {
                    assert_eq!(mask.area(), 0);
                    continue;
                };
                let px = area.to_pixels(scene.side as f32, scene.side as f32);
                let (x0, x1) = (px.x0.round() as usize, px.x1.round() as usize);
                let (y0, y1) = (px.y0.round() as usize, px.y1.round() as usize);
                // Nothing outside, something on every side.
                for ((y, x), on) in mask.0.indexed_iter() {
                    assert!(!on || ((x0..x1).contains(&x) && (y0..y1).contains(&y)));
                }
                let column = |x: usize| (y0..y1).any(|y| mask.0[[y, x]]);
                let row = |y: usize| (x0..x1).any(|x| mask.0[[y, x]]);
                assert!(column(x0) && column(x1 - 1) && row(y0) && row(y1 - 1));
            }
        }
        for query in clip.temporal_queries() {
            let event = &scene.events[query.event];
            let (start, end) = query.spans[0];
            assert_eq!(
                ((start * scene.fps) as usize, (end * scene.fps) as usize),
                (event.start, event.end)
            );
            for (f, saliency) in query.saliency.iter().enumerate() {
                assert_eq!(*saliency > 0.0, event.covers(f));
                assert!((0.0..=4.0).contains(saliency));
            }
        }
    }
}

/// An event can be seen in its frames and not outside of them.
#[test]
fn events_happen_when_they_are_said_to() {
    let mut seen = BTreeSet::new();
    for clip in clips(Split::Train, 300) {
        let scene = &clip.scene;
        for e in &scene.events {
            seen.insert(e.kind);
            let states = &scene.objects[e.object].states;
            let step = |f: usize| {
                let (a, b) = (states[f - 1], states[f]);
                (b.x - a.x).hypot(b.y - a.y)
            };
            for f in 1..scene.frames {
                let (a, b) = (states[f - 1], states[f]);
                let inside = e.covers(f);
                match e.kind {
                    EventKind::Blink => assert_eq!(inside && (f - e.start) % 2 == 0, !b.visible),
                    EventKind::Grow => assert_eq!(inside, b.radius > a.radius),
                    EventKind::Spin => assert_eq!(inside, b.angle > a.angle),
                    EventKind::ChangeColour => assert!(inside || a.colour == b.colour),
                    EventKind::Stop => assert!(!inside || step(f) == 0.0),
                    EventKind::LeaveReturn | EventKind::Collide => {}
                }
            }
            match e.kind {
                EventKind::Blink => assert!(e.end - e.start >= 2),
                EventKind::ChangeColour => {
                    assert_eq!(states[e.end - 1].colour, e.becomes.unwrap().rgb());
                }
                EventKind::LeaveReturn => {
                    let out = |s: &tpo_data::synthetic::State| {
                        s.x + s.radius <= 0.0 || s.x - s.radius >= scene.side as f64
                    };
                    assert!((e.start..e.end).any(|f| out(&states[f])), "{e:?}");
                    assert!(
                        (0..e.start)
                            .chain(e.end..scene.frames)
                            .all(|f| !out(&states[f]))
                    );
                }
                EventKind::Collide => {
                    let other = &scene.objects[e.other.unwrap()].states;
                    let gap = |f: usize| {
                        let (a, b) = (states[f], other[f]);
                        (a.x - b.x).hypot(a.y - b.y) - a.radius - b.radius
                    };
                    let closest = (e.start..e.end).map(gap).fold(f64::MAX, f64::min);
                    assert!(closest <= 0.0, "{e:?}: they miss by {closest}");
                }
                EventKind::Stop => {
                    let moves = (1..e.start)
                        .chain(e.end..scene.frames)
                        .any(|f| step(f) > 0.0);
                    assert!(moves, "a shape that never moves cannot stop: {e:?}");
                }
                _ => {}
            }
        }
    }
    assert_eq!(seen.len(), EventKind::ALL.len());
}

#[test]
fn every_kind_of_question_is_asked_and_has_one_answer() {
    let mut kinds = BTreeSet::new();
    for clip in clips(Split::Train, 200) {
        let frames = clip.scene.render_all();
        for q in clip.questions(&frames) {
            kinds.insert(q.kind);
            assert_eq!(q.options[q.correct], q.answer);
            let distinct: BTreeSet<&String> = q.options.iter().collect();
            assert_eq!(distinct.len(), q.options.len(), "{q:?}");
            assert!(q.options.len() >= 2 && !q.question.contains('{'), "{q:?}");
        }
        assert_eq!(clip.questions(&frames), clip.questions(&frames));
    }
    assert_eq!(kinds.len(), QuestionKind::ALL.len());
}

#[test]
fn bounds_that_cannot_work_are_refused() {
    for config in [
        WorldConfig {
            side: 0,
            ..WorldConfig::default()
        },
        WorldConfig {
            min_objects: 5,
            max_objects: 2,
            ..WorldConfig::default()
        },
        WorldConfig {
            fps: f64::NAN,
            ..WorldConfig::default()
        },
        WorldConfig {
            max_events: 9,
            ..WorldConfig::default()
        },
    ] {
        assert!(World::new(config, 0).is_err());
    }
}

/// A model that reads every other frame is told of what it sees.
#[test]
fn a_model_of_few_frames_sees_what_it_is_asked() {
    for (read, stride) in [(16, 1), (8, 2), (4, 3), (5, 3), (12, 1)] {
        let config = RowsConfig::new([], 1, 3).world(read, 64);
        assert_eq!((config.frames, config.stride), (read * stride, stride));
        let (count, fps) = (config.frames, config.fps);
        let seen = frame_indices(FrameSampling::Middle, read, count, fps).unwrap();
        let world = World::new(config, 3).unwrap();
        let mut blinks = 0;
        for index in 0..60 {
            let clip = world.clip(Split::Train, index);
            assert_eq!(
                (clip.first_seen(), clip.last_seen()),
                (seen[0], seen[read - 1])
            );
            let frames = clip.scene.render_all();
            for query in clip.region_queries(&frames) {
                assert!(seen.contains(&query.frame));
            }
            for e in &clip.scene.events {
                let states = &clip.scene.objects[e.object].states;
                if e.kind == EventKind::Blink && e.end - e.start >= 2 * stride {
                    let shown = |hidden: bool| {
                        let mut during = seen.iter().filter(|f| e.covers(**f));
                        during.any(|f| states[*f].visible != hidden)
                    };
                    assert!(shown(true) && shown(false), "{e:?}, sees {seen:?}");
                    blinks += 1;
                }
            }
        }
        assert!(blinks > 0 || stride > 2);
    }
    let config = WorldConfig {
        stride: 5,
        ..WorldConfig::default()
    };
    assert!(World::new(config, 0).is_err());
}

#[test]
fn captions_name_every_shape_that_shows_in_the_order_of_the_corners() {
    const CORNERS: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];
    let mut told_events = 0;
    for clip in clips(Split::Train, 200) {
        let frames = clip.scene.render_all();
        let shown: Vec<usize> = (0..clip.scene.objects.len())
            .filter(|o| frames[0].visible(*o) >= 12)
            .collect();
        let Some(caption) = clip.caption(&frames) else {
            assert!(shown.is_empty());
            continue;
        };
        let sentences: Vec<&str> = caption.split_inclusive('.').map(str::trim).collect();
        assert_eq!(sentences.len(), shown.len(), "{caption}");
        let corner_of = |sentence: &str| {
            CORNERS
                .iter()
                .position(|c| sentence.starts_with(&format!("In the {c} is a ")))
                .unwrap()
        };
        let corners: Vec<usize> = sentences.iter().map(|s| corner_of(s)).collect();
        assert!(corners.is_sorted(), "{caption}");
        for object in shown {
            let it = &clip.scene.objects[object];
            let phrase = it.look.phrase();
            let sentence = sentences.iter().find(|s| s.contains(&phrase)).unwrap();
            let half = clip.scene.side as f64 / 2.0;
            let start = it.states[0];
            let corner = usize::from(start.x >= half) + 2 * usize::from(start.y >= half);
            assert_eq!(corner_of(sentence), corner, "{caption}");
            for event in clip.scene.events.iter().filter(|e| e.involves(object)) {
                assert!(sentence.contains(event.kind.verb()), "{caption}");
                told_events += 1;
            }
        }
    }
    assert!(told_events > 50, "{told_events}");
}
