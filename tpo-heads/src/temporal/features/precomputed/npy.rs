//! numpy's `.npy` format, as far as float matrices use it.
//!
//! Format description: numpy's `numpy.lib.format`, versions 1.0 to 3.0.

use ndarray::{Array as NdArray, IxDyn, ShapeBuilder};
use tpo_core::weights::Dtype;

use super::read::floats;

/// First bytes of a file.
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header accepted, in bytes; numpy's own is 10 000 by default.
const MAX_HEADER: usize = 1 << 16;
/// Most axes of an array, as in numpy.
const MAX_AXES: usize = 32;

/// What a header says.
struct Header {
    dtype: Dtype,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Values in row-major order and their shape.
pub(super) type Array = (Vec<f32>, Vec<usize>);

/// Reads a whole `.npy` file of floats.
pub(super) fn parse(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = split(bytes)?;
    let header = parse_header(&String::from_utf8_lossy(header))?;
    let width = header.dtype.bitsize() / 8;
    let size = header
        .shape
        .iter()
        .try_fold(width as u64, |n, d| n.checked_mul(*d));
    if size != Some(data.len() as u64) {
        return Err(format!(
            "its header describes an array of shape {:?} but {} bytes of data follow; it is \
             truncated or damaged",
            header.shape,
            data.len()
        ));
    }
    let mut data = data.to_vec();
    if header.big_endian {
        data.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    let values = floats(&data, header.dtype).ok_or("it holds no floats")?;
    let shape: Vec<usize> = header.shape.iter().map(|d| *d as usize).collect();
    let order = IxDyn(&shape).set_f(header.fortran_order);
    let array = NdArray::from_shape_vec(order, values).map_err(|e| e.to_string())?;
    // In logical order, whatever the order of the file.
    Ok((array.iter().copied().collect(), shape))
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

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (75, 2304), }`, the fields in the order
/// in which numpy writes them.
fn parse_header(text: &str) -> Result<Header, String> {
    let wrong = |what: &str| {
        format!(
            "its header is not numpy's: {what}; found `{}`, expected `{{'descr': '<f4', \
             'fortran_order': False, 'shape': (rows, width), }}`",
            text.trim()
        )
    };
    let text = text.trim();
    let fields = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let fields = fields.ok_or_else(|| wrong("no dictionary"))?;
    let (descr, rest) = fields
        .split_once("'fortran_order':")
        .ok_or_else(|| wrong("no fortran_order"))?;
    let (order, shape) = rest
        .split_once("'shape':")
        .ok_or_else(|| wrong("no shape"))?;
    let fortran_order = match clean(order) {
        "True" => true,
        "False" => false,
        _ => return Err(wrong("fortran_order is neither True nor False")),
    };
    let axes = clean(shape)
        .strip_prefix('(')
        .and_then(|s| s.strip_suffix(')'));
    let axes = axes.ok_or_else(|| wrong("the shape is no tuple"))?;
    let shape: Vec<u64> = axes
        .split(',')
        .map(str::trim)
        .filter(|axis| !axis.is_empty())
        // Python 2 wrote long integers with an L.
        .map(|axis| axis.trim_end_matches('L').parse().ok())
        .collect::<Option<_>>()
        .filter(|axes: &Vec<u64>| axes.len() <= MAX_AXES)
        .ok_or_else(|| wrong("the shape is no list of lengths"))?;
    let descr = clean(descr)
        .strip_prefix("'descr':")
        .ok_or_else(|| wrong("no descr"))?;
    let descr = descr.trim().trim_matches('\'');
    let (big_endian, kind) = match descr.split_at_checked(1) {
        Some(("<" | "=" | "|", kind)) => (false, kind),
        Some((">", kind)) => (true, kind),
        _ => (false, descr),
    };
    let dtype = match kind {
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "O" => return Err("it holds pickled Python objects, which are never read".into()),
        _ => {
            return Err(format!(
                "its elements are `{descr}`, floats of 2, 4 or 8 bytes were expected"
            ));
        }
    };
    Ok(Header {
        dtype,
        big_endian,
        fortran_order,
        shape,
    })
}

/// A field without the comma after it.
fn clean(field: &str) -> &str {
    field.trim().trim_end_matches(',').trim_end()
}

#[cfg(test)]
pub(super) mod tests {
    use half::f16;

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
            (file("<f4', 'x': '", "False", "(1, 1)", &[0; 4]), "floats"),
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
