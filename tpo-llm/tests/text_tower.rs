//! The text tower: padding, merged adapters, errors.

use burn::tensor::{Device, Tensor};
use tpo_llm::{LlmError, TextTower, TextTowerConfig};

fn tower() -> TextTower {
    let mut tower = TextTowerConfig::mini(50).init(&Device::flex()).unwrap();
    // Adapters start at zero; give them something to do.
    for layer in &mut tower.transformer.model.layers {
        for linear in [&mut layer.self_attn.q_proj, &mut layer.self_attn.v_proj] {
            let lora = linear.lora.as_mut().unwrap();
            lora.b = lora.b.clone().map(|b| b + 0.02);
        }
        assert!(layer.self_attn.k_proj.lora.is_none() && layer.mlp.up_proj.lora.is_none());
    }
    tower
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn padding_changes_nothing() {
    let tower = tower();
    let ids = [1, 7, 9, 2];
    let features = tower.features(&ids).unwrap();
    assert_eq!(features.dims(), [4, 96]);
    let padded = tower.features(&[1, 7, 9, 2, 0, 0, 0]).unwrap();
    assert_eq!(values(features), values(padded));
    let pooled = tower.clip_embedding(&ids).unwrap();
    assert_eq!(pooled.dims(), [64]);
    // Padding inside shortens the features at their end, as the reference does.
    assert_eq!(tower.features(&[1, 0, 9, 2]).unwrap().dims(), [3, 96]);
}

#[test]
fn merged_adapters_give_the_same_features() {
    let tower = tower();
    let plain = TextTowerConfig::mini(50);
    let ids = [1, 3, 5, 8, 2];
    let unmerged = values(tower.features(&ids).unwrap());
    let base = values(plain.init(&Device::flex()).unwrap().features(&ids).unwrap());
    assert!(!close(&unmerged, &base));
    assert!(close(
        &unmerged,
        &values(tower.merge_lora().features(&ids).unwrap())
    ));
}

#[test]
fn ids_that_cannot_be_read_are_errors() {
    let tower = tower();
    for ids in [&[][..], &[0, 0]] {
        let error = tower.features(ids).unwrap_err();
        assert!(matches!(error, LlmError::Shape { .. }), "{error}");
    }
    let error = tower.clip_embedding(&[1, 50]).unwrap_err();
    assert!(
        matches!(error, LlmError::UnknownTokenId { id: 50, .. }),
        "{error}"
    );
    let mut config = TextTowerConfig::mini(50);
    config.decoder.tie_word_embeddings = false;
    assert!(config.init(&Device::flex()).is_err());
}
