//! From videos and images to embeddings, each of its own number of rows.

use burn::tensor::{Int, Tensor};

use super::TpoModel;
use crate::error::{CoreError, Result};
use crate::gradient_checkpointing::Tape;
use crate::head::HeadSet;
use crate::ops::indices;
use crate::threads::in_pool;
use crate::traits::{
    Connector, Instruction, LanguageModel, VisionEncoder, VisualInput, VisualRows, VisualShape,
};

impl<V, C, L, H> TpoModel<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Encodes visuals; `None` without any. Those whose pixels are of one shape go through the
    /// encoder together.
    ///
    /// # Errors
    /// Those of encoder and connector; [`CoreError::SlotCount`] when the connector leaves one out.
    pub fn encode_visuals(
        &self,
        visuals: Vec<VisualInput>,
        instruction: Option<&Instruction>,
    ) -> Result<Option<VisualRows>> {
        in_pool(|| self.encode_with(visuals, instruction, None))
    }

    pub(super) fn encode_with<'m>(
        &'m self,
        visuals: Vec<VisualInput>,
        instruction: Option<&Instruction>,
        mut tape: Option<&mut Tape<'m>>,
    ) -> Result<Option<VisualRows>> {
        let mut groups: Vec<([usize; 4], Vec<usize>)> = Vec::new();
        for (i, visual) in visuals.iter().enumerate() {
            let dims = visual.pixels.dims();
            match groups.iter_mut().find(|(d, _)| *d == dims) {
                Some((_, members)) => members.push(i),
                None => groups.push((dims, vec![i])),
            }
        }
        if let [_] = &groups[..] {
            return self.encode_group(visuals, instruction, tape).map(Some);
        }
        // Rows of every visual, in its place.
        let mut parts: Vec<Option<Tensor<2>>> = vec![None; visuals.len()];
        for (_, members) in &groups {
            let some = members.iter().map(|i| visuals[*i].clone()).collect();
            let instruction = instruction.map(|all| all.select(members));
            let found = self.encode_group(some, instruction.as_ref(), tape.as_deref_mut())?;
            let mut start = 0;
            for (i, count) in members.iter().zip(&found.counts) {
                parts[*i] = Some(found.rows.clone().narrow(0, start, *count));
                start += count;
            }
        }
        let parts: Vec<Tensor<2>> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(VisualRows {
            counts: parts.iter().map(|p| p.dims()[0]).collect(),
            rows: Tensor::cat(parts, 0),
        }))
    }

    /// Encodes visuals whose pixels are of one shape.
    fn encode_group<'m>(
        &'m self,
        visuals: Vec<VisualInput>,
        instruction: Option<&Instruction>,
        tape: Option<&mut Tape<'m>>,
    ) -> Result<VisualRows> {
        let shapes: Vec<VisualShape> = visuals.iter().map(|v| v.shape).collect();
        let mut pixels: Vec<Tensor<5>> = visuals
            .into_iter()
            .map(|v| v.pixels.unsqueeze_dim(0))
            .collect();
        let frames = match pixels.len() {
            1 => pixels.remove(0),
            _ => Tensor::cat(pixels, 0),
        };
        let features = match tape {
            Some(tape) => self.vision.encode_checkpointed(frames, tape)?,
            None => self.vision.encode(frames)?,
        };
        let found = self.connector.connect(features, &shapes, instruction)?;
        let (rows, counted) = (found.rows.dims()[0], found.counts.iter().sum::<usize>());
        for (what, slots, found) in [
            (
                "visuals out of the connector",
                shapes.len(),
                found.counts.len(),
            ),
            ("rows out of the connector", counted, rows),
        ] {
            if slots != found {
                return Err(CoreError::SlotCount {
                    what: what.into(),
                    slots,
                    found,
                });
            }
        }
        Ok(found)
    }
}

impl VisualRows {
    /// Checks that every sample has slots for all rows of its visuals, which come in order.
    pub(super) fn check_slots(&self, slots: &[Vec<bool>]) -> Result<()> {
        let mut counts = self.counts.iter();
        for (sample, slots) in slots.iter().enumerate() {
            let slots = slots.iter().filter(|s| **s).count();
            let mut found = 0;
            while found < slots {
                match counts.next() {
                    Some(count) => found += count,
                    None => break,
                }
            }
            if found != slots {
                return Err(CoreError::SlotCount {
                    what: format!("visual slots in sample {sample}"),
                    slots,
                    found,
                });
            }
        }
        let left: usize = counts.sum();
        if left == 0 {
            return Ok(());
        }
        Err(CoreError::SlotCount {
            what: "visual slots, after those of all samples,".into(),
            slots: 0,
            found: left,
        })
    }
}

impl Instruction {
    /// The instructions of some visuals of the batch.
    fn select(&self, members: &[usize]) -> Self {
        let pick = |rows: &Tensor<2, Int>| {
            rows.clone()
                .select(0, indices(members.iter().copied(), &rows.device()))
        };
        Self {
            ids: pick(&self.ids),
            mask: pick(&self.mask),
        }
    }
}
