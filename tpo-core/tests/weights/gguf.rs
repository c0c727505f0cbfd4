//! GGUF files: what the package `gguf` wrote, and what is damaged or built to do harm.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use tpo_core::nn::Weight;
use tpo_core::ops::QuantFormat;
use tpo_core::weights::{
    Checkpoint, DtypePolicy, GgufFile, KeyRules, LoadOptions, WeightsError, load_module,
    read_tensor,
};

use crate::files::write;
use crate::gguf_bytes::{Gguf, LIST, TEXT, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/weights/fixtures")
        .join(name)
}

#[test]
fn every_type_has_the_values_of_the_package() {
    let file = GgufFile::open(fixture("gguf_types.gguf")).unwrap();
    let values = Checkpoint::open(fixture("gguf_types.safetensors")).unwrap();
    assert_eq!((file.version(), file.tensors().len()), (3, values.len()));
    for entry in file.tensors() {
        let expected = read_tensor(values.get(&entry.key).unwrap()).unwrap();
        let found = read_tensor(entry).unwrap();
        assert_eq!(found.shape(), expected.shape(), "{}", entry.key);
        let found = found.try_cast(DType::F32).unwrap();
        let (found, expected) = (found.as_slice::<f32>(), expected.as_slice::<f32>());
        assert_eq!(found.unwrap(), expected.unwrap(), "{}", entry.key);
    }
    assert_eq!(file.need::<&str>("text").unwrap(), "größe");
    assert_eq!(file.need::<&[String]>("texts").unwrap(), ["a", "", "▁b"]);
    assert_eq!(file.need::<&[f64]>("reals").unwrap(), [0.5, -1e-5]);
    assert_eq!(file.need::<&[i64]>("integers").unwrap(), [-3, 7]);
    assert_eq!(file.need::<f64>("epsilon").unwrap(), 1e-5);
    assert_eq!(file.need::<f64>("wide").unwrap(), 1e-300);
    assert_eq!(file.need::<f64>("negative").unwrap(), -5.0);
    assert_eq!(file.need::<u64>("large").unwrap(), u64::MAX);
    assert!(file.need::<bool>("flag").unwrap());
    assert_says(
        &file.need::<u64>("text").unwrap_err(),
        &["`text`", "expected a whole number, found text"],
    );
    assert_says(&file.need::<u64>("none").unwrap_err(), &["`none`", "lacks"]);
}

/// Two tensors, the second of blocks.
fn two() -> Gguf {
    let blocks: Vec<u8> = (0..2 * 2 * 34u8)
        .map(|i| if i % 34 == 1 { 0x2c } else { i })
        .collect();
    Gguf::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .texts("tokens", &["a", "b"])
        .tensor(
            "norm",
            &[3],
            0,
            [1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat(),
        )
        .tensor("weight", &[2, 64], 8, blocks)
}

fn open(bytes: &[u8]) -> Result<GgufFile, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    GgufFile::open(write(dir.path(), "model.gguf", bytes))
}

fn assert_says(error: &WeightsError, parts: &[&str]) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let error = open(bytes).unwrap_err();
    assert!(matches!(error, WeightsError::Gguf { .. }), "{error}");
    assert_says(&error, parts);
    assert_says(&error, &["model.gguf: "]);
}

#[test]
fn a_good_file_opens() {
    for version in [2, 3] {
        let file = open(&Gguf { version, ..two() }.bytes()).unwrap();
        let [norm, weight] = file.tensors() else {
            panic!("{:?}", file.tensors());
        };
        assert_eq!((norm.shape.as_slice(), norm.len), ([3].as_slice(), 12));
        assert_eq!(
            (weight.shape.as_slice(), weight.len),
            ([2, 64].as_slice(), 136)
        );
        assert_eq!(weight.offset - norm.offset, 32);
    }
    // The last tensor may be padded, and all of them aligned to more.
    let mut padded = Gguf {
        alignment: 128,
        ..two().u32("general.alignment", 128)
    }
    .bytes();
    padded.resize(padded.len().next_multiple_of(128), 0);
    assert_eq!(open(&padded).unwrap().tensors()[1].offset % 128, 0);
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let bytes = two().bytes();
    refused(
        &bytes[..40],
        &["truncated", "3 keys, which take 39 bytes", "has 40"],
    );
    for len in 0..bytes.len() {
        let error = open(&bytes[..len]).unwrap_err();
        assert!(matches!(error, WeightsError::Gguf { .. }), "{len}: {error}");
    }
    refused(
        &bytes[..bytes.len() - 1],
        &["truncated", "`weight`", "[2, 64]"],
    );
    refused(
        &bytes[..3],
        &["the format's mark at byte 0 takes 4 bytes and 3 are possible"],
    );
}

#[test]
fn other_files_and_versions_are_named() {
    refused(
        b"PK\x03\x04 and so on, some bytes more",
        &["expected `GGUF`"],
    );
    let of = |version| Gguf { version, ..two() }.bytes();
    refused(&of(1), &["version is 1", "2 and 3"]);
    refused(
        &of(3u32.swap_bytes()),
        &["big-endian", "gguf-convert-endian"],
    );
    let part = two().key("split.count", 2, vec![2, 0]).bytes();
    refused(&part, &["one of 2 parts", "llama-gguf-split --merge"]);
    let error = Checkpoint::open(write(
        tempfile::tempdir().unwrap().path(),
        "x.gguf",
        &two().bytes(),
    ));
    assert_says(&error.unwrap_err(), &["GGUF file", "tpo generate"]);
    refused(
        &{
            let mut b = two().bytes();
            b.push(0);
            b.resize(b.len() + 64, 0);
            b
        },
        &["belong to no tensor"],
    );
}

#[test]
fn types_that_are_not_read_are_named() {
    for (kind, name) in [
        (13, "Q5_K"),
        (6, "Q5_0"),
        (16, "IQ2_XXS"),
        (99, "number 99"),
    ] {
        let mut file = two();
        file.tensors[1].kind = kind;
        refused(
            &file.bytes(),
            &["`weight`", name, "Q4_K", "Q8_0", "llama-quantize"],
        );
    }
}

/// A file is what its bytes say; one that is called so is refused as a GGUF file.
#[test]
fn a_file_is_known_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = two().bytes();
    for (name, bytes, is_one) in [
        ("model", &bytes[..], true),
        ("blob.bin", &bytes[..], true),
        ("cut.GGUF", &bytes[..3], true),
        ("other.safetensors", &b"{}"[..], false),
    ] {
        let path = write(dir.path(), name, bytes);
        assert_eq!(GgufFile::is_one(&path), is_one, "{name}");
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert_eq!(error.contains("tpo generate --model"), is_one, "{error}");
    }
    assert!(!GgufFile::is_one(dir.path()));
}

#[test]
fn counts_and_lengths_are_not_believed() {
    let at = |place: usize, value: u64| {
        let mut bytes = two().bytes();
        bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for claim in [1 << 16, 1 << 40, u64::MAX] {
        refused(&at(8, claim), &["claims", "tensors"]);
        refused(&at(16, claim), &["claims", "keys"]);
        // The length of the first key.
        refused(&at(24, claim), &["a key at byte 32", "possible"]);
    }
    let huge = |kind: u32, count: u64| {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        two().key("list", LIST, value).bytes()
    };
    for kind in [0, 5, 6, 7, 8, 10, 12] {
        for count in [1 << 20, u64::MAX / 4, u64::MAX] {
            refused(&huge(kind, count), &["`list`", "a list"]);
        }
    }
    refused(&huge(9, 1), &["list of lists"]);
    refused(&huge(13, 1), &["unknown type 13"]);
    let file = two().key("odd", 77, vec![0; 8]);
    refused(&file.bytes(), &["`odd`", "unknown type 77"]);
    let file = two().key("flag", 7, vec![2]);
    refused(&file.bytes(), &["`flag`", "expected 0 or 1"]);
    let file = two().key("words", TEXT, [text("ab").as_slice(), &[0xff]].concat());
    assert!(open(&file.bytes()).is_err());
    let file = two().key("words", TEXT, vec![1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    refused(&file.bytes(), &["`words`", "UTF-8"]);
    let mut file = two();
    file.keys.push(file.keys[0].clone());
    refused(&file.bytes(), &["`general.architecture` occurs twice"]);
}

#[test]
fn lists_are_bounded_together() {
    // Four lists of nearly two million bytes each: small in the file, large as numbers.
    let bytes = vec![0u8; (2 << 20) - 8];
    let mut file = two();
    for name in ["a", "b", "c", "d"] {
        let mut value = 0u32.to_le_bytes().to_vec();
        value.extend((bytes.len() as u64).to_le_bytes());
        value.extend(&bytes);
        file = file.key(name, LIST, value);
    }
    refused(&file.bytes(), &["`c`", "together"]);
}

#[test]
fn tensors_lie_where_they_can() {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = two();
        change(&mut file);
        file.bytes()
    };
    refused(
        &with(&|f| f.tensors[1].begin = Some(0)),
        &["overlaps", "`weight`"],
    );
    refused(&with(&|f| f.tensors[1].begin = Some(31)), &["overlaps"]);
    refused(
        &with(&|f| f.tensors[1].begin = Some(64)),
        &["gap", "expected 32"],
    );
    refused(&with(&|f| f.tensors[1].begin = Some(u64::MAX)), &["gap"]);
    refused(
        &with(&|f| f.tensors[1].name = "norm".into()),
        &["`norm` occurs twice"],
    );
    refused(&with(&|f| f.tensors[0].axes = vec![]), &["0 axes"]);
    refused(&with(&|f| f.tensors[0].axes = vec![1; 5]), &["5 axes"]);
    refused(&with(&|f| f.tensors[0].axes = vec![0]), &["axis size 0"]);
    refused(
        &with(&|f| f.tensors[0].axes = vec![u64::MAX; 4]),
        &["overflows"],
    );
    refused(
        &with(&|f| f.tensors[0].axes = vec![1 << 60]),
        &["truncated"],
    );
    refused(
        &with(&|f| f.tensors[1].axes = vec![48, 2]),
        &["no whole blocks of 32"],
    );
    for alignment in [0u32, 24, 1 << 30] {
        let file = two().u32("general.alignment", alignment);
        refused(&file.bytes(), &["general.alignment", "power of two"]);
    }
    let file = two().text("general.alignment", "32");
    refused(&file.bytes(), &["found text"]);
}

/// A linear layer's weight alone.
#[derive(burn::module::Module, Debug)]
struct One {
    weight: Weight,
}

#[test]
fn blocks_of_the_wanted_format_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "model.gguf", &two().bytes());
    let device = Device::flex();
    let file = GgufFile::open(path).unwrap();
    let whole = read_tensor(&file.tensors()[1]).unwrap();
    let whole = Tensor::<2>::from_data(whole, &device);
    // Rows 0 and 1 are a pair: of one head of width 2 nothing moves.
    let checkpoint = file.checkpoint(|key| (key == "weight").then_some(1));
    let rules = KeyRules::new()
        .ignore("^norm$", "not of this test")
        .unwrap();
    let load = |format| {
        let weight = Weight::to_fill(format, [2, 64], &device).unwrap();
        let options = LoadOptions {
            dtype: DtypePolicy::Cast(burn::tensor::FloatDType::F32),
            ..LoadOptions::default()
        };
        let (one, report) = load_module(One { weight }, &checkpoint, &rules, &options).unwrap();
        assert_eq!((report.loaded.len(), report.ignored.len()), (1, 1));
        (one.weight.val(), report.cast.len())
    };
    let (same, casts) = load(QuantFormat::Q8_0);
    assert_eq!(casts, 0);
    same.into_data().assert_eq(&whole.to_data(), true);
    // Another format is made of the values.
    let (other, _) = load(QuantFormat::Q4_0);
    let error = (other - whole.clone()).abs().max().into_scalar::<f32>();
    let largest = whole.abs().max().into_scalar::<f32>();
    assert!(
        error > 0.0 && error <= largest / 8.0,
        "{error} of {largest}"
    );
}

/// Heads are read several at a time.
#[test]
fn rows_of_many_heads_are_put_in_order() {
    let (heads, rows, width) = (10, 640, 1024);
    let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(bytes.len() > 2 << 20);
    let file = Gguf::default().tensor("q", &[rows, width], 0, bytes);
    let dir = tempfile::tempdir().unwrap();
    let file = GgufFile::open(write(dir.path(), "q.gguf", &file.bytes())).unwrap();
    let checkpoint = file.checkpoint(|_| Some(heads));
    let read = read_tensor(checkpoint.get("q").unwrap()).unwrap();
    let half = rows / heads / 2;
    for (row, values) in read.as_slice::<f32>().unwrap().chunks(width).enumerate() {
        let (head, of_head) = (row / (2 * half), row % (2 * half));
        let from = head * 2 * half + of_head % half * 2 + of_head / half;
        let expected = (0..width).map(|i| (from * width + i) as f32);
        assert!(values.iter().copied().eq(expected), "row {row}");
    }
}

#[test]
fn rows_of_interleaved_heads_are_put_in_order() {
    let values: Vec<f32> = (0..8 * 3).map(|i| i as f32).collect();
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let file = Gguf::default().tensor("q", &[8, 3], 0, bytes);
    let dir = tempfile::tempdir().unwrap();
    let file = GgufFile::open(write(dir.path(), "q.gguf", &file.bytes())).unwrap();
    let read = |heads| {
        let checkpoint = file.checkpoint(|_| Some(heads));
        read_tensor(checkpoint.get("q").unwrap())
    };
    let rows = |data: TensorData| -> Vec<f32> {
        data.iter::<f32>()
            .step_by(3)
            .map(|first| first / 3.0)
            .collect()
    };
    assert_eq!(
        rows(read(2).unwrap()),
        [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    );
    assert_eq!(
        rows(read(1).unwrap()),
        [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    );
    for heads in [0, 3, 8, usize::MAX / 2, usize::MAX] {
        assert_says(&read(heads).unwrap_err(), &["`q`", "heads of even width"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut bytes = two().bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(file) = open(&bytes) {
            prop_assert!(file.tensors().iter().map(|t| t.len).sum::<u64>() <= bytes.len() as u64);
        }
    }
}
