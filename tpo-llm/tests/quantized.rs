//! A quantised decoder against the one with the elements it stands for.

use burn::module::Param;
use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor};
use tpo_core::nn::Weight;
use tpo_core::ops::QuantFormat;
use tpo_core::traits::LanguageModel;
use tpo_core::weights::{
    Checkpoint, DtypePolicy, KeyRules, LoadOptions, SaveOptions, WeightsError, load_module,
    save_module,
};
use tpo_llm::{CausalLm, LlmConfig, LoraConfig, VocabularyRows};

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];

/// Widths of whole blocks, of two and a half and three.
fn config() -> LlmConfig {
    let targets = ["q_proj", "v_proj", "up_proj", "down_proj"].map(String::from);
    LlmConfig::new(41, 64, 96, 2, 4, 2, 16).lora(LoraConfig::new(3, 6.0, targets.to_vec()))
}

fn rules() -> KeyRules {
    KeyRules::new().lora("default")
}

/// Writes a model in 32 bits whose adapters are not zero.
fn float_model(config: &LlmConfig, dir: &std::path::Path, device: &Device) -> CausalLm {
    device.seed(5);
    let mut lm = config.init(device).unwrap();
    for block in &mut lm.model.layers {
        for linear in [&mut block.self_attn.q_proj, &mut block.mlp.down_proj] {
            let lora = linear.lora.as_mut().unwrap();
            let shape = lora.b.lazy_shape().dims::<2>();
            let random = Tensor::random(shape, Distribution::Normal(0.0, 0.2), device);
            lora.b = Param::from_tensor(random);
        }
    }
    save_module(&lm, &rules(), dir, &SaveOptions::default()).unwrap();
    lm
}

fn open(
    config: &LlmConfig,
    dir: &std::path::Path,
    format: QuantFormat,
    device: &Device,
) -> Result<CausalLm, WeightsError> {
    let config = config.clone().with_quantization(Some(format));
    let model = config.init(device).unwrap();
    let checkpoint = Checkpoint::open(dir)?;
    Ok(load_module(model, &checkpoint, &rules(), &LoadOptions::default())?.0)
}

/// The same model with the elements that its quantised weights stand for.
fn dequantised(mut lm: CausalLm) -> CausalLm {
    for block in &mut lm.model.layers {
        let (attention, mlp) = (&mut block.self_attn, &mut block.mlp);
        for linear in [
            &mut attention.q_proj,
            &mut attention.k_proj,
            &mut attention.v_proj,
            &mut attention.o_proj,
            &mut mlp.gate_proj,
            &mut mlp.up_proj,
            &mut mlp.down_proj,
        ] {
            assert!(linear.weight.format().is_some());
            linear.weight = linear.weight.val().into();
        }
    }
    let output = match lm.lm_head.own_mut() {
        Some(head) => &mut head.weight,
        None => &mut lm.model.embed_tokens.weight,
    };
    assert_eq!(output.format(), Some(QuantFormat::Q8_0));
    *output = output.val().into();
    lm
}

fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    let norm = b.clone().square().sum().sqrt().into_scalar::<f32>();
    (a - b).square().sum().sqrt().into_scalar::<f32>() / norm
}

#[test]
fn outputs_and_adapter_gradients_are_those_of_the_dequantised_model() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex().autodiff();
    let float = float_model(&config(), dir.path(), &device);
    for (format, limit) in FORMATS.into_iter().zip([0.01, 0.2]) {
        let quantised = open(&config(), dir.path(), format, &device).unwrap();
        let plain = dequantised(quantised.clone());
        for rows in [1, 3] {
            let embeds = Tensor::<3>::random([rows, 70, 64], Distribution::Default, &device);
            let run = |lm: &CausalLm| {
                let embeds = embeds.clone().require_grad();
                let logits = lm.logits(lm.hidden(embeds.clone(), None).unwrap());
                let grads = logits.clone().square().mean().backward();
                let lora = |block: usize| {
                    let lora = lm.model.layers[block].mlp.down_proj.lora.as_ref().unwrap();
                    (
                        lora.a.val().grad(&grads).unwrap(),
                        lora.b.val().grad(&grads).unwrap(),
                    )
                };
                (logits, embeds.grad(&grads).unwrap(), lora(0), lora(1))
            };
            let (ours, theirs) = (run(&quantised), run(&plain));
            // Every layer rounds its input to 16 bits: 3e-5 of it.
            assert!(distance(ours.0.clone(), theirs.0) < 2e-4, "{format:?}");
            assert!(distance(ours.1, theirs.1) < 5e-4, "{format:?}");
            for (ours, theirs) in [(ours.2, theirs.2), (ours.3, theirs.3)] {
                assert!(distance(ours.0, theirs.0) < 5e-4, "{format:?}");
                assert!(distance(ours.1, theirs.1) < 5e-4, "{format:?}");
            }
            // And near the model in 32 bits.
            let error = distance(ours.0, run(&float).0);
            assert!(error < limit, "{format:?}: {error}");
        }
        let baked = quantised.clone().bake_lora();
        let embeds = Tensor::<3>::random([1, 9, 64], Distribution::Default, &device);
        let logits = |lm: &CausalLm| lm.logits(lm.hidden(embeds.clone(), None).unwrap());
        let error = distance(logits(&baked), logits(&quantised));
        assert!(
            baked.model.layers[0].mlp.down_proj.lora.is_none() && error < limit,
            "{error}"
        );
    }
}

#[test]
fn a_quantised_file_loads_strictly_and_is_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    float_model(&config(), dir.path(), &device);
    for (format, other) in FORMATS.into_iter().zip(FORMATS.into_iter().rev()) {
        let lm = open(&config(), dir.path(), format, &device).unwrap();
        let small = tempfile::tempdir().unwrap();
        save_module(&lm, &rules(), small.path(), &SaveOptions::default()).unwrap();
        let names = Checkpoint::open(small.path()).unwrap();
        let keys: Vec<&str> = names.tensors().map(|t| t.key.as_str()).collect();
        assert!(keys.contains(&"model.layers.0.self_attn.q_proj.base_layer.weight.packed"));
        assert!(keys.contains(&"model.layers.1.self_attn.k_proj.weight.packed"));

        let again = open(&config(), small.path(), format, &device).unwrap();
        let embeds = Tensor::<3>::random([2, 5, 64], Distribution::Default, &device);
        let logits = |lm: &CausalLm| lm.logits(lm.hidden(embeds.clone(), None).unwrap());
        assert_eq!(logits(&again).into_data(), logits(&lm).into_data());
        // A file in one format does not pass for the other, nor for floats.
        let refused = open(&config(), small.path(), other, &device).unwrap_err();
        let WeightsError::Refused(refusal) = refused else {
            panic!("{refused}");
        };
        assert_eq!(refusal.mismatched.len(), 14);
        let plain = config().init(&device).unwrap();
        let refused = load_module(plain, &names, &rules(), &LoadOptions::default());
        assert!(matches!(refused, Err(WeightsError::Refused(_))));
    }
}

#[test]
fn a_cast_leaves_packed_words_alone() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    float_model(&config(), dir.path(), &device);
    let words = |dtype| {
        let model = config().with_quantization(Some(QuantFormat::Q8_0));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let options = LoadOptions {
            dtype: DtypePolicy::Cast(dtype),
            ..LoadOptions::default()
        };
        let model = model.init(&device).unwrap();
        let (lm, _) = load_module(model, &checkpoint, &rules(), &options).unwrap();
        match lm
            .model
            .layers
            .into_iter()
            .next()
            .unwrap()
            .mlp
            .up_proj
            .weight
        {
            Weight::Quantized(weight) => weight.packed().val().into_data(),
            Weight::Float(_) => panic!("it is not quantised"),
        }
    };
    assert_eq!(words(FloatDType::F32), words(FloatDType::BF16));
}

#[test]
fn a_quantised_output_layer_gets_rows_for_new_tokens() {
    let device = Device::flex();
    for tied in [false, true] {
        let config = config().with_tie_word_embeddings(tied);
        let dir = tempfile::tempdir().unwrap();
        float_model(&config, dir.path(), &device);
        let lm = open(&config, dir.path(), QuantFormat::Q4_0, &device).unwrap();
        let embeds = Tensor::<3>::random([2, 5, 64], Distribution::Default, &device);
        let logits = |lm: &CausalLm| lm.logits(lm.hidden(embeds.clone(), None).unwrap());
        let before = logits(&lm);
        // A spare row and two new ones.
        let rows = VocabularyRows {
            used: 40,
            total: 43,
        };
        let grown = lm.with_vocabulary(rows).unwrap();
        assert_eq!(grown.table_rows(), [43, 43]);
        let grown = logits(&grown);
        assert_eq!(grown.dims(), [2, 5, 43]);
        let old = |logits: &Tensor<3>| logits.clone().slice_dim(2, 0..40);
        assert_eq!(old(&grown).into_data(), old(&before).into_data());
        let mean = old(&before).mean_dim(2).expand([2, 5, 3]);
        let error = distance(grown.slice_dim(2, 40..43), mean);
        assert!(error < 0.02, "tied {tied}: {error}");
    }
}

/// Embeddings that are the output layer too are held once, in its 8 bits, and a token reads their rows.
#[test]
fn tied_embeddings_have_the_bits_of_the_output_layer() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let config = config().with_tie_word_embeddings(true);
    let float = float_model(&config, dir.path(), &device);
    let ids = Tensor::<2, Int>::from_ints([[3, 40, 0, 17, 3]], &device);
    // Rows of 8 bits go in, beside what the layers lose.
    for (format, limit) in FORMATS.into_iter().zip([0.02, 0.2]) {
        let lm = open(&config, dir.path(), format, &device).unwrap();
        assert!(lm.lm_head.own().is_none());
        let plain = dequantised(lm.clone());
        let rows = |lm: &CausalLm| lm.embed(ids.clone());
        assert_eq!(rows(&lm).into_data(), rows(&plain).into_data());
        let logits = |lm: &CausalLm| lm.logits(lm.hidden(rows(lm), None).unwrap());
        assert!(distance(logits(&lm), logits(&plain)) < 2e-4, "{format:?}");
        let error = distance(logits(&lm), logits(&float));
        assert!(error < limit, "{format:?}: {error}");

        // Activations, and with them the cache, are of the type of the other weights.
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let options = LoadOptions {
            dtype: DtypePolicy::Cast(FloatDType::BF16),
            ..LoadOptions::default()
        };
        let model = lm.config().init(&device).unwrap();
        let (lm, _) = load_module(model, &checkpoint, &rules(), &options).unwrap();
        assert_eq!(rows(&lm).dtype(), DType::BF16);
        let mut cache = lm.cache(1, 8, &device);
        lm.step(rows(&lm), None, &mut cache).unwrap();
        assert_eq!(cache.layer(0).unwrap().0.dtype(), DType::BF16);
    }
}
