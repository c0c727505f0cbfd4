//! Behaviour of the connectors beyond the reference's numbers.

mod common;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::params::gradients;
use common::{max_diff, random};
use tpo_core::traits::{Connector, Instruction, VisualShape};
use tpo_vision::{MlpConnectorConfig, QFormer, QFormerConfig, QFormerConnectorConfig, VisionError};

fn config() -> QFormerConfig {
    QFormerConfig::new(16, 3, 2, 24, 12)
        .with_vocab_size(20)
        .with_max_position_embeddings(6)
        .with_num_query_token(3)
        .with_extra_num_query_token(2)
        .with_initializer_range(0.2)
}

fn qformer(config: &QFormerConfig, device: &Device) -> QFormer {
    device.seed(5);
    config.init(device).unwrap()
}

fn ints(rows: &[&[i64]], device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(rows.concat(), [rows.len(), rows[0].len()]);
    Tensor::from_data(data, device)
}

fn instruction(ids: &[&[i64]], mask: &[&[i64]], device: &Device) -> Instruction {
    Instruction {
        ids: ints(ids, device),
        mask: ints(mask, device),
    }
}

#[test]
fn a_batch_is_its_samples() {
    let device = Device::flex();
    let qformer = qformer(&config(), &device);
    let features = random([2, 7, 12], &device);
    let text = instruction(
        &[&[0, 0, 4, 9], &[3, 7, 4, 9]],
        &[&[0, 0, 1, 1], &[1, 1, 1, 1]],
        &device,
    );
    let batch = qformer.forward(features.clone(), Some(&text)).unwrap();
    assert_eq!(batch.dims(), [2, 5, 16]);
    for i in 0..2 {
        let one = Instruction {
            ids: text.ids.clone().narrow(0, i, 1),
            mask: text.mask.clone().narrow(0, i, 1),
        };
        let single = qformer
            .forward(features.clone().narrow(0, i, 1), Some(&one))
            .unwrap();
        assert!(max_diff(batch.clone().narrow(0, i, 1), single) < 1e-5);
    }
}

#[test]
fn padding_is_not_read_but_consumes_positions() {
    let device = Device::flex();
    let qformer = qformer(&config(), &device);
    let features = random([1, 7, 12], &device);
    let run = |ids: &[i64], mask: &[i64]| {
        let text = instruction(&[ids], &[mask], &device);
        qformer.forward(features.clone(), Some(&text)).unwrap()
    };
    let padded = run(&[0, 0, 4, 9], &[0, 0, 1, 1]);
    let other_padding = run(&[8, 2, 4, 9], &[0, 0, 1, 1]);
    assert!(max_diff(padded.clone(), other_padding) < 1e-6);
    let unpadded = run(&[4, 9], &[1, 1]);
    assert!(max_diff(padded.clone(), unpadded) > 1e-4);
    let other_text = run(&[0, 0, 4, 10], &[0, 0, 1, 1]);
    assert!(max_diff(padded, other_text) > 1e-4);
}

#[test]
fn text_weights_are_unused_without_an_instruction() {
    let device = Device::flex().autodiff();
    let qformer = qformer(&config(), &device);
    let output = qformer.forward(random([1, 7, 12], &device), None).unwrap();
    let grads = gradients(&qformer, &output.square().sum().backward());
    assert!(grads.contains_key("bert.encoder.layer.0.intermediate_query.dense.weight"));
    assert!(grads.contains_key("extra_query_tokens"));
    for path in grads.keys() {
        assert!(
            !path.contains("word_embeddings")
                && !path.contains("position_embeddings")
                && !path.contains(".intermediate.")
                && !path.contains("layer.0.output."),
            "{path}"
        );
    }
}

#[test]
fn the_output_is_the_last_layer_at_the_queries() {
    let device = Device::flex();
    let qformer = qformer(&config(), &device);
    let features = random([2, 7, 12], &device);
    let mut inputs = 0;
    let last = qformer
        .hidden(features.clone(), None, |_| inputs += 1)
        .unwrap();
    assert_eq!(inputs, 3);
    let output = qformer.forward(features, None).unwrap();
    assert_eq!(max_diff(output, last), 0.0);
}

#[test]
fn dropout_acts_in_training_only() {
    let device = Device::flex().autodiff();
    let features = random([2, 7, 12], &device);
    for config in [
        config()
            .with_attention_probs_dropout_prob(0.0)
            .with_drop_path_rate(0.0),
        config()
            .with_hidden_dropout_prob(0.0)
            .with_drop_path_rate(0.0),
        config()
            .with_hidden_dropout_prob(0.0)
            .with_attention_probs_dropout_prob(0.0)
            .with_drop_path_rate(0.9),
    ] {
        let qformer = qformer(&config, &device);
        let run = || qformer.forward(features.clone(), None).unwrap();
        assert!(max_diff(run(), run()) > 1e-4, "{config}");
        let valid = qformer.valid();
        let run = || valid.forward(features.clone().inner(), None).unwrap();
        assert_eq!(max_diff(run(), run()), 0.0, "{config}");
    }
}

#[test]
fn attention_under_dropout_is_the_same_attention() {
    // A dropout that practically never drops takes the path that holds the weights.
    let device = Device::flex().autodiff();
    let config = config()
        .with_hidden_dropout_prob(0.0)
        .with_drop_path_rate(0.0)
        .with_attention_probs_dropout_prob(1e-12);
    let qformer = qformer(&config, &device);
    let features = random([1, 7, 12], &device);
    let text = instruction(&[&[0, 4, 9]], &[&[0, 1, 1]], &device);
    let trained = qformer.forward(features.clone(), Some(&text)).unwrap();
    let plain = qformer.freeze().forward(features, Some(&text)).unwrap();
    assert!(max_diff(trained, plain) < 1e-5);
}

#[test]
fn video_queries_can_be_left_out() {
    let device = Device::flex();
    let qformer = qformer(&config().with_extra_num_query_token(0), &device);
    let output = qformer.forward(random([1, 7, 12], &device), None).unwrap();
    assert_eq!(output.dims(), [1, 3, 16]);
}

#[test]
fn unusable_inputs_are_errors() {
    let device = Device::flex();
    let qformer = qformer(&config(), &device);
    let features = random([1, 7, 12], &device);
    let run = |text: &Instruction| qformer.forward(features.clone(), Some(text)).unwrap_err();

    let wrong_width = qformer.forward(random([1, 7, 13], &device), None);
    assert!(matches!(wrong_width, Err(VisionError::Shape { .. })));
    let two_rows = instruction(&[&[1], &[2]], &[&[1], &[1]], &device);
    assert!(matches!(run(&two_rows), VisionError::Shape { .. }));
    let short_mask = instruction(&[&[1, 2]], &[&[1]], &device);
    assert!(matches!(run(&short_mask), VisionError::Shape { .. }));
    let long = instruction(&[&[1; 7]], &[&[1; 7]], &device);
    let error = run(&long).to_string();
    assert!(
        error.contains("7 tokens") && error.contains("6 positions"),
        "{error}"
    );
    for id in [20, -1] {
        let unknown = instruction(&[&[3, id]], &[&[1, 1]], &device);
        let error = run(&unknown).to_string();
        assert!(error.contains(&format!("token id {id} is outside the vocabulary of 20")));
    }
}

#[test]
fn the_connector_projects_its_queries() {
    let device = Device::flex();
    device.seed(2);
    let connector = QFormerConnectorConfig::new(config(), 10)
        .with_unused_projections(true)
        .init(&device)
        .unwrap();
    let features = random([2, 7, 12], &device);
    let videos = [VisualShape::video((8, 8), 4); 2];
    let output = connector.connect(features.clone(), &videos, None).unwrap();
    assert_eq!(output.counts, [5, 5]);
    let output: Tensor<3> = output.rows.reshape([2, 5, 10]);
    let queries = connector.qformer.forward(features, None).unwrap();
    let weight = connector.project_up.weight.val().transpose().unsqueeze();
    assert!(max_diff(queries.matmul(weight), output) < 1e-5);
    assert_eq!(connector.project_down.unwrap().shape(), (16, 10));
    assert_eq!(connector.merge_proj.unwrap().shape(), (10, 64));
    assert!(matches!(
        QFormerConnectorConfig::new(config(), 0).init(&device),
        Err(VisionError::Config { .. })
    ));
}

#[test]
fn the_mlp_maps_every_token() {
    let device = Device::flex();
    let mut connector = MlpConnectorConfig::new(2, 2).init(&device).unwrap();
    let eye = || Tensor::<2>::eye(2, &device);
    connector.linear_1.weight = eye().into();
    connector.linear_2.weight = (eye() * 2.0).into();
    let features = Tensor::<3>::from_floats([[[0.0, 1.0], [-1.0, 3.0]]], &device);
    let output = connector.forward(features).unwrap();
    // 2·GELU(x) with GELU(1) = 0.841345, GELU(-1) = -0.158655, GELU(3) = 2.995950.
    let expected = Tensor::<3>::from_floats([[[0.0, 1.682690], [-0.317310, 5.991901]]], &device);
    assert!(max_diff(output, expected) < 1e-4);
    let image = [VisualShape::image((8, 8))];
    let rows = connector.connect(random([1, 7, 2], &device), &image, None);
    assert_eq!(rows.unwrap().counts, [7]);
    let wrong = connector.forward(random([1, 2, 3], &device));
    assert!(matches!(wrong, Err(VisionError::Shape { .. })));
}
