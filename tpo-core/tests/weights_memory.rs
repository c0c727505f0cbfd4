//! Peak of the heap while weights are read: what comes out and a few pieces.

use burn::module::Module;
use burn::tensor::{Device, FloatDType, TensorData, bf16};
use peak_alloc::PeakAlloc;
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::ops::QuantFormat;
use tpo_core::weights::{
    Checkpoint, DtypePolicy, KeyRules, LoadOptions, SaveOptions, TensorSource, load_module,
    save_tensors,
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const ROWS: usize = 4096;
const WIDTH: usize = 4096;
const THREADS: usize = 2;
/// Pieces of a MiB in the file, as floats and in lines, for every thread.
const PIECES: usize = THREADS * (6 << 20);

#[derive(Module, Debug)]
struct One {
    linear: Linear,
}

/// Bytes of the heap at most, beyond what was there before, while the weight is read.
fn peak(checkpoint: &Checkpoint, quantization: Option<QuantFormat>, dtype: FloatDType) -> usize {
    let linear = LinearConfig::new(WIDTH, ROWS)
        .with_bias(false)
        .with_quantization(quantization)
        .init(&Device::flex());
    let options = LoadOptions {
        dtype: DtypePolicy::Cast(dtype),
        ..LoadOptions::default()
    };
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let (one, _) = load_module(One { linear }, checkpoint, &KeyRules::new(), &options).unwrap();
    let peak = HEAP.peak_usage() - before;
    drop(one);
    peak
}

// One test only: others would allocate meanwhile.
#[test]
fn a_tensor_is_in_memory_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values: Vec<bf16> = (0..ROWS * WIDTH)
        .map(|i| bf16::from_f32(i as f32))
        .collect();
    let data = TensorData::new(values, [ROWS, WIDTH]);
    let source = TensorSource::from_data("linear.weight", &data).unwrap();
    save_tensors(vec![source], &path, &SaveOptions::default()).unwrap();
    drop(data);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build()
        .unwrap();
    pool.install(|| {
        // Thread pools and tables are made by the first run.
        peak(&checkpoint, None, FloatDType::F32);
        let of = |format: QuantFormat| ROWS * format.words(WIDTH).unwrap() * 4;
        for (quantization, dtype, result) in [
            (None, FloatDType::BF16, ROWS * WIDTH * 2),
            (None, FloatDType::F32, ROWS * WIDTH * 4),
            (
                Some(QuantFormat::Q8_0),
                FloatDType::BF16,
                of(QuantFormat::Q8_0),
            ),
            (
                Some(QuantFormat::Q4_0),
                FloatDType::F32,
                of(QuantFormat::Q4_0),
            ),
        ] {
            let peak = peak(&checkpoint, quantization, dtype);
            assert!(
                (result..=result + PIECES).contains(&peak),
                "{quantization:?} {dtype:?}: {peak} bytes at most for {result}"
            );
        }
    });
}
