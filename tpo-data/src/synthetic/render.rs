//! From the scene graph to pixels, masks and boxes. A pixel belongs to the front-most shape that
//! contains its centre: nothing is blended, so masks are exact.

use ndarray::Array2;
use tpo_core::geometry::{BoxPixels, Mask};

use super::attributes::Texture;
use super::scene::{Object, Scene, State};
use crate::Frame;

/// Fewest visible pixels of a shape that a question is about.
const MIN_VISIBLE: usize = 12;
/// Share of the colour left in the dark parts of a pattern.
const DARK: f64 = 0.45;

/// One frame: its pixels and which shape each pixel shows.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderedFrame {
    side: usize,
    rgb: Vec<u8>,
    /// 0 for the background, else the shape's index + 1.
    owner: Vec<u8>,
}

impl RenderedFrame {
    /// Side in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Red, green, blue per pixel, rows from the top.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture, as the readers of videos return them.
    ///
    /// # Errors
    /// None that a rendered frame can cause.
    pub fn to_frame(&self) -> Result<Frame, crate::DataError> {
        Frame::from_rgb(self.side, self.side, self.rgb.clone())
    }

    /// The visible pixels of a shape.
    pub fn mask(&self, object: usize) -> Mask {
        let id = object + 1;
        Mask(Array2::from_shape_fn((self.side, self.side), |(y, x)| {
            self.owner[y * self.side + x] as usize == id
        }))
    }

    /// The tight box of a shape's visible pixels; `None` when none is visible.
    pub fn area(&self, object: usize) -> Option<BoxPixels> {
        self.mask(object).bounding_box()
    }

    /// Whether enough of a shape is visible for a question to be about it.
    pub(super) fn shows(&self, object: usize) -> bool {
        self.visible(object) >= MIN_VISIBLE
    }

    /// Number of visible pixels of a shape.
    pub fn visible(&self, object: usize) -> usize {
        let id = object + 1;
        self.owner.iter().filter(|o| **o as usize == id).count()
    }
}

impl Scene {
    /// Renders every frame.
    pub fn render_all(&self) -> Vec<RenderedFrame> {
        (0..self.frames).map(|f| self.render(f)).collect()
    }

    /// Renders one frame, below [`Scene::frames`].
    pub fn render(&self, frame: usize) -> RenderedFrame {
        let side = self.side;
        let (right, down) = self.camera[frame];
        let mut rgb = Vec::with_capacity(3 * side * side);
        for y in 0..side as i32 {
            for x in 0..side as i32 {
                rgb.extend(self.background.at(x - right, y - down, side));
            }
        }
        let mut picture = RenderedFrame {
            side,
            rgb,
            owner: vec![0; side * side],
        };
        for (i, object) in self.objects.iter().enumerate() {
            let mut state = object.states[frame];
            if state.visible {
                state.x += right as f64;
                state.y += down as f64;
                picture.draw(i, object, &state);
            }
        }
        picture
    }
}

impl RenderedFrame {
    fn draw(&mut self, index: usize, object: &Object, state: &State) {
        // No shape reaches farther than the corner of the square.
        let reach = state.radius * 1.25;
        let last = self.side as f64 - 1.0;
        let bounds = |c: f64| {
            let low = (c - reach).floor().clamp(0.0, last) as usize;
            let high = (c + reach).ceil().clamp(0.0, last) as usize;
            low..=high
        };
        let (sin, cos) = state.angle.sin_cos();
        let contour = object.look.outline.contour();
        for y in bounds(state.y) {
            for x in bounds(state.x) {
                let (dx, dy) = (x as f64 + 0.5 - state.x, y as f64 + 0.5 - state.y);
                let u = (dx * cos + dy * sin) / state.radius;
                let v = (dy * cos - dx * sin) / state.radius;
                if !contour.contains(u, v) {
                    continue;
                }
                let at = y * self.side + x;
                let light = if is_dark(object.look.texture, u, v) {
                    DARK
                } else {
                    1.0
                };
                for (channel, value) in state.colour.iter().enumerate() {
                    self.rgb[3 * at + channel] = (*value as f64 * light).round() as u8;
                }
                self.owner[at] = index as u8 + 1;
            }
        }
    }
}

fn is_dark(texture: Texture, u: f64, v: f64) -> bool {
    match texture {
        Texture::Plain => false,
        Texture::Striped => (u * 2.5 + 10.0).floor() as i64 % 2 == 1,
        Texture::Dotted => {
            let (a, b) = ((u + 10.0) * 2.2, (v + 10.0) * 2.2);
            (a - a.round()).hypot(b - b.round()) < 0.28
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attributes::Contour;
    use super::super::{Outline, Shape, Split, World, WorldConfig};
    use super::*;

    /// Corners in units of the radius; `None` for the disc.
    fn corners(outline: Outline) -> Option<Vec<(f64, f64)>> {
        let third = 3f64.sqrt() / 2.0;
        let shape = match outline.contour() {
            Contour::Named(shape) => shape,
            Contour::Polygon(corners) => return Some(corners.iter().map(|c| (c.u, c.v)).collect()),
        };
        Some(match shape {
            Shape::Circle => return None,
            Shape::Square => vec![(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            Shape::Diamond => vec![(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
            Shape::Triangle => vec![(0.0, -1.0), (third, 0.5), (-third, 0.5)],
            Shape::Cross => {
                let (a, b) = (0.35, 1.0);
                vec![
                    (-a, -b),
                    (a, -b),
                    (a, -a),
                    (b, -a),
                    (b, a),
                    (a, a),
                    (a, b),
                    (-a, b),
                    (-a, a),
                    (-b, a),
                    (-b, -a),
                    (-a, -a),
                ]
            }
            Shape::Star => (0..10)
                .map(|i| {
                    let r = if i % 2 == 0 { 1.0 } else { 0.45 };
                    let t = std::f64::consts::PI * i as f64 / 5.0;
                    (r * t.sin(), -r * t.cos())
                })
                .collect(),
        })
    }

    /// Even-odd rule over the edges, in pixel space: another way to the same area. Distances
    /// below a thousandth of a pixel are on the edge and may fall either way.
    fn inside(outline: Outline, s: &State, x: f64, y: f64) -> Option<bool> {
        let Some(points) = corners(outline) else {
            let r = (x - s.x).hypot(y - s.y) - s.radius;
            return (r.abs() > 1e-3).then_some(r < 0.0);
        };
        let (sin, cos) = s.angle.sin_cos();
        let points: Vec<(f64, f64)> = points
            .iter()
            .map(|(u, v)| {
                (
                    s.x + s.radius * (u * cos - v * sin),
                    s.y + s.radius * (u * sin + v * cos),
                )
            })
            .collect();
        let mut odd = false;
        for (i, &(x0, y0)) in points.iter().enumerate() {
            let (x1, y1) = points[(i + 1) % points.len()];
            let t = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0))
                / ((x1 - x0).powi(2) + (y1 - y0).powi(2));
            let t = t.clamp(0.0, 1.0);
            if (x - x0 - t * (x1 - x0)).hypot(y - y0 - t * (y1 - y0)) < 1e-3 {
                return None;
            }
            if (y0 > y) != (y1 > y) && x < x0 + (y - y0) / (y1 - y0) * (x1 - x0) {
                odd = !odd;
            }
        }
        Some(odd)
    }

    #[test]
    fn masks_equal_another_rasterisation() {
        let named = WorldConfig {
            side: 48,
            camera_shake: 0.5,
            ..WorldConfig::default()
        };
        let irregular = WorldConfig {
            irregular: 1.0,
            ..named.clone()
        };
        let named = World::new(named, 11).unwrap();
        let irregular = World::new(irregular, 11).unwrap();
        let mut compared = 0;
        let clips = (0..12).map(|i| (i, named.clip(Split::HeldOut, i)));
        for (index, clip) in clips.chain((0..12).map(|i| (i, irregular.clip(Split::Train, i)))) {
            let scene = clip.scene;
            for frame in 0..scene.frames {
                let picture = scene.render(frame);
                let (right, down) = scene.camera[frame];
                for y in 0..scene.side {
                    for x in 0..scene.side {
                        let at = (x as f64 + 0.5 - right as f64, y as f64 + 0.5 - down as f64);
                        let mut owner = Some(0);
                        for (i, object) in scene.objects.iter().enumerate() {
                            let s = &object.states[frame];
                            if !s.visible {
                                continue;
                            }
                            match inside(object.look.outline, s, at.0, at.1) {
                                Some(true) => owner = Some(i + 1),
                                Some(false) => {}
                                None => owner = None,
                            }
                        }
                        if let Some(owner) = owner {
                            compared += 1;
                            let got = picture.owner[y * scene.side + x] as usize;
                            assert_eq!(got, owner, "clip {index} frame {frame} ({x}, {y})");
                        }
                    }
                }
            }
        }
        assert!(compared > 24 * 16 * 48 * 48 * 9 / 10, "{compared}");
    }
}
