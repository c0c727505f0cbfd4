//! The bytes of one tensor at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{BoolStore, Bytes, DType, TensorData};
use safetensors::Dtype;

use super::header::TensorEntry;
use super::{Result, WeightsError};
use crate::ops::QuantFormat;

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

/// The data of one tensor of a checkpoint.
///
/// # Errors
/// [`WeightsError::TensorData`] when it cannot be read or Burn has no such data type.
pub fn read_tensor(entry: &TensorEntry) -> Result<TensorData> {
    TensorReader::default().read(entry)
}

/// Reads tensors from their positions, keeping the file of the last one open.
#[derive(Default)]
pub(crate) struct TensorReader {
    open: Option<(Arc<Path>, File)>,
}

impl TensorReader {
    /// The data of one tensor, in the file's data type; blocks as `f32`.
    pub(crate) fn read(&mut self, entry: &TensorEntry) -> Result<TensorData> {
        let fail = |why: String| entry.fault(why);
        let dtype = entry.element_type()?;
        let bytes = self.bytes(entry)?;
        if let Some(blocks) = entry.blocks {
            return Ok(TensorData::new(blocks.decode(&bytes), entry.shape.clone()));
        }
        TensorData::try_from_bytes(Bytes::from_bytes_vec(bytes), entry.shape.clone(), dtype)
            .map_err(|e| fail(e.to_string()))
    }

    /// The packed lines `[rows, words]` of a tensor of blocks that `format` has too.
    pub(crate) fn read_packed(
        &mut self,
        entry: &TensorEntry,
        format: QuantFormat,
    ) -> Result<Option<TensorData>> {
        let ([rows, d_in], Some(blocks)) = (entry.shape.as_slice(), entry.blocks) else {
            return Ok(None);
        };
        if blocks.packed() != Some(format) {
            return Ok(None);
        }
        let packed = blocks.pack(&self.bytes(entry)?, *d_in);
        Ok(packed.map(|packed| {
            let words = packed.len() / rows.max(&1);
            TensorData::new(packed, [*rows, words])
        }))
    }

    /// The bytes of one tensor, its rows in our order.
    fn bytes(&mut self, entry: &TensorEntry) -> Result<Vec<u8>> {
        let fail = |why: String| entry.fault(why);
        let len = usize::try_from(entry.len)
            .map_err(|_| fail("it is larger than the address space".into()))?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len)
            .map_err(|e| fail(format!("no memory for {len} bytes: {e}")))?;
        let file = self.file(entry)?;
        file.seek(SeekFrom::Start(entry.offset))
            .and_then(|_| file.take(entry.len).read_to_end(&mut bytes))
            .map_err(|e| fail(e.to_string()))?;
        if bytes.len() != len {
            return Err(fail(format!(
                "{} bytes were read where the header says {len}; the file changed while loading",
                bytes.len()
            )));
        }
        match entry.interleaved_heads {
            Some(heads) => rotate_half_rows(&bytes, entry.shape[0], heads).ok_or_else(|| {
                fail(format!(
                    "its rows are not those of {heads} heads of even width"
                ))
            }),
            None => Ok(bytes),
        }
    }

    fn file(&mut self, entry: &TensorEntry) -> Result<&mut File> {
        let open = match self.open.take().filter(|(path, _)| *path == entry.file) {
            Some(open) => open,
            None => {
                let file =
                    File::open(&entry.file).map_err(WeightsError::io("opening", &entry.file))?;
                (entry.file.clone(), file)
            }
        };
        Ok(&mut self.open.insert(open).1)
    }
}

/// Rows of heads whose pairs lie side by side, as interleaved RoPE has them, with the first of all
/// pairs of a head in front of the second. `None` where the rows are no heads of even width.
fn rotate_half_rows(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    let half = rows
        .checked_div(heads.checked_mul(2)?)
        .filter(|half| *half > 0)?;
    let row = bytes.len() / rows;
    if half * 2 * heads != rows || row * rows != bytes.len() {
        return None;
    }
    let mut sorted = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(2 * half * row) {
        for of_pair in [0, 1] {
            for pair in head.chunks_exact(2 * row) {
                sorted.extend_from_slice(&pair[of_pair * row..][..row]);
            }
        }
    }
    Some(sorted)
}
