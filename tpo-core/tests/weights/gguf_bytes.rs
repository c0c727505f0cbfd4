//! GGUF files built byte by byte. Tests of other crates include this file.
#![allow(dead_code)]

/// Numbers of the types of values.
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
pub const LIST: u32 = 9;

/// Text with its length.
pub fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

/// A list: type, length, elements.
pub fn list(kind: u32, elements: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((elements.len() as u64).to_le_bytes());
    out.extend(elements.flatten());
    out
}

/// A tensor of the header.
#[derive(Clone)]
pub struct Listed {
    pub name: String,
    /// The size of a line first.
    pub axes: Vec<u64>,
    /// Number of the type.
    pub kind: u32,
    /// Place in the data section; `None` for that after the tensor before.
    pub begin: Option<u64>,
    pub data: Vec<u8>,
}

/// A file.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub alignment: usize,
    /// Key, type and bytes of values.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Listed>,
}

impl Default for Gguf {
    fn default() -> Self {
        Self {
            version: 3,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
        }
    }
}

impl Gguf {
    pub fn key(mut self, key: &str, kind: u32, value: Vec<u8>) -> Self {
        self.keys.retain(|(known, ..)| known != key);
        self.keys.push((key.into(), kind, value));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, U32, value.to_le_bytes().to_vec())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, F32, value.to_le_bytes().to_vec())
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.key(key, BOOL, vec![value.into()])
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.key(key, TEXT, text(value))
    }

    pub fn texts<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        self.key(
            key,
            LIST,
            list(TEXT, values.iter().map(|v| text(v.as_ref()))),
        )
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let values = values.iter().map(|v| v.to_le_bytes().to_vec());
        self.key(key, LIST, list(I32, values))
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let values = values.iter().map(|v| v.to_le_bytes().to_vec());
        self.key(key, LIST, list(F32, values))
    }

    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(known, ..)| known != key);
        self
    }

    /// A tensor of PyTorch's `shape`.
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(Listed {
            name: name.into(),
            axes: shape.iter().rev().map(|size| *size as u64).collect(),
            kind,
            begin: None,
            data,
        });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0;
        for t in &self.tensors {
            out.extend(text(&t.name));
            out.extend((t.axes.len() as u32).to_le_bytes());
            out.extend(t.axes.iter().flat_map(|axis| axis.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.begin.unwrap_or(next as u64).to_le_bytes());
            next = (next + t.data.len()).next_multiple_of(self.alignment);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.data);
        }
        out
    }
}
