//! What one sample leaves in a part of a model on its way forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Add;

use super::shape::{ModelShape, PartShape};
use crate::adapters::{FACTORS, is_factor};
use crate::groups::ResolvedParam;

/// Values that come and go while one linear map is run, per value of its input and output: their
/// gradients, and those of the functions around it.
const IN_FLIGHT: u64 = 2;

/// Copies of the logits in 32 bits at the loss: they themselves, their logarithms of softmax, and the
/// gradients of both.
const LOGITS: u64 = 4;

/// Layers that read what the layer before them reads.
const SHARED_INPUT: [(&str, &str); 5] = [
    ("k_proj", "q_proj"),
    ("v_proj", "q_proj"),
    ("up_proj", "gate_proj"),
    ("key", "query"),
    ("value", "query"),
];

/// Bytes that are kept, of all blocks or where those are computed again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    pub all: u64,
    pub once: u64,
}

impl Add for Kept {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            all: self.all.saturating_add(other.all),
            once: self.once.saturating_add(other.once),
        }
    }
}

/// Bytes of one sample in one part.
pub(super) struct Flow {
    /// For the backward pass.
    pub kept: Kept,
    /// In flight at the layer where that is most.
    pub busy: u64,
    /// Scores of attention, where they are materialised.
    pub scores: Kept,
    /// The largest quantised weight as floats, whatever the number of samples.
    pub unpacked: u64,
}

/// What a block keeps, and the narrowest width of its layers, which is what enters it.
#[derive(Default)]
struct Block {
    kept: u64,
    entered: Option<u64>,
}

impl Flow {
    /// With parameters at the paths `learning`, and values of `width` bytes.
    pub(super) fn of(
        part: &PartShape,
        model: &ModelShape,
        learning: &BTreeSet<&str>,
        width: u64,
    ) -> Self {
        let layers = Layers::of(part, model, learning, width);
        let (outside, blocks) = (&layers.outside, &layers.blocks);
        let most = |of: fn(&Block) -> u64| blocks.values().map(of).max().unwrap_or(0);
        let sum = |of: fn(&Block) -> u64| blocks.values().map(of).fold(0, u64::saturating_add);
        let (attended, scores) = attention(part, width);
        let kept = |blocks: u64| blocks.saturating_add(outside.kept).saturating_mul(width);
        let all = sum(|b| b.kept);
        let once = if part.checkpointed {
            // Of every block what enters it, and all of the one that is being run again.
            sum(|b| b.entered.unwrap_or(0)).saturating_add(most(|b| b.kept))
        } else {
            all
        };
        let linear = Kept {
            all: kept(all),
            once: kept(once),
        };
        let logits = part.logits.saturating_mul(4 * LOGITS);
        let busy = layers.in_flight.saturating_mul(width).max(logits);
        Self {
            kept: linear + attended,
            busy: busy.saturating_add(part.scratch),
            scores,
            unpacked: layers.unpacked,
        }
    }
}

/// What the layers of a part keep, in values.
struct Layers<'a> {
    part: &'a PartShape,
    model: &'a ModelShape,
    learning: &'a BTreeSet<&'a str>,
    width: u64,
    outside: Block,
    blocks: BTreeMap<&'a str, Block>,
    in_flight: u64,
    unpacked: u64,
    /// Inputs of layers that are kept, each once.
    inputs: BTreeSet<String>,
}

impl<'a> Layers<'a> {
    fn of(
        part: &'a PartShape,
        model: &'a ModelShape,
        learning: &'a BTreeSet<&'a str>,
        width: u64,
    ) -> Self {
        let mut layers = Self {
            part,
            model,
            learning,
            width,
            outside: Block::default(),
            blocks: BTreeMap::new(),
            in_flight: 0,
            unpacked: 0,
            inputs: BTreeSet::new(),
        };
        // What goes into the next convolution that cuts pictures into patches.
        let mut pictures = part.pixels;
        for param in model.params.iter().filter(|p| part.holds(&p.path)) {
            if let ([channels, kernel @ ..], true) = (&param.shape[..], pictures > 0)
                && kernel.len() == 4
            {
                let patch = kernel.iter().product::<usize>().max(1) as u64;
                let out = (pictures / patch).saturating_mul(*channels as u64);
                layers.add_convolution(param, pictures, out);
                pictures = out;
            } else if let Some(map) = Map::of(param) {
                layers.add_map(param, &map);
            } else if let [rows, width] = param.shape[..]
                && layers.model.quantized.contains_key(&param.path)
            {
                // A table in which ids are looked up, as `f32`.
                let bytes = (rows as u64).saturating_mul(width as u64).saturating_mul(4);
                layers.unpacked = layers.unpacked.max(bytes);
            }
        }
        layers
    }

    fn learns(&self, path: &str) -> bool {
        self.learning.contains(path)
    }

    fn add_convolution(&mut self, param: &ResolvedParam, input: u64, output: u64) {
        if self.learns(&param.path) {
            // Its input, and its output before and after what follows it.
            let kept = input.saturating_add(output.saturating_mul(2));
            self.outside.kept = self.outside.kept.saturating_add(kept);
        }
    }

    fn add_map(&mut self, param: &'a ResolvedParam, map: &Map) {
        let (part, layer) = (self.part, map.layer.as_str());
        let learns = self.learns(&param.path);
        let adapted = self.learns(&format!("{layer}{}", FACTORS[0]));
        let rows = part.rows(&param.path);
        let [output, input] = [map.output, map.input].map(|n| rows.saturating_mul(n));
        let block = match block(&param.path) {
            Some(name) => self.blocks.entry(name).or_default(),
            None => &mut self.outside,
        };
        block.kept = block.kept.saturating_add(output);
        if map.factor {
            // A dropout hands on values of its own, and keeps what it multiplied them by. It works
            // where the adapter learns.
            if part.dropout && learns {
                block.kept = block.kept.saturating_add(input.saturating_mul(2));
            }
            return;
        }
        let keeps_input = learns || (adapted && !part.dropout);
        if keeps_input && self.inputs.insert(part.input_of(layer)) {
            block.kept = block.kept.saturating_add(input);
        }
        let passing = output.saturating_add(input).saturating_mul(IN_FLIGHT);
        self.in_flight = self.in_flight.max(passing);
        if rows > 0 {
            block.entered = Some(block.entered.unwrap_or(u64::MAX).min(input));
        }
        if self.model.quantized.contains_key(&param.path) {
            let floats = map.output.saturating_mul(map.input);
            let bytes = floats.saturating_mul(self.width);
            self.unpacked = self.unpacked.max(bytes);
        }
    }
}

/// What attention keeps besides its linear layers, and its scores.
fn attention(part: &PartShape, width: u64) -> (Kept, Kept) {
    let (mut attended, mut scores) = (Kept::default(), Kept::default());
    for a in &part.attention {
        let out = a.queries.saturating_mul(a.width).saturating_mul(width);
        let pairs = a.heads.saturating_mul(a.queries).saturating_mul(a.keys);
        // The exponentials in 32 bits, and the weights that values are multiplied by.
        let pairs = pairs.saturating_mul(4 + width);
        attended = attended + Kept::of(out, a.layers, part.checkpointed);
        scores = scores + Kept::of(pairs, a.layers, part.checkpointed);
    }
    (attended, scores)
}

impl Kept {
    /// Of so many layers.
    fn of(bytes: u64, layers: u64, checkpointed: bool) -> Self {
        let all = bytes.saturating_mul(layers);
        Self {
            all,
            once: if checkpointed { bytes } else { all },
        }
    }
}

/// A linear map, of a layer or of an adapter's first factor.
struct Map {
    /// Path of the layer.
    layer: String,
    output: u64,
    input: u64,
    factor: bool,
}

impl Map {
    fn of(param: &ResolvedParam) -> Option<Self> {
        let [output, input] = param.shape[..] else {
            return None;
        };
        let path = &param.path;
        // What the second factor gives is added to the output of the layer.
        let end = if is_factor(path) {
            FACTORS[0]
        } else {
            ".weight"
        };
        let layer = path.strip_suffix(end)?;
        if layer.contains("embed_tokens") || layer.contains("embeddings") {
            return None;
        }
        Some(Self {
            layer: layer.into(),
            output: output as u64,
            input: input as u64,
            factor: is_factor(path),
        })
    }
}

impl PartShape {
    /// A name for the input of a layer, which is that of all layers that read it.
    fn input_of(&self, layer: &str) -> String {
        if let Some(text) = self.shared.iter().find(|text| layer.contains(*text)) {
            return text.clone();
        }
        let (parent, name) = layer.rsplit_once('.').unwrap_or(("", layer));
        let shared = SHARED_INPUT.iter().find(|(later, _)| *later == name);
        format!("{parent}.{}", shared.map_or(name, |(_, first)| first))
    }
}

/// The block of a path: up to its first number.
fn block(path: &str) -> Option<&str> {
    let mut end = 0;
    for segment in path.split('.') {
        end += segment.len() + 1;
        if segment.bytes().all(|b| b.is_ascii_digit()) {
            return path.get(..end - 1);
        }
    }
    None
}
