//! Files that are damaged or built to do harm: a documented error each, and never a panic.

use proptest::prelude::*;
use tpo_core::weights::{Checkpoint, WeightsError};

use crate::files::{NET, T, checkpoint, file, write, write_index};

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::open(write(dir.path(), "model.safetensors", bytes))
}

/// The message is one paragraph that holds all of `parts`.
fn assert_says(error: &WeightsError, parts: &[&str]) {
    let message = error.to_string();
    assert!(
        !message.contains('\n'),
        "more than one paragraph: {message}"
    );
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_good_file_opens() {
    let checkpoint = open_bytes(&checkpoint(NET)).unwrap();
    assert_eq!(checkpoint.len(), NET.len());
    let entry = checkpoint.get("blocks.1.fc.weight").unwrap();
    assert_eq!((entry.shape.as_slice(), entry.len), ([3, 2].as_slice(), 24));
}

#[test]
fn a_header_that_claims_more_than_the_file() {
    let mut bytes = checkpoint(NET);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = open_bytes(&bytes).unwrap_err();
    assert!(matches!(error, WeightsError::Damaged { .. }));
    assert_says(
        &error,
        &["model.safetensors", "18446744073709551615", "truncated"],
    );
}

#[test]
fn a_file_cut_off_in_its_data_names_the_tensor() {
    let bytes = checkpoint(NET);
    let error = open_bytes(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(error, WeightsError::Damaged { .. }));
    assert_says(&error, &["truncated", "`token`", "[1, 1, 2]"]);
}

#[test]
fn bytes_after_the_last_tensor() {
    let mut bytes = checkpoint(NET);
    bytes.push(0);
    assert_says(&open_bytes(&bytes).unwrap_err(), &["belong to no tensor"]);
}

#[test]
fn entries_that_contradict_themselves() {
    let cases: &[(&str, &[u8], &str)] = &[
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            &[0; 4],
            "takes 8 bytes but the header gives it 4",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            &[0; 4],
            "before it begins",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
            &[0; 4],
            "overflows",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551610,18446744073709551614]}}"#,
            &[0; 4],
            "overflows",
        ),
        (
            r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
            &[0; 4],
            "not one of the format's",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
            &[0; 3],
            "overlaps",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            &[0; 3],
            "gap",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            &[0; 1],
            "occurs twice",
        ),
        (
            r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#,
            &[0; 1],
            "whole number of bytes",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#,
            &[0; 1],
            "more than 16 axes",
        ),
        (r#"{"a":{"dtype":"U8"}}"#, &[], "missing field"),
        ("[]", &[], "object"),
        ("{", &[], "EOF"),
        ("", &[], "EOF"),
    ];
    for (header, data, part) in cases {
        let error = open_bytes(&file(header, data)).unwrap_err();
        assert_says(&error, &["model.safetensors", part, "fetch it again"]);
    }
}

#[test]
fn text_that_is_not_utf8_and_files_too_short_for_a_header() {
    let mut bytes = 4_u64.to_le_bytes().to_vec();
    bytes.extend([0xff, 0xfe, b'{', b'}']);
    assert!(matches!(
        open_bytes(&bytes),
        Err(WeightsError::Damaged { .. })
    ));
    for len in 0..8 {
        assert!(matches!(
            open_bytes(&vec![0; len]),
            Err(WeightsError::Damaged { .. })
        ));
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    let header = format!("{{\"a\":{}", "[".repeat(1_000_000));
    assert!(matches!(
        open_bytes(&file(&header, &[])),
        Err(WeightsError::Damaged { .. })
    ));
}

#[test]
fn paths_that_are_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(
        &Checkpoint::open(dir.path().join("absent")).unwrap_err(),
        &["opening", "absent"],
    );
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["no .safetensors file"],
    );
    write(dir.path(), "a.safetensors", &checkpoint(NET));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().len(), NET.len());
    write(dir.path(), "b.safetensors", &checkpoint(NET));
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["a.safetensors, b.safetensors"],
    );
}

/// Two shards with one tensor each.
fn shards(dir: &std::path::Path) {
    write(
        dir,
        "one.safetensors",
        &checkpoint(&[T("head.weight", "F32", &[2])]),
    );
    write(
        dir,
        "two.safetensors",
        &checkpoint(&[T("head.bias", "F32", &[3])]),
    );
}

#[test]
fn a_sharded_directory_opens_and_notes_a_wrong_total() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path());
    write_index(
        dir.path(),
        &[
            ("head.weight", "one.safetensors"),
            ("head.bias", "two.safetensors"),
        ],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert_eq!(checkpoint.bytes(), 20);
    assert!(checkpoint.notes()[0].contains("total of 1 bytes"));
}

#[test]
fn an_index_that_leaves_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    shards(dir.path());
    shards(&inner);
    let absolute = dir.path().join("one.safetensors");
    for shard in [
        "../one.safetensors",
        absolute.to_str().unwrap(),
        "inner/../one.safetensors",
        "./one.safetensors",
        "..",
        ".",
        "",
        "a\\b.safetensors",
        "C:one.safetensors",
    ] {
        write_index(
            &inner,
            &[("head.weight", shard), ("head.bias", "two.safetensors")],
        );
        let error = Checkpoint::open(&inner).unwrap_err();
        assert!(
            matches!(error, WeightsError::Index { .. }),
            "{shard}: {error}"
        );
        assert_says(
            &error,
            &["`head.weight`", "index.json", "nothing was opened"],
        );
    }
}

#[test]
fn index_and_shards_that_disagree() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path());
    write_index(dir.path(), &[("head.weight", "onee.safetensors")]);
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &[
            "`head.weight`",
            "onee.safetensors",
            "nearest file: one.safetensors",
        ],
    );
    write_index(
        dir.path(),
        &[
            ("head.weigth", "one.safetensors"),
            ("head.bias", "two.safetensors"),
        ],
    );
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["`head.weigth`", "does not hold it", "`head.weight`"],
    );
    write_index(
        dir.path(),
        &[
            ("head.weight", "two.safetensors"),
            ("head.bias", "one.safetensors"),
        ],
    );
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["but it is in two.safetensors", "1 more"],
    );
    write(
        dir.path(),
        "two.safetensors",
        &checkpoint(&[T("head.bias", "F32", &[3]), T("extra", "F32", &[7])]),
    );
    write_index(
        dir.path(),
        &[
            ("head.weight", "one.safetensors"),
            ("head.bias", "two.safetensors"),
        ],
    );
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["`extra`", "[7]", "does not list it"],
    );
    write(
        dir.path(),
        "two.safetensors",
        &checkpoint(&[T("head.bias", "F32", &[3]), T("head.weight", "F32", &[2])]),
    );
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, WeightsError::Index { .. }));
    assert_says(&error, &["one.safetensors", "two.safetensors"]);
}

#[test]
fn an_index_that_is_no_index() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "",
        "{}",
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": {"a": "x", "a": "y"}}"#,
    ] {
        write(dir.path(), "model.safetensors.index.json", text.as_bytes());
        assert!(matches!(
            Checkpoint::open(dir.path()),
            Err(WeightsError::Index { .. })
        ));
    }
}

#[cfg(unix)]
#[test]
fn devices_are_not_opened_and_links_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    symlink("/dev/zero", dir.path().join("model.safetensors")).unwrap();
    assert_says(
        &Checkpoint::open(dir.path()).unwrap_err(),
        &["not a regular file"],
    );
    // The Hugging Face cache keeps blobs outside the snapshot's directory.
    let snapshot = dir.path().join("snapshot");
    std::fs::create_dir(&snapshot).unwrap();
    let blob = write(dir.path(), "blob", &checkpoint(NET));
    symlink(blob, snapshot.join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().len(), NET.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever bytes change, opening gives a checkpoint that is consistent or an error.
    #[test]
    fn changed_bytes_never_panic(
        edits in prop::collection::vec((0_usize..1200, any::<u8>()), 1..6),
        cut in 0_usize..64,
    ) {
        let mut bytes = checkpoint(NET);
        for (at, value) in edits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let len = bytes.len() as u64;
        if let Ok(checkpoint) = open_bytes(&bytes) {
            for t in checkpoint.tensors() {
                prop_assert!(t.offset + t.len <= len);
            }
        }
    }

    /// Any JSON-like text as a header, and as an index.
    #[test]
    fn invented_headers_never_panic(
        text in r#"\{("[ab]":(\{("(dtype|shape|data_offsets)":("F32"|"F4"|\[[0-9]{0,20}(,[0-9]{0,20})?\]|-1|null),?){0,4}\}|"x"),?){0,3}\}"#,
        data in 0_usize..16,
    ) {
        let _ = open_bytes(&file(&text, &vec![0; data]));
        let dir = tempfile::tempdir().unwrap();
        let index = text.replacen("\"a\"", "\"weight_map\"", 1);
        write(dir.path(), "model.safetensors.index.json", index.as_bytes());
        prop_assert!(Checkpoint::open(dir.path()).is_err());
    }
}
