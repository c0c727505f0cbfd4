//! The data of one tensor, read in pieces by all threads, each straight to its place.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use burn::tensor::{BoolStore, Bytes, DType, TensorData};
use bytemuck::Pod;
use bytemuck::allocation::try_zeroed_vec;
use rayon::prelude::*;
use safetensors::Dtype;

use super::header::TensorEntry;
use super::{Result, WeightsError};
use crate::ops::QuantFormat;

/// About the bytes of the file that a task reads: few enough that what is made of them is still in the
/// core's cache.
const PIECE: usize = 1 << 20;

/// The format's data types that Burn has, with Burn's.
const DTYPES: [(Dtype, DType); 13] = [
    (Dtype::F64, DType::F64),
    (Dtype::F32, DType::F32),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::BF16),
    (Dtype::I64, DType::I64),
    (Dtype::I32, DType::I32),
    (Dtype::I16, DType::I16),
    (Dtype::I8, DType::I8),
    (Dtype::U64, DType::U64),
    (Dtype::U32, DType::U32),
    (Dtype::U16, DType::U16),
    (Dtype::U8, DType::U8),
    (Dtype::BOOL, DType::Bool(BoolStore::Native)),
];

/// The data type Burn holds this one in, or `None` when it has no such type.
pub(crate) fn burn_dtype(dtype: Dtype) -> Option<DType> {
    let found = DTYPES.iter().find(|(file, _)| *file == dtype);
    found.map(|(_, burn)| *burn)
}

/// The format's type for one of Burn's, or `None` when it has no such type.
pub(crate) fn file_dtype(dtype: DType) -> Option<Dtype> {
    let dtype = if dtype == DType::Flex32 {
        DType::F32
    } else {
        dtype
    };
    let found = DTYPES.iter().find(|(_, burn)| *burn == dtype);
    found.map(|(file, _)| *file)
}

impl TensorEntry {
    /// The data type that Burn holds it in.
    ///
    /// # Errors
    /// [`WeightsError::TensorData`] when Burn has no such type.
    pub fn element_type(&self) -> Result<DType> {
        burn_dtype(self.dtype)
            .ok_or_else(|| self.fault(format!("Burn has no data type for {:?}", self.dtype)))
    }
}

/// The data of one tensor of a checkpoint, in the file's data type; blocks as `f32`.
///
/// # Errors
/// [`WeightsError::TensorData`] when it cannot be read or Burn has no such data type.
pub fn read_tensor(entry: &TensorEntry) -> Result<TensorData> {
    read_tensor_as(entry, entry.element_type()?)
}

/// The data of one tensor of a checkpoint as `dtype`. Beside the result a few MiB for each thread are in
/// memory.
///
/// # Errors
/// As [`read_tensor`], and when it cannot be cast to `dtype`.
pub fn read_tensor_as(entry: &TensorEntry, dtype: DType) -> Result<TensorData> {
    let from = entry.element_type()?;
    let source = Source::open(entry, None)?;
    let as_it_is = from == dtype && entry.blocks.is_none();
    let elements = entry.shape.iter().product();
    let bytes = filled(entry, dtype, elements, |out| {
        source.pieces(source.elements * dtype.size(), out, |file, units, out| {
            if as_it_is {
                return source.read(file, units, out);
            }
            out.copy_from_slice(source.elements(file, units, dtype)?.as_bytes());
            Ok(())
        })
    })?;
    data(entry, bytes, &entry.shape, dtype)
}

/// The packed lines `[rows, words]` of a tensor `[rows, d_in]` of floats: its blocks as they are where
/// `format` has the same, else its elements quantised, some lines at a time.
///
/// # Errors
/// As [`read_tensor_as`], and for a shape that has no such lines.
pub(crate) fn read_quantized(entry: &TensorEntry, format: QuantFormat) -> Result<TensorData> {
    let no_lines = || {
        let (shape, name) = (&entry.shape, format.name());
        entry.fault(format!("{shape:?} has no lines of whole {name} blocks"))
    };
    let lines = match entry.shape[..] {
        [rows, d_in] => format.words(d_in).map(|words| (rows, d_in, words)),
        _ => None,
    };
    let (rows, d_in, words) = lines.ok_or_else(no_lines)?;
    let source = Source::open(entry, Some(rows))?;
    let same = entry.blocks.filter(|b| b.packed() == Some(format));
    let made = source.elements / d_in * words * size_of::<u32>();
    let bytes = filled(entry, DType::U32, rows * words, |out| {
        source.pieces(made, out, |file, units, out| {
            let packed = match same {
                Some(blocks) => blocks.pack(&source.bytes(file, units)?, d_in),
                None => {
                    let values = source.elements(file, units, DType::F32)?;
                    let values = values.as_slice::<f32>();
                    format.quantize(values.map_err(|e| entry.fault(e.to_string()))?, d_in)
                }
            };
            out.copy_from_slice(bytemuck::cast_slice(&packed.ok_or_else(no_lines)?));
            Ok(())
        })
    })?;
    data(entry, bytes, &[rows, words], DType::U32)
}

fn data(entry: &TensorEntry, bytes: Bytes, shape: &[usize], dtype: DType) -> Result<TensorData> {
    TensorData::try_from_bytes(bytes, shape.to_vec(), dtype).map_err(|e| entry.fault(e.to_string()))
}

/// So many elements of `dtype` as `fill` writes them. Before that nothing has touched their memory, which
/// the system gives as zeros; and as it is aligned as the elements are, Burn takes it without a copy.
fn filled(
    entry: &TensorEntry,
    dtype: DType,
    elements: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<Bytes> {
    fn of<T: Pod + Send + Sync>(
        entry: &TensorEntry,
        elements: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Bytes> {
        let no_memory = |()| {
            let bytes = elements.saturating_mul(size_of::<T>());
            entry.fault(format!("no memory for {bytes} bytes"))
        };
        let mut values = try_zeroed_vec::<T>(elements).map_err(no_memory)?;
        fill(bytemuck::cast_slice_mut(&mut values))?;
        Ok(Bytes::from_elems(values))
    }
    match dtype.size() {
        1 => of::<u8>(entry, elements, fill),
        2 => of::<u16>(entry, elements, fill),
        4 => of::<u32>(entry, elements, fill),
        8 => of::<u64>(entry, elements, fill),
        size => Err(entry.fault(format!("no element of {dtype:?} has {size} bytes"))),
    }
}

/// A tensor in its file, in units of which something is made each by itself.
struct Source<'a> {
    entry: &'a TensorEntry,
    /// Bytes of a unit in the file.
    bytes: usize,
    /// Elements of a unit.
    elements: usize,
}

impl<'a> Source<'a> {
    /// A tensor of which the file still has everything, in so many units, or in elements or blocks; in
    /// heads where rows change their places in them.
    fn open(entry: &'a TensorEntry, units: Option<usize>) -> Result<Self> {
        let len = usize::try_from(entry.len)
            .map_err(|_| entry.fault("it is larger than the address space"))?;
        let file = std::fs::metadata(&entry.file);
        let file = file.map_err(WeightsError::io("opening", &entry.file))?;
        let there = file.len().saturating_sub(entry.offset);
        if there < entry.len {
            return Err(entry.fault(format!(
                "{there} bytes were read where the header says {len}; the file changed while loading"
            )));
        }
        if let Some(heads) = entry.interleaved_heads {
            let rows = entry.shape.first().copied().unwrap_or_default();
            let pairs = heads.checked_mul(2).filter(|_| rows > 0);
            let even = pairs.is_some_and(|pairs| rows.is_multiple_of(pairs));
            if !even || !len.is_multiple_of(rows) {
                return Err(entry.fault(format!(
                    "its rows are not those of {heads} heads of even width"
                )));
            }
        }
        let all: usize = entry.shape.iter().product();
        let (bytes, elements) = match (entry.interleaved_heads.or(units), entry.blocks) {
            (Some(units), _) => (len / units.max(1), all / units.max(1)),
            (None, Some(blocks)) => (blocks.bytes(), blocks.elements()),
            (None, None) => (entry.element_type()?.size(), 1),
        };
        Ok(Self {
            entry,
            bytes,
            elements,
        })
    }

    /// Fills `out` by calling `make` with the open file, the units of a piece and its part of `out`, `made`
    /// bytes a unit, on all threads. A position belongs to an open file, so every task has one of its own
    /// for the pieces that it makes.
    fn pieces(
        &self,
        made: usize,
        out: &mut [u8],
        make: impl Fn(&mut File, Range<usize>, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let (made, units) = (made.max(1), (PIECE / self.bytes.max(1)).max(1));
        out.par_chunks_mut(units * made)
            .enumerate()
            .try_for_each_init(
                || File::open(&self.entry.file),
                |file, (piece, out)| {
                    let file = file.as_mut().map_err(|e| self.entry.fault(e.to_string()))?;
                    let first = piece * units;
                    make(file, first..first + out.len() / made, out)
                },
            )
    }

    /// Fills `out` with the bytes of `units`, the rows of heads in our order.
    fn read(&self, file: &mut File, units: Range<usize>, out: &mut [u8]) -> Result<()> {
        let at = self.entry.offset + (units.start * self.bytes) as u64;
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(out))
            .map_err(|e| self.entry.fault(e.to_string()))?;
        if let Some(heads) = self.entry.interleaved_heads {
            let rows = self.entry.shape[0] / heads;
            for head in out.chunks_exact_mut(self.bytes) {
                rotate_half_rows(head, rows);
            }
        }
        Ok(())
    }

    fn bytes(&self, file: &mut File, units: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; units.len() * self.bytes];
        self.read(file, units, &mut bytes)?;
        Ok(bytes)
    }

    /// The elements of `units` `[elements]` as `dtype`.
    fn elements(&self, file: &mut File, units: Range<usize>, dtype: DType) -> Result<TensorData> {
        let (entry, elements) = (self.entry, units.len() * self.elements);
        let read = match entry.blocks {
            Some(blocks) => TensorData::new(blocks.decode(&self.bytes(file, units)?), [elements]),
            None => {
                let from = entry.element_type()?;
                let bytes = filled(entry, from, elements, |out| self.read(file, units, out))?;
                data(entry, bytes, &[elements], from)?
            }
        };
        read.try_cast(dtype)
            .map_err(|e| entry.fault(format!("it cannot be cast to {dtype:?}: {e}")))
    }
}

/// The rows of a head whose pairs lie side by side, as interleaved RoPE has them, with the first of all
/// pairs in front of the second.
fn rotate_half_rows(head: &mut [u8], rows: usize) {
    let (row, interleaved) = (head.len() / rows, head.to_vec());
    let (first, second) = head.split_at_mut(rows / 2 * row);
    let pairs = interleaved.chunks_exact(2 * row);
    for ((first, second), pair) in first
        .chunks_exact_mut(row)
        .zip(second.chunks_exact_mut(row))
        .zip(pairs)
    {
        first.copy_from_slice(&pair[..row]);
        second.copy_from_slice(&pair[row..]);
    }
}
