//! Drawing a scene: looks, events, paths.

use super::WorldConfig;
use super::attributes::{Colour, Look, Outline, Shape, Size, Texture};
use super::background::{Background, Pattern};
use super::draw::Draw;
use super::event::{Event, EventKind};
use super::scene::{Object, Scene, State};
use super::split::{Split, is_held_out_look};

/// Frames an event takes at 16 frames a clip; longer clips have longer events.
const EVENT_SHARE: f64 = 0.25;
/// Radius after growing, relative to before.
const GROWTH: f64 = 1.6;

pub(crate) fn scene(config: &WorldConfig, split: Split, draw: &mut Draw) -> Scene {
    let count = config.min_objects + draw.below(config.max_objects - config.min_objects + 1);
    // No random number is drawn for grey and other special clips where there are none, so that the
    // clips of a seed stay the same.
    let grey = config.grey > 0.0 && draw.unit() < config.grey;
    // What is special about a held-out clip: a look or an event.
    let special_look = split == Split::HeldOut && !grey && draw.below(2) == 0;
    let mut order = Order::Any;
    for (share, other) in [
        (config.one_outline, Order::OneOutline),
        (config.one_colour, Order::OneColour),
        (config.crossed, Order::Crossed),
        (config.irregular, Order::Irregular),
    ] {
        // What is special about a held-out clip is the pair of a named outline.
        let share = match (split, other) {
            (Split::HeldOut, Order::Irregular) => 0.0,
            _ => share,
        };
        if share > 0.0 && !grey && order == Order::Any && draw.unit() < share {
            order = other;
        }
    }
    let looks = match (grey, order) {
        (true, _) => grey_looks(count, draw),
        (false, Order::Irregular) => irregular_looks(count, draw),
        (false, _) => looks(count, split, special_look, order, draw),
    };
    let plan = events(config, split, special_look, &looks, draw);
    let side = config.side as f64;
    let mut objects: Vec<Object> = looks
        .iter()
        .enumerate()
        .map(|(i, look)| {
            // What never moves cannot stop.
            let stops = |e: &Event| e.kind == EventKind::Stop && e.object == i;
            let moves = plan.iter().any(stops);
            Object {
                look: *look,
                states: path(config, look, side, moves, draw),
            }
        })
        .collect();
    for event in &plan {
        apply(event, &mut objects, side, config.stride);
    }
    let muted = |draw: &mut Draw| {
        if grey {
            [60 + draw.below(90) as u8; 3]
        } else {
            [0; 3].map(|_: u8| 60 + draw.below(90) as u8)
        }
    };
    Scene {
        side: config.side,
        frames: config.frames,
        fps: config.fps,
        background: Background {
            pattern: draw.pick(Pattern::ALL),
            first: muted(draw),
            second: muted(draw),
            seed: draw.next(),
        },
        objects,
        events: plan,
        camera: camera(config, draw),
    }
}

/// Looks of different outlines without a colour.
fn grey_looks(count: usize, draw: &mut Draw) -> Vec<Look> {
    let mut shapes = Shape::ALL.to_vec();
    draw.shuffle(&mut shapes);
    shapes
        .into_iter()
        .take(count)
        .map(|shape| look(Outline::Named(shape), None, draw))
        .collect()
}

/// Looks of different colours whose outlines have no name.
fn irregular_looks(count: usize, draw: &mut Draw) -> Vec<Look> {
    let mut colours = Colour::ALL.to_vec();
    draw.shuffle(&mut colours);
    colours
        .into_iter()
        .take(count)
        .map(|colour| {
            let irregular = draw.next() as u32;
            look(Outline::Irregular { irregular }, Some(colour), draw)
        })
        .collect()
}

/// A look of any size and texture; half of them are plain.
fn look(outline: Outline, colour: Option<Colour>, draw: &mut Draw) -> Look {
    Look {
        outline,
        colour,
        size: draw.pick(Size::ALL),
        texture: draw.pick(&[
            Texture::Plain,
            Texture::Plain,
            Texture::Striped,
            Texture::Dotted,
        ]),
    }
}

/// What the looks of a clip have in common with the first.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Any,
    OneOutline,
    OneColour,
    Crossed,
    Irregular,
}

/// Looks with different colour-and-shape phrases; at most one held-out combination, the first. They
/// have in common what `order` says, as far as known combinations go.
fn looks(count: usize, split: Split, special: bool, order: Order, draw: &mut Draw) -> Vec<Look> {
    let mut pairs: Vec<(Shape, Colour)> = Shape::ALL
        .iter()
        .flat_map(|s| Colour::ALL.iter().map(|c| (*s, *c)))
        .collect();
    draw.shuffle(&mut pairs);
    let (held, mut known): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .partition(|(s, c)| is_held_out_look(*s, *c));
    if split == Split::HeldOut && special {
        known.insert(0, held[0]);
    }
    if let Some(&first) = known.first() {
        match order {
            Order::Any | Order::Irregular => {}
            Order::OneOutline => known.sort_by_key(|(shape, _)| *shape != first.0),
            Order::OneColour => known.sort_by_key(|(_, colour)| *colour != first.1),
            Order::Crossed => cross(first, &mut known),
        }
    }
    known
        .into_iter()
        .take(count)
        .map(|(shape, colour)| look(Outline::Named(shape), Some(colour), draw))
        .collect()
}

/// Brings two outlines in two colours to the front, `first` among them; the others stay in order.
fn cross(first: (Shape, Colour), known: &mut [(Shape, Colour)]) {
    let there = |pair: (Shape, Colour)| known.contains(&pair);
    // The first pair with neither in common whose two mixtures with `first` are known.
    let opposite = known.iter().copied().find(|&(shape, colour)| {
        shape != first.0 && colour != first.1 && there((first.0, colour)) && there((shape, first.1))
    });
    if let Some((shape, colour)) = opposite {
        // Which mixture comes second is as random as the order of the pairs.
        let within = |&(s, c): &(Shape, Colour)| {
            (s == first.0 || s == shape) && (c == first.1 || c == colour)
        };
        known.sort_by_key(|pair| !within(pair));
        if let Some(at) = known.iter().position(|pair| *pair == first) {
            known[..=at].rotate_right(1);
        }
        // Two shapes share one of the two.
        if known[1] == (shape, colour) {
            known.swap(1, 2);
        }
    }
}

/// Events one after the other, each to a shape that has none yet.
fn events(
    config: &WorldConfig,
    split: Split,
    special_look: bool,
    looks: &[Look],
    draw: &mut Draw,
) -> Vec<Event> {
    let most = config.max_events.min(looks.len());
    let count = 1 + draw.below(most);
    let length = ((config.frames as f64 * EVENT_SHARE) as usize).max(3);
    let slot = config.frames / count;
    let mut free: Vec<usize> = (0..looks.len()).collect();
    draw.shuffle(&mut free);
    // The shape with the unseen look is the one something happens to.
    if special_look && let Some(at) = free.iter().position(|i| *i == 0) {
        free.swap(0, at);
    }
    // Kinds differ within a clip, or "what happens first" would have no answer.
    let mut kinds = EventKind::ALL.to_vec();
    draw.shuffle(&mut kinds);
    let mut plan = Vec::new();
    // The slots in random order: which shape is first says nothing about time.
    let mut slots: Vec<usize> = (0..count).collect();
    draw.shuffle(&mut slots);
    for (n, slot_index) in slots.into_iter().enumerate() {
        let Some(&object) = free.first() else { break };
        let look = &looks[object];
        let wants_held_out = split == Split::HeldOut && !special_look && n == 0;
        let shows =
            |kind: &EventKind| kind.suits(look) && (*kind != EventKind::Collide || free.len() > 1);
        let fits = |held_out: bool| {
            let fits = |kind: &EventKind| shows(kind) && kind.shuns(look) == held_out;
            kinds.iter().position(fits)
        };
        // A shape whose unseen event cannot be shown (a lone shape cannot collide) takes another.
        let Some(at) = fits(wants_held_out).or_else(|| fits(false)) else {
            break;
        };
        let kind = kinds.remove(at);
        free.remove(0);
        let other = (kind == EventKind::Collide).then(|| {
            // The partner is one the event may happen to as well.
            let at = free
                .iter()
                .position(|o| !kind.shuns(&looks[*o]))
                .unwrap_or(0);
            free.remove(at)
        });
        let room = slot.saturating_sub(length + 1);
        let start = slot_index * slot + 1 + draw.below(room.max(1));
        let becomes = (kind == EventKind::ChangeColour).then(|| another_colour(looks, look, draw));
        plan.push(Event {
            kind,
            object,
            other,
            start,
            end: (start + length).min(config.frames),
            becomes,
        });
    }
    plan.sort_by_key(|e| e.start);
    plan
}

/// A colour that no shape of the clip has and that training may show on this shape.
fn another_colour(looks: &[Look], look: &Look, draw: &mut Draw) -> Colour {
    let unknown = |c: Colour| look.shape().is_some_and(|s| is_held_out_look(s, c));
    let mut others = Colour::ALL.to_vec();
    others.retain(|c| Some(*c) != look.colour && !unknown(*c));
    let mut free = others.clone();
    free.retain(|c| looks.iter().all(|l| l.colour != Some(*c)));
    // Eight shapes of eight colours: any other one will do.
    draw.pick(if free.is_empty() { &others } else { &free })
}

/// Straight or still, bouncing off the edges.
fn path(config: &WorldConfig, look: &Look, side: f64, moves: bool, draw: &mut Draw) -> Vec<State> {
    let radius = look.size.radius() * side;
    // Greys are brighter or darker than any background.
    let colour = look.colour.map_or_else(
        || {
            let dark = draw.below(2) == 0;
            [if dark { 5 } else { 190 } + draw.below(35) as u8; 3]
        },
        Colour::rgb,
    );
    let (low, high) = (radius, side - radius);
    let (mut x, mut y) = (draw.range(low, high), draw.range(low, high));
    // Pixels per frame: a third to two thirds of the frame in a clip.
    let speed = side * draw.range(0.35, 0.7) / config.frames as f64;
    let (mut vx, mut vy) = match draw.below(6) {
        0 if !moves => (0.0, 0.0),
        1 => (speed, 0.0),
        2 => (-speed, 0.0),
        3 => (0.0, speed),
        4 => (0.0, -speed),
        _ => {
            let turn = draw.range(0.0, std::f64::consts::TAU);
            (speed * turn.cos(), speed * turn.sin())
        }
    };
    // Enough room ahead that a straight path keeps its direction for most of the clip.
    let reach = config.frames as f64 * 0.75;
    let with_room = |at: f64, speed: f64| {
        let (way, inside) = (speed * reach, |v: f64| v.min(high).max(low));
        at.clamp(inside(low - way), inside(high - way))
    };
    (x, y) = (with_room(x, vx), with_room(y, vy));
    (0..config.frames)
        .map(|_| {
            let state = State {
                x,
                y,
                radius,
                angle: 0.0,
                colour,
                visible: true,
            };
            (x, vx) = bounce(x + vx, vx, low, high);
            (y, vy) = bounce(y + vy, vy, low, high);
            state
        })
        .collect()
}

fn bounce(at: f64, speed: f64, low: f64, high: f64) -> (f64, f64) {
    if at < low {
        ((2.0 * low - at).min(high), speed.abs())
    } else if at > high {
        ((2.0 * high - at).max(low), -speed.abs())
    } else {
        (at, speed)
    }
}

/// Changes the paths so that the event happens in exactly its frames.
fn apply(event: &Event, objects: &mut [Object], side: f64, stride: usize) {
    let (start, end) = (event.start, event.end);
    let states = &mut objects[event.object].states;
    let length = (end - start) as f64;
    let done = |frame: usize| ((frame + 1 - start) as f64 / length).min(1.0);
    match event.kind {
        EventKind::Blink => {
            for (f, state) in states.iter_mut().enumerate().take(end).skip(start) {
                state.visible &= ((f - start) / stride) % 2 == 1;
            }
        }
        EventKind::Grow => {
            for (f, state) in states.iter_mut().enumerate().skip(start) {
                state.radius *= 1.0 + (GROWTH - 1.0) * done(f);
            }
        }
        EventKind::Spin => {
            for (f, state) in states.iter_mut().enumerate().skip(start) {
                let turns = (f.min(end - 1) + 1 - start) as f64;
                state.angle += turns * std::f64::consts::FRAC_PI_4 * 0.8;
            }
        }
        EventKind::ChangeColour => {
            let to = event.becomes.map(Colour::rgb);
            for (f, state) in states.iter_mut().enumerate().skip(start) {
                for (value, target) in state.colour.iter_mut().zip(to.unwrap_or_default()) {
                    let from = *value as f64;
                    *value = (from + (target as f64 - from) * done(f)).round() as u8;
                }
            }
        }
        EventKind::Stop => {
            // Stands still, then continues with the steps it has not made.
            let held = states[start - 1];
            let rest: Vec<State> = states[start..].to_vec();
            for f in start..states.len() {
                states[f] = if f < end { held } else { rest[f - end] };
            }
        }
        EventKind::LeaveReturn => {
            let radius = states[start].radius;
            let to_left = states[start].x < side / 2.0;
            let away = if to_left {
                -radius * 1.5
            } else {
                side + radius * 1.5
            };
            for (f, state) in states.iter_mut().enumerate().take(end).skip(start) {
                // Out by the middle, back by the end.
                let t = (f - start) as f64 + 1.0;
                let share = (2.0 * t / (length + 1.0)).min(2.0 - 2.0 * t / (length + 1.0));
                let share = (share * 1.5).min(1.0);
                state.x += (away - state.x) * share;
            }
        }
        EventKind::Collide => collide(event, objects, side),
    }
}

/// Two shapes meet in the middle of the event and part again. They start from, and return to, their
/// positions at its edges, so that nothing changes outside of the event.
fn collide(event: &Event, objects: &mut [Object], side: f64) {
    let Some(other) = event.other else { return };
    let (start, end) = (event.start, event.end);
    let middle = (start + end) / 2;
    let (a, b) = (event.object, other);
    let (first, second) = (objects[a].states[start - 1], objects[b].states[start - 1]);
    let (ra, rb) = (first.radius, second.radius);
    let (dx, dy) = (second.x - first.x, second.y - first.y);
    let apart = dx.hypot(dy).max(1e-6);
    let (nx, ny) = if apart > 1e-3 {
        (dx / apart, dy / apart)
    } else {
        (1.0, 0.0)
    };
    let reach = ra.max(rb);
    let centre = |v: f64| v.clamp(2.0 * reach, (side - 2.0 * reach).max(2.0 * reach));
    let (cx, cy) = (
        centre((first.x + second.x) / 2.0),
        centre((first.y + second.y) / 2.0),
    );
    // Touching: the discs around both shapes just meet.
    let meets = [
        (a, cx - nx * ra * 0.95, cy - ny * ra * 0.95),
        (b, cx + nx * rb * 0.95, cy + ny * rb * 0.95),
    ];
    for (object, x, y) in meets {
        let states = &mut objects[object].states;
        let from = states[start - 1];
        let to = states[end.min(states.len() - 1)];
        for (f, state) in states.iter_mut().enumerate().take(end).skip(start) {
            let (edge, share) = if f <= middle {
                (from, (f + 1 - start) as f64 / (middle + 1 - start) as f64)
            } else {
                (to, (end - f) as f64 / (end - middle) as f64)
            };
            state.x = edge.x + (x - edge.x) * share;
            state.y = edge.y + (y - edge.y) * share;
        }
    }
}

/// Still, or a pixel or two back and forth.
fn camera(config: &WorldConfig, draw: &mut Draw) -> Vec<(i32, i32)> {
    let shakes = draw.unit() < config.camera_shake;
    let most = (config.side / 48).max(1) as i32;
    (0..config.frames)
        .map(|_| {
            let mut step = || draw.below(2 * most as usize + 1) as i32 - most;
            let shift = (step(), step());
            if shakes { shift } else { (0, 0) }
        })
        .collect()
}
