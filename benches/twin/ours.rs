//! Our side of every row, measured in a process of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use tpo::DeviceChoice;
use tpo::core::geometry::UnpadRule;
use tpo::core::head::NoHeads;
use tpo::core::nn::{Linear, LinearConfig};
use tpo::core::ops::{QuantFormat, Resize};
use tpo::core::prompt::TextEncoder;
use tpo::core::token::TaskRegistry;
use tpo::core::traits::{Connector, DecodeCache, LanguageModel, VisionEncoder, VisualShape};
use tpo::data::feed::{Cursor, Feed, FeedConfig, MixtureSpec, SourceSpec};
use tpo::data::prompts::LayoutEncoder;
use tpo::data::{ClipConfig, MediaLimits, open_video, select_frames};
use tpo::heads::mask::sam2::{MemoryInput, PointPrompt, PromptEmbedding, Sam2Config};
use tpo::heads::mask::track::fill_holes;
use tpo::heads::region::RegionHeadConfig;
use tpo::heads::temporal::model::CgDetrInput;
use tpo::heads::temporal::{
    BatchTargets, MomentWindows, SaliencyLabels, TemporalHeadConfig, TemporalTarget,
};
use tpo::llm::generation::GenerationConfig;
use tpo::llm::{HfOptions, LlmConfig, from_pretrained};
use tpo::train::checkpoint::{CheckpointStore, Retention, files};
use tpo::vision::{
    HieraConfig, ImageEncoderConfig, InternVideo2Config, OneVisionConnectorConfig, QFormerConfig,
    SiglipConfig, UmtConfig, VideoEncoder,
};

use crate::rows::{
    CHECKPOINT_SHAPE, CHECKPOINT_TENSORS, LOADER_BATCH, LOADER_BATCHES, MISTRAL_PREFILL, OV_FRAMES,
    OV_ROWS, Row, SMOLLM2_NEW, SMOLLM2_PROMPT, Task,
};
use crate::{Args, Outcome, machine, training};

/// What a process prints; `twin.py` prints the same.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Milliseconds of every sample after the warm-up.
    pub samples_ms: Vec<f64>,
    /// Peak of resident memory while measuring.
    pub peak_mib: Option<f64>,
    /// Resident memory before anything was built: the binary, or Python and torch.
    pub base_mib: Option<f64>,
    /// Peak of memory on the device, where the runtime tells it.
    pub device_mib: Option<f64>,
    /// What the reader should know.
    #[serde(default)]
    pub note: String,
    /// The machine's limits, in the row `peak`.
    pub gflops: Option<f64>,
    pub gbytes: Option<f64>,
    /// Cores that other processes kept busy meanwhile; filled in by the parent.
    pub others: Option<f64>,
}

/// Builds a row's model, warms up and measures.
pub fn measure(row: &Row, args: &Args) -> Outcome<Measured> {
    let base_mib = machine::status_mib("VmRSS:");
    let bench = Bench {
        device: args.device.open()?,
        dtype: row.format.float(),
        quantize: row.format.quantized(),
        seconds: args.seconds,
    };
    let measured = match row.task {
        Task::VitL => bench.vit_l(),
        Task::InternVideo2 => bench.internvideo2(),
        Task::Siglip(pictures) => bench.siglip(pictures),
        Task::QFormer => bench.qformer(),
        Task::OneVision => bench.one_vision(),
        Task::Sam2Tiny => bench.sam2(HieraConfig::tiny()),
        Task::Sam2Large => bench.sam2(HieraConfig::large()),
        Task::Sam2Track => bench.sam2_track(),
        Task::MistralPrefill => bench.mistral(MISTRAL_PREFILL),
        Task::MistralDecode => bench.mistral(1),
        Task::SmolLm2Decode(past) => bench.smollm2(args, past, SMOLLM2_NEW),
        Task::SmolLm2Prompt => bench.smollm2(args, SMOLLM2_PROMPT, 0),
        Task::Qwen2Prefill => bench.qwen2(OV_ROWS),
        Task::Qwen2Decode => bench.qwen2(1),
        Task::RegionHead => bench.region_head(),
        Task::CgDetr => bench.cg_detr(),
        Task::CgDetrTrain => bench.cg_detr_train(),
        Task::LoraStep => bench.samples(training::lora_step(&bench.device, false)?),
        Task::LoraStepCheckpointed => bench.samples(training::lora_step(&bench.device, true)?),
        Task::AdamWStep => bench.samples(training::adamw_step(&bench.device)?),
        Task::TpoStep => bench.samples(training::tpo_step(&bench.device)?),
        Task::VideoDecode => bench.video_decode(args),
        Task::CheckpointSave => bench.checkpoint(true),
        Task::CheckpointLoad => bench.checkpoint(false),
        Task::VideoLoader => bench.video_loader(args),
        Task::Peak => bench.peak(args),
    }?;
    Ok(Measured {
        base_mib,
        ..measured
    })
}

struct Bench {
    device: Device,
    dtype: FloatDType,
    quantize: Option<QuantFormat>,
    seconds: f64,
}

impl Bench {
    /// One call of `step`, until the device has finished.
    fn timed<T>(&self, step: &mut impl FnMut() -> Outcome<T>) -> Outcome<Duration> {
        let start = Instant::now();
        step()?;
        self.device.sync()?;
        Ok(start.elapsed())
    }

    fn samples<T>(&self, mut step: impl FnMut() -> Outcome<T>) -> Outcome<Measured> {
        self.samples_of(1, || self.timed(&mut step))
    }

    /// Calls `step`, which returns the time of `per_sample` samples: once or twice to warm up,
    /// then for as long as asked.
    fn samples_of(
        &self,
        per_sample: usize,
        mut step: impl FnMut() -> Outcome<Duration>,
    ) -> Outcome<Measured> {
        let mut once = step()?;
        if once < Duration::from_secs(1) {
            once = step()?;
        }
        machine::reset_peak();
        let count = (self.seconds / once.as_secs_f64().max(1e-9)).ceil() as usize;
        let mut samples_ms = Vec::new();
        for _ in 0..count.clamp(1, 1000) {
            samples_ms.push(step()?.as_secs_f64() * 1e3 / per_sample as f64);
        }
        Ok(Measured {
            samples_ms,
            peak_mib: machine::status_mib("VmHWM:"),
            ..Measured::default()
        })
    }

    fn cast<M: Module>(&self, module: M) -> M {
        struct Cast(FloatDType);
        impl ModuleMapper for Cast {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|tensor| tensor.cast(self.0))
            }
        }
        match self.dtype {
            // Left as it is: weights a row does not use are then never drawn.
            FloatDType::F32 => module,
            dtype => module.map(&mut Cast(dtype)),
        }
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let normal: Tensor<D> = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device);
        normal.cast(self.dtype)
    }

    fn vit_l(&self) -> Outcome<Measured> {
        let encoder = self.cast(VideoEncoder::new(&UmtConfig::large(), &self.device)?);
        let frames = self.random([1, 16, 3, 224, 224]);
        self.samples(|| Ok(encoder.forward(frames.clone())?))
    }

    fn internvideo2(&self) -> Outcome<Measured> {
        let tower = self.cast(InternVideo2Config::internvideo2_1b().init(&self.device)?);
        let frames = self.random([1, 8, 3, 224, 224]);
        self.samples(|| Ok(tower.forward(frames.clone())?))
    }

    fn sam2(&self, trunk: HieraConfig) -> Outcome<Measured> {
        let encoder = self.cast(ImageEncoderConfig::sam2(trunk).init(&self.device)?);
        let images = self.random([1, 3, 1024, 1024]);
        self.samples(|| Ok(encoder.forward(images.clone())?))
    }

    /// What the tracker does with an encoded frame when its window of memories is full. Weights of
    /// the image encoder are never drawn.
    fn sam2_track(&self) -> Outcome<Measured> {
        let model = Sam2Config::videochat_tpo().init(&self.device)?;
        let parts = [model.maskmem_tpos_enc.val().dims()[0], 4096, 256, 64];
        let [memories, pixels, dim, width] = parts;
        let attention = self.cast(model.memory_attention.clone());
        let decoder = self.cast(model.sam_mask_decoder.clone());
        let encoder = self.cast(model.memory_encoder.clone());
        let prompts = self.cast(model.sam_prompt_encoder.clone());
        let pointer = self.cast(model.obj_ptr_proj.clone());
        let pointer_tokens = 16 * dim / width;
        let keys = memories * pixels + pointer_tokens;
        let input = MemoryInput {
            memory: self.random([1, keys, width]),
            positions: self.random([1, keys, width]),
            pointer_tokens,
        };
        let features: Tensor<3> = self.random([1, pixels, dim]);
        let positions: Tensor<3> = self.random([1, pixels, dim]);
        let fine = [
            self.random([1, 256, 256, 32]),
            self.random([1, 128, 128, 64]),
        ];
        let rope = attention.rope([64, 64], &self.device);
        let enlarge = Resize::new([256, 256], [1024, 1024], false, &self.device);
        self.samples(|| {
            let out = attention.forward(features.clone(), positions.clone(), &input, &rope)?;
            let prompt = PromptEmbedding {
                sparse: prompts.embed_points(&[vec![PointPrompt::padding()]])?,
                dense: prompts.no_mask(1),
            };
            let out = out.reshape([1, 64, 64, dim]);
            let output = decoder.forward(out, prompts.dense_encoding(), &prompt, &fine)?;
            let best = output.multiple().best();
            pointer.forward(best.tokens);
            let mut maps: Vec<f32> = best
                .masks
                .clone()
                .cast(FloatDType::F32)
                .into_data()
                .iter()
                .collect();
            let mut map = ndarray::Array2::from_shape_vec((256, 256), std::mem::take(&mut maps))?;
            fill_holes(&mut map, 8);
            let full = enlarge.apply(best.masks.reshape([1, 256, 256]).cast(FloatDType::F32));
            let mask = burn::tensor::activation::sigmoid(full) * 20.0 - 10.0;
            let image = features.clone().reshape([1, 64, 64, dim]);
            encoder.forward(image, mask)?;
            Ok(())
        })
    }

    fn siglip(&self, pictures: usize) -> Outcome<Measured> {
        let tower = self.cast(SiglipConfig::so400m_patch14_384().init(&self.device)?);
        let frames = self.random([1, pictures, 3, 384, 384]);
        self.samples(|| Ok(tower.encode(frames.clone())?))
    }

    fn one_vision(&self) -> Outcome<Measured> {
        let config = OneVisionConnectorConfig::one_vision(896, UnpadRule::Original);
        let connector = self.cast(config.init(&self.device)?);
        let features = self.random([1, OV_FRAMES * 729, 1152]);
        let shape = VisualShape::video((384, 384), OV_FRAMES);
        self.samples(|| Ok(connector.connect(features.clone(), &[shape], None)?))
    }

    fn qformer(&self) -> Outcome<Measured> {
        let qformer = self.cast(QFormerConfig::base().init(&self.device)?);
        let visual = self.random([1, 3136, 1024]);
        self.samples(|| Ok(qformer.forward(visual.clone(), None)?))
    }

    /// `new` tokens through one layer and the final norm; one token follows a prefill.
    fn mistral(&self, new: usize) -> Outcome<Measured> {
        let config = LlmConfig {
            num_hidden_layers: 1,
            vocab_size: 64,
            ..LlmConfig::mistral_7b()
        };
        let lm = self.cast(config.init(&self.device)?);
        let past = if new > 1 { 0 } else { MISTRAL_PREFILL };
        let mut cache = lm.cache(1, past + new, &self.device);
        if past > 0 {
            lm.forward_cached(self.random([1, past, config.hidden_size]), None, &mut cache)?;
        }
        let embeds = self.random([1, new, config.hidden_size]);
        self.samples(|| {
            cache.truncate(past);
            lm.forward_cached(embeds.clone(), None, &mut cache)?;
            Ok(())
        })
    }

    /// `new` rows through all layers, and the logits of the last; one token follows a prefill.
    fn qwen2(&self, new: usize) -> Outcome<Measured> {
        let config = LlmConfig::qwen2_0_5b();
        let lm = self.cast(config.init(&self.device)?);
        let past = if new > 1 { 0 } else { OV_ROWS };
        let mut cache = lm.cache(1, past + new, &self.device);
        if past > 0 {
            lm.forward_cached(self.random([1, past, config.hidden_size]), None, &mut cache)?;
        }
        let embeds = self.random([1, new, config.hidden_size]);
        self.samples(|| {
            cache.truncate(past);
            let hidden = lm.forward_cached(embeds.clone(), None, &mut cache)?;
            Ok(lm.logits(hidden.narrow(1, new - 1, 1)))
        })
    }

    /// `new` tokens after `past` others, or without any the `past` others and the choice of the first.
    fn smollm2(&self, args: &Args, past: usize, new: usize) -> Outcome<Measured> {
        let (lm, note) = if args.smollm2.join("config.json").is_file() {
            let options = HfOptions {
                dtype: Some(self.dtype),
                quantize: self.quantize,
            };
            let model = from_pretrained(&args.smollm2, &self.device, options, None)?;
            (model.lm, args.smollm2.display().to_string())
        } else {
            let lm = LlmConfig::smollm2_135m().init(&self.device)?;
            if self.quantize.is_some() {
                return Err("quantised rows need --smollm2 DIR".into());
            }
            (self.cast(lm), "random weights".into())
        };
        // As the twins have it.
        let prompt: Vec<u32> = (0..past as u32)
            .map(|i| (i * 37 + 11) % 40_000 + 100)
            .collect();
        let measured = self.samples_of(new.max(1), || {
            let config = GenerationConfig::greedy(new + 1, Vec::new());
            let start = Instant::now();
            let mut stream = lm.stream(&prompt, config, &self.device)?;
            stream.next().ok_or("no first token")??;
            let prompt = start.elapsed();
            let start = Instant::now();
            let mut tokens = 0;
            for id in stream {
                id?;
                tokens += 1;
            }
            if tokens != new {
                return Err(format!("{tokens} new tokens, expected {new}").into());
            }
            Ok(if new == 0 { prompt } else { start.elapsed() })
        })?;
        Ok(Measured { note, ..measured })
    }

    fn region_head(&self) -> Outcome<Measured> {
        let head = self.cast(RegionHeadConfig::videochat_tpo().init(&self.device));
        let task = self.random([1, 4096]);
        self.samples(|| Ok(head.decoder.forward(task.clone())))
    }

    /// `n` samples of 75 clips and 32 words.
    fn cg_detr_input(&self, n: usize) -> CgDetrInput {
        CgDetrInput {
            video: self.random([n, 75, 770]),
            video_lengths: vec![75; n],
            text: self.random([n, 32, 4096]),
            text_lengths: vec![32; n],
            prompt: self.random([n, 4096]),
        }
    }

    fn cg_detr(&self) -> Outcome<Measured> {
        let head = self.cast(TemporalHeadConfig::videochat_tpo().init(&self.device)?);
        let input = self.cg_detr_input(1);
        self.samples(|| Ok(head.model.forward(input.clone())?))
    }

    /// Forward, losses with a foreign text for every sample, and gradients; dropout off.
    fn cg_detr_train(&self) -> Outcome<Measured> {
        let (n, clips) = (4, 75);
        let device = self.device.clone().autodiff();
        let mut config = TemporalHeadConfig::videochat_tpo();
        config.model.dropout = 0.0;
        config.model.input_dropout = 0.0;
        let head = config.init(&device)?;
        let mut input = self.cg_detr_input(n);
        input.prompt = Tensor::from_data(input.prompt.into_data(), &device).require_grad();
        let mut scores = vec![0.0; clips];
        scores[clips / 3..2 * clips / 3].fill(1.0);
        let target = TemporalTarget {
            windows: MomentWindows::Normalised(vec![[0.5, 1.0 / 3.0]]),
            saliency: SaliencyLabels {
                scores,
                positive: vec![clips / 3; 2],
                negative: vec![0; 2],
            },
            relevant: None,
        };
        let names: Vec<usize> = (0..n).collect();
        let targets = BatchTargets::new(&vec![target; n], &vec![clips; n], 1.0, &names)?;
        self.samples(|| {
            let output = head.model.forward(input.clone())?;
            let loss = head.criterion(&output, &targets)?.terms.total();
            loss.ok_or("no loss")?.backward();
            Ok(())
        })
    }

    fn video_decode(&self, args: &Args) -> Outcome<Measured> {
        let mut size = (0, 0);
        let measured = self.samples(|| {
            let reader = open_video(&args.video, &MediaLimits::default())?;
            let info = reader.info();
            size = (info.width, info.height);
            let frames = reader.read_frames(&select_frames(info, &ClipConfig::default())?)?;
            if frames.len() != 16 {
                return Err(format!("{} frames, expected 16", frames.len()).into());
            }
            Ok(())
        })?;
        Ok(Measured {
            note: format!("{}x{}", size.0, size.1),
            ..measured
        })
    }

    /// A training checkpoint: streamed, summed, flushed and renamed; or verified and put into
    /// parameters.
    fn checkpoint(&self, save: bool) -> Outcome<Measured> {
        let [rows, columns] = CHECKPOINT_SHAPE;
        let build = || -> Vec<Linear> {
            let config = LinearConfig::new(columns, rows).with_bias(false);
            (0..CHECKPOINT_TENSORS)
                .map(|_| config.init(&self.device))
                .collect()
        };
        let dir = tempfile::tempdir()?;
        let keep = Retention {
            last: 1,
            best: None,
        };
        let store = CheckpointStore::new(dir.path(), keep);
        let module = build();
        let mut step = 0;
        let mut write = || -> Outcome<()> {
            step += 1;
            let mut draft = store.begin(step, "bench")?;
            draft.module(files::WEIGHTS, &module, &|_| true)?;
            draft.commit()?;
            Ok(())
        };
        write()?;
        if save {
            return self.samples(write);
        }
        self.samples(|| {
            let (found, _) = store.newest()?;
            let found = found.ok_or("no checkpoint")?;
            found.load_module(files::WEIGHTS, build(), &|_| true)?;
            Ok(())
        })
    }

    /// The training loader at work: the rows are all of one clip, as many as are timed.
    fn video_loader(&self, args: &Args) -> Outcome<Measured> {
        let video = std::fs::canonicalize(&args.video)?;
        let file = std::env::temp_dir().join(format!("tpo-twin-{}.jsonl", std::process::id()));
        let row = serde_json::json!({
            "media": {"video": video},
            "turns": [{"question": "What happens?", "answer": "Shapes bounce."}],
        });
        std::fs::write(
            &file,
            format!("{row}\n").repeat(LOADER_BATCH * LOADER_BATCHES),
        )?;
        let mut config = FeedConfig {
            mixture: MixtureSpec::of(vec![SourceSpec::file(&file)]),
            ..FeedConfig::default()
        };
        config.order.batch_size = LOADER_BATCH;
        config.loader.workers = args.threads;
        let encoder = LayoutEncoder::videochat(Arc::new(Bytes), 2);
        let (tasks, cursor) = (TaskRegistry::new(), Cursor::default());
        let feed = Feed::open(
            &config,
            &tasks,
            encoder,
            Arc::new(NoHeads::default()),
            cursor,
        );
        std::fs::remove_file(&file)?;
        let mut feed = feed?;
        let mut shapes = Vec::new();
        let measured = self.samples_of(LOADER_BATCH * LOADER_BATCHES, || {
            let start = Instant::now();
            for _ in 0..LOADER_BATCHES {
                let batch = feed.next_batch()?.ok_or("the loader ended")?;
                let (batch, _) = batch.into_batch(&self.device);
                shapes = batch.visuals.iter().map(|v| v.pixels.dims()).collect();
            }
            self.device.sync()?;
            Ok(start.elapsed())
        })?;
        if shapes != [[16, 3, 224, 224]; LOADER_BATCH] || feed.bad_rows().count > 0 {
            return Err(format!("batches of {shapes:?}").into());
        }
        let clips = measured
            .samples_ms
            .iter()
            .map(|ms| 1e3 / ms)
            .fold(0.0, f64::max);
        Ok(Measured {
            note: format!("best {clips:.1} clips/s, {} workers", args.threads),
            ..measured
        })
    }

    /// A large matrix product, and one pass over a large buffer.
    fn peak(&self, args: &Args) -> Outcome<Measured> {
        let on_cpu = args.device == DeviceChoice::Cpu;
        let side = if on_cpu { 3072 } else { 8192 };
        let (a, b) = (self.random([side, side]), self.random([side, side]));
        let product = self.samples(|| Ok(a.clone().matmul(b.clone())))?;
        let values = 1 << 27;
        let read = if on_cpu {
            let buffer = vec![1.0_f32; values];
            self.samples(|| sum(&buffer, args.threads))?
        } else {
            let buffer = Tensor::<1>::ones([values], &self.device);
            self.samples(|| Ok(buffer.clone().sum()))?
        };
        let best = |m: &Measured| m.samples_ms.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Measured {
            gflops: Some(2.0 * (side as f64).powi(3) / best(&product) / 1e6),
            gbytes: Some(4.0 * values as f64 / best(&read) / 1e6),
            peak_mib: read.peak_mib,
            samples_ms: product.samples_ms,
            ..Measured::default()
        })
    }
}

/// Bytes as ids: text is not what is measured.
struct Bytes;

impl TextEncoder for Bytes {
    fn encode_with_bos(&self, text: &str) -> tpo::core::Result<Vec<u32>> {
        let ids = text.bytes().map(|b| 3 + u32::from(b));
        Ok(std::iter::once(1).chain(ids).collect())
    }
}

/// Reads `buffer` once, on `threads` threads.
fn sum(buffer: &[f32], threads: usize) -> Outcome<()> {
    const LANES: usize = 64;
    let part = buffer.len().div_ceil(threads.max(1));
    let total: f32 = std::thread::scope(|scope| {
        let parts: Vec<_> = buffer
            .chunks(part)
            .map(|part| {
                scope.spawn(move || {
                    let mut lanes = [0.0_f32; LANES];
                    for chunk in part.chunks_exact(LANES) {
                        for (lane, value) in lanes.iter_mut().zip(chunk) {
                            *lane += value;
                        }
                    }
                    lanes.iter().sum::<f32>()
                })
            })
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().unwrap_or(0.0))
            .sum()
    });
    // Also keeps the loop from being optimised away.
    if total > 0.0 {
        return Ok(());
    }
    Err("the buffer of ones sums to zero".into())
}
