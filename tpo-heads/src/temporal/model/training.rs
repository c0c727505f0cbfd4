//! The part of CG-DETR that only its losses need: foreign texts, moments, sentences.

use burn::tensor::{Bool, FloatDType, Tensor, TensorData};
use tpo_core::ops::{floats, indices};

use super::masks::padding;
use super::network::{CgDetr, CgDetrOutput};
use super::t2v::TextKeys;
use super::transformer::VideoTokens;

/// What a training pass is told beside the batch.
#[derive(Debug, Clone)]
pub struct TrainingInput {
    /// Whether a clip belongs to the moment, `[batch][clips]`, padding included.
    pub relevant: Vec<Vec<bool>>,
    /// For every sample whether the text of the next sample (cyclically) belongs to another video.
    pub real_negative: Vec<bool>,
}

/// Scores of videos under the text of another sample.
#[derive(Debug, Clone)]
pub struct Negatives {
    /// Their samples, in order.
    pub rows: Vec<usize>,
    /// Saliency `[rows, clips]`.
    pub saliency: Tensor<2>,
    /// Share of the attention that went to the text, 0–1, `[rows, clips]`.
    pub text_attention: Tensor<2>,
}

/// What the losses read besides [`CgDetrOutput`].
#[derive(Debug, Clone)]
pub struct CgDetrTraining {
    /// `None` when no sample has a foreign text.
    pub negatives: Option<Negatives>,
    /// Sum of the moment's clips `[batch, d_model]`.
    pub moment: Tensor<2>,
    /// Sum of the other clips `[batch, d_model]`.
    pub other: Tensor<2>,
    /// Clips as the moment encoder sees them: of the moment from its pass, others from the other
    /// pass, `[batch, clips, d_model]`.
    pub clips: Tensor<3>,
    /// Sum of the text `[batch, d_model]`.
    pub sentence: Tensor<2>,
    /// Sum of the dummies `[batch, d_model]`.
    pub dummy_sentence: Tensor<2>,
    /// Clips of the moment pass against encoded dummies and text
    /// `[batch, clips, dummies + tokens + 1]`.
    pub moment_similarity: Tensor<3>,
    /// The same of the other pass. No loss reads it (reference implementation).
    pub other_similarity: Tensor<3>,
    /// 1 for clips of the moment `[batch, clips]`.
    pub relevant: Tensor<2>,
}

impl CgDetr {
    /// The training pass behind `output`.
    ///
    /// `input` has one entry per sample and, in `relevant`, per padded clip.
    pub fn training(&self, output: &CgDetrOutput, input: &TrainingInput) -> CgDetrTraining {
        let [batch, clips, d] = output.video.values.dims();
        let device = output.video.values.device();
        let dtype = output.video.values.dtype();

        let one = |p: Tensor<1>| p.reshape([1, 1, d]).expand([batch, 1, d]);
        // Sentences: text and dummies each with a token in front.
        let token = one(self.sent_rep_token.val());
        let position = one(self.sent_rep_pos.val());
        let tokens = output.text.dims()[1];
        let words = self.scls_encoder.forward(
            Tensor::cat(vec![token.clone(), output.text.clone()], 1),
            Tensor::cat(vec![position.clone(), output.text_positions.clone()], 1),
            Some(padding(&output.text_lengths, 1, tokens, &device)),
        );
        let dummies = self.config.num_dummies;
        let dummy_positions = self
            .dummy_rep_pos
            .val()
            .reshape([1, dummies, d])
            .expand([batch, dummies, d]);
        let dummy_words = self.scls_encoder.forward(
            Tensor::cat(vec![token, output.dummy_tokens.clone()], 1),
            Tensor::cat(vec![position, dummy_positions], 1),
            None,
        );
        let first = |x: &Tensor<3>| x.clone().narrow(1, 0, 1).reshape([batch, d]);
        let sentence = first(&words);
        let dummy_sentence = first(&dummy_words);
        let texts = Tensor::cat(
            vec![
                dummy_words.narrow(1, 1, dummies),
                words.narrow(1, 1, tokens),
            ],
            1,
        );

        // Moments: the clips of the moment and the others, as two halves of one batch.
        let hidden: Vec<bool> = [true, false]
            .into_iter()
            .flat_map(|moment| {
                input.relevant.iter().zip(&output.video_lengths).flat_map(
                    move |(relevant, &length)| {
                        let clip = move |(at, &r): (usize, &bool)| at >= length || r != moment;
                        std::iter::once(false).chain(relevant.iter().enumerate().map(clip))
                    },
                )
            })
            .collect();
        let hidden = TensorData::new(hidden, [2 * batch, 1 + clips]);
        let hidden = Tensor::<2, Bool>::from_data(hidden, &device);
        let twice = |x: Tensor<3>| x.repeat_dim(0, 2);
        let both = self.transformer.mcls_encoder.forward(
            twice(Tensor::cat(
                vec![
                    one(self.moment_rep_token.val()),
                    output.video.values.clone(),
                ],
                1,
            )),
            twice(Tensor::cat(
                vec![
                    one(self.moment_rep_pos.val()),
                    output.video.positions.clone(),
                ],
                1,
            )),
            Some(hidden),
        );
        let pass = |half: usize| both.clone().narrow(0, half * batch, batch);
        let (moment, other) = (pass(0), pass(1));
        let frames = |x: &Tensor<3>| x.clone().narrow(1, 1, clips);
        let flags: Vec<f32> = input
            .relevant
            .iter()
            .flatten()
            .map(|r| *r as u8 as f32)
            .collect();
        let relevant = floats(flags, [batch, clips], &device).cast(dtype);
        let side = relevant.clone().reshape([batch, clips, 1]);
        let (in_moment, in_other) = (frames(&moment), frames(&other));
        let texts = texts.swap_dims(1, 2);
        let f32 = FloatDType::F32;
        CgDetrTraining {
            negatives: self.negatives(output, &input.real_negative),
            moment: first(&moment).cast(f32),
            other: first(&other).cast(f32),
            moment_similarity: in_moment.clone().matmul(texts.clone()).cast(f32),
            other_similarity: in_other.clone().matmul(texts).cast(f32),
            clips: (in_moment * side.clone() + in_other * (side.neg().add_scalar(1.0))).cast(f32),
            sentence: sentence.cast(f32),
            dummy_sentence: dummy_sentence.cast(f32),
            relevant: relevant.cast(f32),
        }
    }

    /// The videos of the marked samples under the text of the next sample. Their spans are not
    /// decoded: nothing reads them.
    fn negatives(&self, output: &CgDetrOutput, real: &[bool]) -> Option<Negatives> {
        let rows: Vec<usize> = (0..real.len()).filter(|b| real[*b]).collect();
        if rows.is_empty() {
            return None;
        }
        let batch = real.len();
        let next: Vec<usize> = rows.iter().map(|b| (b + 1) % batch).collect();
        let device = output.video.values.device();
        let index = |rows: &[usize]| indices(rows.iter().copied(), &device);
        let (own, foreign) = (index(&rows), index(&next));
        let lengths = |all: &[usize], rows: &[usize]| -> Vec<usize> {
            rows.iter().map(|r| all[*r]).collect()
        };
        let video_lengths = lengths(&output.video_lengths, &rows);
        let text_lengths = lengths(&output.text_lengths, &next);

        let v = &output.video;
        let clips = v.values.dims()[1];
        let pick = |x: &Tensor<3>| x.clone().select(0, own.clone());
        let video = VideoTokens {
            values: pick(&v.values),
            positions: pick(&v.positions),
            mask: v.mask.clone().select(0, own.clone()),
            padding: padding(&video_lengths, 0, clips, &device),
            padding_with_token: padding(&video_lengths, 1, clips, &device),
            context: pick(&v.context),
        };
        let [_, tokens, d] = output.text.dims();
        let (dummies, n) = (self.config.num_dummies, rows.len());
        let borrow = |x: &Tensor<3>| x.clone().select(0, foreign.clone());
        // The reference keeps the positions of the sample's own text.
        let dummy_positions = self.dummy_rep_pos.val().reshape([1, dummies, d]);
        let keys = TextKeys {
            values: Tensor::cat(vec![borrow(&output.dummy_tokens), borrow(&output.text)], 1),
            positions: Tensor::cat(
                vec![
                    dummy_positions.expand([n, dummies, d]),
                    pick(&output.text_positions),
                ],
                1,
            ),
            hidden: self.key_mask(&video_lengths, &text_lengths, [clips, tokens], &device),
            dummies,
        };
        let encoded = self.transformer.encode(&video, &keys, &self.prompts());
        Some(Negatives {
            saliency: self.saliency(&encoded).cast(FloatDType::F32),
            text_attention: self
                .text_attention(&encoded, &text_lengths)
                .cast(FloatDType::F32),
            rows,
        })
    }
}
