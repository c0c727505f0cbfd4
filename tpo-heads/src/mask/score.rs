//! What the mask head's answers are worth during training.

use tpo_core::Result;
use tpo_core::geometry::Mask;
use tpo_core::head::{HeadContext, HeadMetric};

use super::decode::{auxiliary_boxes, decode};
use super::head::{MaskHead, MaskOutput};
use super::target::{MaskTarget, coverage};

pub(super) fn mask_metrics(
    head: &MaskHead,
    output: MaskOutput,
    targets: &[MaskTarget],
    context: &HeadContext<'_>,
) -> Result<Vec<HeadMetric>> {
    let mut boxes = Vec::with_capacity(targets.len());
    let found = auxiliary_boxes(output.area.clone());
    for (i, (found, target)) in found.iter().zip(targets).enumerate() {
        boxes.push(f64::from(found.iou(&target.first_box(i)?)));
    }
    let mut masks = Vec::new();
    // Following an object through a video is the dear part: only where there is something to
    // compare it with.
    for (token, target) in targets
        .iter()
        .enumerate()
        .filter(|(_, t)| !t.masks.is_empty())
    {
        let one = MaskOutput {
            prompt: output.prompt.clone().narrow(0, token, 1),
            area: output.area.clone().narrow(0, token, 1),
        };
        let row = [context.rows.get(token).copied().unwrap_or(token)];
        let context = HeadContext {
            samples: context.samples,
            rows: &row,
        };
        for answer in decode(head, one, &context)? {
            let mut ious = Vec::with_capacity(target.masks.len());
            for truth in &target.masks {
                let found = answer.frames.iter().find(|f| f.frame == truth.frame);
                ious.push(match found {
                    Some(found) => similarity(&found.mask.decode()?, &truth.mask.decode()?)?,
                    None => 0.0,
                });
            }
            masks.push(ious.iter().sum::<f64>() / ious.len() as f64);
        }
    }
    Ok([
        HeadMetric::mean_of("box_iou", boxes),
        HeadMetric::mean_of("mask_iou", masks),
    ]
    .into_iter()
    .flatten()
    .collect())
}

/// IoU at the size of `found`; 1 where both are empty, as DAVIS has it.
fn similarity(found: &Mask, truth: &Mask) -> Result<f64> {
    let (height, width) = found.size();
    let cover = coverage(truth, height, width)?;
    let (mut both, mut either) = (0_usize, 0_usize);
    for (found, cover) in found.0.iter().zip(cover) {
        let truth = cover >= 0.5;
        both += usize::from(*found && truth);
        either += usize::from(*found || truth);
    }
    Ok(match either {
        0 => 1.0,
        n => both as f64 / n as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let size = (rows.len(), rows[0].len());
        Mask(ndarray::Array2::from_shape_fn(size, |(y, x)| {
            rows[y].as_bytes()[x] == b'#'
        }))
    }

    #[test]
    fn similarity_by_hand() {
        let found = mask(&["##..", "##..", "....", "...."]);
        assert_eq!(similarity(&found, &found).unwrap(), 1.0);
        // The truth at half the resolution covers the two upper quarters.
        assert_eq!(similarity(&found, &mask(&["##", ".."])).unwrap(), 0.5);
        let nothing = mask(&["....", "....", "....", "...."]);
        assert_eq!(similarity(&nothing, &mask(&["..", ".."])).unwrap(), 1.0);
        assert_eq!(similarity(&nothing, &found).unwrap(), 0.0);
    }
}
