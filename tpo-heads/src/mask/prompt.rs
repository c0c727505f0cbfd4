//! Boxes as prompt tokens of SAM 2, and boxes in questions.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::{BoxPixels, BoxXyxy};
use tpo_core::head::Sample;
use tpo_core::{CoreError, Result};

use super::sam2::{PointPrompt, PromptEncoder};
use crate::HeadsError;

/// Tokens of a box prompt: two corners and one padding point (reference implementation).
pub const BOX_TOKENS: usize = 3;

/// What prompts SAM 2 when an answer is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    /// The box of the question if it has one, through SAM 2's own prompt encoder, else the task
    /// token (the reference's demonstration).
    QuestionBox,
    /// Always the task token (the reference's `generate_seg`).
    TaskToken,
}

/// The prompt tokens of boxes, `[boxes, 3, dim]`: corners in pixels of the model's image and a
/// padding point, as the reference makes the targets of the adapter.
///
/// # Errors
/// [`HeadsError::NotFinite`].
pub fn box_tokens(encoder: &PromptEncoder, boxes: &[BoxXyxy]) -> Result<Tensor<3>, HeadsError> {
    let [height, width] = encoder.config().image_size.map(|side| side as f32);
    let corners: Vec<Vec<PointPrompt>> = boxes
        .iter()
        .map(|b| PointPrompt::corners(&b.to_pixels(width, height)).to_vec())
        .collect();
    encoder.embed_points(&corners)
}

/// The first `[x0, y0, x1, y1]` of a text; brackets that hold anything else are passed over.
pub fn box_in_text(text: &str) -> Option<[f32; 4]> {
    text.split('[').skip(1).find_map(|rest| {
        let (inside, _) = rest.split_once(']')?;
        let numbers: Vec<f32> = inside
            .split(',')
            .map(|n| n.trim().parse().ok())
            .collect::<Option<_>>()?;
        numbers.try_into().ok()
    })
}

/// The box a question is about, normalised: [`Sample::boxes`], of several the first, or
/// else `[x0,y0,x1,y1]` in pixels of the source in the words of the question (reference
/// implementation).
///
/// # Errors
/// [`CoreError::InvalidBox`]; [`CoreError::MissingInput`] for a box in words when the size of the
/// source is not known.
pub fn question_box(head: &str, sample: &Sample) -> Result<Option<BoxXyxy>> {
    if let Some(area) = sample.boxes.first() {
        return area.check("box of the question").map(Some);
    }
    let Some(found) = sample.query.as_deref().and_then(box_in_text) else {
        return Ok(None);
    };
    let (width, height) = sample.size.ok_or_else(|| CoreError::MissingInput {
        head: head.into(),
        what: "the size of the video or image in pixels",
        hint: "ask about a video or an image (Sample::size)",
    })?;
    let (width, height) = (width as f32, height as f32);
    let pixels = BoxPixels::from(found).check("box in the question", width, height)?;
    Ok(Some(pixels.to_normalised(width, height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_in_words() {
        for (text, expected) in [
            ("follow [1, 2,3.5 ,4] please", Some([1.0, 2.0, 3.5, 4.0])),
            (
                "see [1] and [a,b,c,d] and [5,6,7,8]",
                Some([5.0, 6.0, 7.0, 8.0]),
            ),
            ("[1,2,3]", None),
            ("[1,2,3,4", None),
            ("[[1,2,3,4]]", Some([1.0, 2.0, 3.0, 4.0])),
            ("]1,2,3,4[", None),
            ("", None),
        ] {
            assert_eq!(box_in_text(text), expected, "{text}");
        }
    }

    #[test]
    fn a_question_box_is_checked_and_normalised() {
        let sample = |query: &str, size| Sample {
            query: Some(query.into()),
            size,
            ..Sample::default()
        };
        let found = question_box("mask", &sample("[10,20,30,40]", Some((100, 50)))).unwrap();
        assert_eq!(found.unwrap().to_array(), [0.1, 0.4, 0.3, 0.8]);
        assert!(question_box("mask", &sample("[10,20,30,40]", None)).is_err());
        assert!(question_box("mask", &sample("[10,20,10,40]", Some((100, 50)))).is_err());
        assert!(question_box("mask", &sample("[10,20,300,40]", Some((100, 50)))).is_err());
        assert_eq!(question_box("mask", &sample("what?", None)).unwrap(), None);
        let boxes = [BoxXyxy::from([0.1, 0.1, 0.2, 0.2])];
        let given = Sample {
            boxes: boxes.to_vec(),
            ..sample("[10,20,30,40]", Some((100, 50)))
        };
        assert_eq!(question_box("mask", &given).unwrap(), Some(boxes[0]));
    }
}
