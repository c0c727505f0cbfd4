//! The bytes of a header: numbers, texts and values of the metadata, none believed before it can be
//! there.

use std::fs::File;
use std::io::{BufReader, Read};

use super::GgufValue;
use crate::weights::header::MAX_HEADER_BYTES;

/// Most elements of all lists together. The largest vocabularies take about a million.
const MAX_ITEMS: u64 = 1 << 22;
/// Bytes of the header in order.
pub(super) struct Reader {
    inner: BufReader<File>,
    /// Position of the next byte.
    at: u64,
    /// Bytes of the file.
    len: u64,
    /// Elements of lists so far.
    items: u64,
}

impl Reader {
    /// The bytes of a file of length `len`.
    pub fn new(file: File, len: u64) -> Self {
        Self {
            inner: BufReader::new(file),
            at: 0,
            len,
            items: 0,
        }
    }

    /// Position of the next byte.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Bytes that a header may still have.
    pub fn left(&self) -> u64 {
        self.len.min(MAX_HEADER_BYTES).saturating_sub(self.at)
    }

    /// Checks that `count` bytes can be there.
    fn expect(&self, what: &str, count: u64) -> Result<(), String> {
        let left = self.left();
        if count <= left {
            return Ok(());
        }
        let (at, len) = (self.at, self.len);
        Err(format!(
            "{what} at byte {at} takes {count} bytes and {left} are possible (the file has {len} \
             bytes, and no header may pass {MAX_HEADER_BYTES})"
        ))
    }

    pub fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        self.expect(what, N as u64)?;
        let mut bytes = [0; N];
        let read = self.inner.read_exact(&mut bytes);
        read.map_err(|e| format!("reading {what} at byte {}: {e}", self.at))?;
        self.at += N as u64;
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    pub fn string(&mut self, what: &str, longest: u64) -> Result<String, String> {
        let len = self.u64(what)?;
        self.expect(what, len)?;
        if len > longest {
            return Err(format!(
                "{what} at byte {} takes {len} bytes, at most {longest} are possible",
                self.at
            ));
        }
        let mut bytes = Vec::new();
        let read = (&mut self.inner).take(len).read_to_end(&mut bytes);
        let at = self.at;
        read.map_err(|e| format!("reading {what} at byte {at}: {e}"))?;
        if bytes.len() as u64 != len {
            return Err(format!("the file ended while {what} was read at byte {at}"));
        }
        self.at += len;
        String::from_utf8(bytes).map_err(|_| format!("{what} at byte {at} is not UTF-8"))
    }

    pub fn value(&mut self) -> Result<GgufValue, String> {
        match self.u32("the type of a value")? {
            8 => Ok(GgufValue::Text(self.string("text", u64::MAX)?)),
            9 => self.list(),
            7 => Ok(GgufValue::Flag(self.flag()?)),
            6 => Ok(GgufValue::Real(self.real32()?)),
            12 => Ok(GgufValue::Real(f64::from_le_bytes(self.bytes("a number")?))),
            10 => Ok(GgufValue::Unsigned(self.u64("a number")?)),
            kind => {
                let number = self.integer(kind)?;
                Ok(u64::try_from(number).map_or(GgufValue::Negative(number), GgufValue::Unsigned))
            }
        }
    }

    fn list(&mut self) -> Result<GgufValue, String> {
        let kind = self.u32("the type of a list")?;
        let count = self.u64("the length of a list")?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err("it is a list of lists, which is not read".into()),
            _ => return Err(format!("a list of the unknown type {kind}")),
        };
        self.expect("a list", count.saturating_mul(width))?;
        self.items = self.items.saturating_add(count);
        if self.items > MAX_ITEMS {
            return Err(format!(
                "a list of {count} elements; all lists may have {MAX_ITEMS} together"
            ));
        }
        Ok(match kind {
            8 => {
                let texts = (0..count).map(|_| self.string("text", u64::MAX));
                GgufValue::Texts(texts.collect::<Result<_, _>>()?)
            }
            6 => GgufValue::Reals(
                (0..count)
                    .map(|_| self.real32())
                    .collect::<Result<_, _>>()?,
            ),
            12 => {
                let reals = (0..count).map(|_| Ok(f64::from_le_bytes(self.bytes("a number")?)));
                GgufValue::Reals(reals.collect::<Result<_, String>>()?)
            }
            7 => {
                let flags = (0..count).map(|_| Ok(i64::from(self.flag()?)));
                GgufValue::Integers(flags.collect::<Result<_, String>>()?)
            }
            kind => {
                let numbers = (0..count).map(|_| self.integer(kind));
                GgufValue::Integers(numbers.collect::<Result<_, _>>()?)
            }
        })
    }

    fn flag(&mut self) -> Result<bool, String> {
        match self.bytes::<1>("a truth value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("a truth value is {other}, expected 0 or 1")),
        }
    }

    /// A number of 32 bits as the shortest decimal that stands for it.
    fn real32(&mut self) -> Result<f64, String> {
        let real = f32::from_le_bytes(self.bytes("a number")?);
        Ok(real.to_string().parse().unwrap_or(f64::from(real)))
    }

    fn integer(&mut self, kind: u32) -> Result<i64, String> {
        const WHAT: &str = "a number";
        Ok(match kind {
            0 => self.bytes::<1>(WHAT)?[0].into(),
            1 => i8::from_le_bytes(self.bytes(WHAT)?).into(),
            2 => u16::from_le_bytes(self.bytes(WHAT)?).into(),
            3 => i16::from_le_bytes(self.bytes(WHAT)?).into(),
            4 => u32::from_le_bytes(self.bytes(WHAT)?).into(),
            5 => i32::from_le_bytes(self.bytes(WHAT)?).into(),
            10 => {
                let number = self.u64(WHAT)?;
                i64::try_from(number).map_err(|_| format!("the number {number} is too large"))?
            }
            11 => i64::from_le_bytes(self.bytes(WHAT)?),
            _ => return Err(format!("a value of the unknown type {kind}")),
        })
    }
}
