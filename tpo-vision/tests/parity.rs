//! Values and gradients against the reference implementation, in f32 on the CPU.

mod common;

use burn::tensor::Device;
use common::{assert_within, fixture, parity};

#[test]
fn umt_at_224_pixels() {
    let device = Device::flex().autodiff();
    assert_within(&parity::umt(&fixture("vit_video224"), &device));
}

#[test]
fn umt_with_a_resized_position_table() {
    let device = Device::flex().autodiff();
    assert_within(&parity::umt(&fixture("vit_video_table2"), &device));
}

#[test]
fn full_size_position_tables() {
    let comparisons = parity::position_tables(&fixture("vit_posembed_fullsize"));
    assert_eq!(comparisons.len(), 3);
    assert_within(&comparisons);
}

#[test]
fn qformer_with_and_without_instruction() {
    let device = Device::flex().autodiff();
    assert_within(&parity::qformer(&fixture("qformer"), &device));
}

#[test]
fn qformer_norm_epsilon() {
    let comparisons = parity::qformer_small_amplitude(
        &fixture("small_amplitude"),
        &fixture("qformer"),
        &Device::flex(),
    );
    assert_within(&comparisons);
}
