//! numpy's `.npy` format, as far as float matrices use it.
//!
//! Format description: numpy's `numpy.lib.format`, versions 1.0 to 3.0.

use half::f16;

/// First bytes of a file.
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header accepted, in bytes; numpy's own is 10 000 by default.
const MAX_HEADER: usize = 1 << 16;

/// A numeric type of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    F32,
    F64,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq)]
struct Header {
    element: Element,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Values in row-major order and their shape.
pub(super) type Array = (Vec<f32>, Vec<usize>);

/// Reads a whole `.npy` file of floats.
pub(super) fn parse(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = split(bytes)?;
    let text = std::str::from_utf8(header).map_err(|_| "its header is not text".to_string())?;
    let header = parse_header(text)?;
    let size = header
        .shape
        .iter()
        .try_fold(header.element.bytes() as u64, |n, d| n.checked_mul(*d));
    if size != Some(data.len() as u64) {
        return Err(format!(
            "its header describes an array of shape {:?} but {} bytes of data follow; it is \
             truncated or damaged",
            header.shape,
            data.len()
        ));
    }
    let shape: Vec<usize> = header.shape.iter().map(|d| *d as usize).collect();
    let values = decode(data, &header);
    if header.fortran_order {
        Ok((row_major(&values, &shape), shape))
    } else {
        Ok((values, shape))
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let not_npy = || "it is not a numpy file: the first bytes are wrong".to_string();
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(not_npy)?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(not_npy)?;
    let width = match version {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        _ => return Err(format!("its format version {version:?} is unknown")),
    };
    let truncated = || "its header is truncated".to_string();
    let (length, rest) = rest.split_at_checked(width).ok_or_else(truncated)?;
    let length = length
        .iter()
        .rev()
        .fold(0usize, |n, b| n << 8 | *b as usize);
    if length > MAX_HEADER {
        return Err(format!("its header claims {length} bytes"));
    }
    rest.split_at_checked(length).ok_or_else(truncated)
}

fn decode(data: &[u8], header: &Header) -> Vec<f32> {
    macro_rules! numbers {
        ($n:literal, $from:expr) => {
            data.as_chunks::<$n>()
                .0
                .iter()
                .map(|bytes| {
                    let mut bytes = *bytes;
                    if header.big_endian {
                        bytes.reverse();
                    }
                    $from(bytes)
                })
                .collect()
        };
    }
    match header.element {
        Element::F16 => numbers!(2, |b| f16::from_le_bytes(b).to_f32()),
        Element::F32 => numbers!(4, f32::from_le_bytes),
        Element::F64 => numbers!(8, |b| f64::from_le_bytes(b) as f32),
    }
}

/// Column-major values in row-major order.
fn row_major(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (from, value) in values.iter().enumerate() {
        let (mut rest, mut to) = (from, 0);
        let mut stride = values.len();
        for &d in shape {
            // The first axis runs fastest in the file and slowest in the result.
            stride /= d.max(1);
            to += rest % d * stride;
            rest /= d;
        }
        out[to] = *value;
    }
    out
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (75, 2304), }` and nothing else.
fn parse_header(text: &str) -> Result<Header, String> {
    let mut parser = Parser(text.trim());
    let wrong = |what: &str| format!("its header is not numpy's: {what}");
    let (mut descr, mut order, mut shape) = (None, None, None);
    parser.expect('{').ok_or_else(|| wrong("no dictionary"))?;
    while !parser.take('}') {
        let key = parser.string().ok_or_else(|| wrong("a key is no string"))?;
        parser
            .expect(':')
            .ok_or_else(|| wrong("a colon is missing"))?;
        match key {
            "descr" => {
                descr =
                    Some(parser.string().ok_or_else(|| {
                        "it holds records, not one number per element".to_string()
                    })?);
            }
            "fortran_order" => {
                order = Some(parser.boolean().ok_or_else(|| wrong("fortran_order"))?);
            }
            "shape" => shape = Some(parser.tuple().ok_or_else(|| wrong("shape"))?),
            other => return Err(wrong(&format!("unknown key `{other}`"))),
        }
        if !parser.take(',') && !parser.0.starts_with('}') {
            return Err(wrong("a comma is missing"));
        }
    }
    if !parser.0.is_empty() {
        return Err(wrong("text follows the dictionary"));
    }
    let (Some(descr), Some(fortran_order), Some(shape)) = (descr, order, shape) else {
        return Err(wrong("descr, fortran_order or shape is missing"));
    };
    let (big_endian, kind) = match descr.split_at_checked(1) {
        Some(("<" | "=", kind)) => (false, kind),
        Some((">", kind)) => (true, kind),
        _ => (false, descr),
    };
    let element = match kind {
        "f2" => Element::F16,
        "f4" => Element::F32,
        "f8" => Element::F64,
        "O" | "|O" => return Err("it holds pickled Python objects, which are never read".into()),
        _ => {
            return Err(format!(
                "its elements are `{descr}`, floats of 2, 4 or 8 bytes were expected"
            ));
        }
    };
    Ok(Header {
        element,
        big_endian,
        fortran_order,
        shape,
    })
}

/// What is left of a header.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn take(&mut self, c: char) -> bool {
        match self.0.strip_prefix(c) {
            Some(rest) => {
                self.0 = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Option<()> {
        self.take(c).then_some(())
    }

    /// A string without escapes, in either kind of quotes.
    fn string(&mut self) -> Option<&'a str> {
        let quote = self.0.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, rest) = self.0[1..].split_once(quote)?;
        self.0 = rest.trim_start();
        (!text.contains('\\')).then_some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(word) {
                self.0 = rest.trim_start();
                return Some(value);
            }
        }
        None
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        self.expect('(')?;
        let mut out = Vec::new();
        while !self.take(')') {
            let end = self.0.find(|c: char| !c.is_ascii_digit())?;
            out.push(self.0[..end].parse().ok()?);
            // Python 2 wrote long integers so.
            self.0 = self.0[end..].trim_start_matches('L').trim_start();
            if !self.take(',') && !self.0.starts_with(')') {
                return None;
            }
        }
        (out.len() <= 32).then_some(out)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A version 1 file as numpy writes it.
    pub(crate) fn file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut text =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        while (10 + text.len() + 1) % 64 != 0 {
            text.push(' ');
        }
        text.push('\n');
        let mut out = MAGIC.to_vec();
        out.extend([1, 0]);
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.as_bytes());
        out.extend(data);
        out
    }

    #[test]
    fn every_float_type_and_order_is_read() {
        let data: Vec<u8> = (1..=6).flat_map(|v| (v as f32).to_le_bytes()).collect();
        let (values, shape) = parse(&file("<f4", "False", "(2, 3)", &data)).unwrap();
        assert_eq!(
            (values, shape),
            (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![2, 3])
        );
        let (values, _) = parse(&file("<f4", "True", "(2, 3)", &data)).unwrap();
        assert_eq!(values, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        let data: Vec<u8> = [1.5f64, -2.0]
            .iter()
            .flat_map(|v| v.to_be_bytes())
            .collect();
        let (values, _) = parse(&file(">f8", "False", "(1, 2)", &data)).unwrap();
        assert_eq!(values, [1.5, -2.0]);
        let data = f16::from_f32(0.25).to_le_bytes();
        let (values, shape) = parse(&file("<f2", "False", "(1,)", &data)).unwrap();
        assert_eq!((values, shape), (vec![0.25], vec![1]));
    }

    #[test]
    fn damaged_and_hostile_files_are_named() {
        let good = file("<f4", "False", "(1, 1)", &[0; 4]);
        for (bytes, part) in [
            (b"PK\x03\x04".to_vec(), "first bytes"),
            (Vec::new(), "first bytes"),
            (good[..good.len() - 1].to_vec(), "truncated"),
            (good[..30].to_vec(), "truncated"),
            (file("|O", "False", "(1, 1)", &[0; 8]), "pickled"),
            (file("<i4", "False", "(1, 1)", &[0; 4]), "floats"),
            (file("<f4", "Maybe", "(1, 1)", &[0; 4]), "fortran_order"),
            (file("<f4", "False", "(-1, 1)", &[0; 4]), "shape"),
            (file("<f4", "False", "(1, 1", &[0; 4]), "shape"),
            (
                file("<f4", "False", "(99999999999, 99999999999)", &[0; 4]),
                "truncated",
            ),
            (
                file("<f4', 'x': '", "False", "(1, 1)", &[0; 4]),
                "unknown key",
            ),
        ] {
            let error = parse(&bytes).unwrap_err();
            assert!(error.contains(part), "{error} lacks {part}");
        }
        let mut version = good.clone();
        version[6] = 9;
        assert!(parse(&version).unwrap_err().contains("version"));
        let mut long = good;
        long[6] = 2;
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&long).unwrap_err().contains("claims"));
    }
}
