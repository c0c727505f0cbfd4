//! The bytes of one tensor at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use burn::store::{ModuleStore, SafetensorsStore};
use burn::tensor::{BoolStore, Bytes, DType, TensorData};
use safetensors::Dtype;

use super::header::TensorEntry;
use super::{Result, WeightsError};

/// Smallest tensor that is read through a memory map, in bytes. burn-store parses the header of
/// the file again for every tensor it maps (3 ms in a file of 2 600 tensors), which takes longer
/// than reading a small one.
const MAP_FROM: u64 = 1 << 20;

/// How tensor data is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// Through a memory map, one shard at a time; tensors below 1 MiB as with [`Access::Read`],
    /// and so are files that hold a data type burn-store does not read. The map is file-backed, so its pages can be
    /// reclaimed at any time; they are counted in the resident set of the process. A file that
    /// another process truncates while it is mapped ends the process.
    #[default]
    MemoryMap,
    /// By reading each tensor from its position into its own buffer. Uses no address space
    /// beyond the tensors, and a file that shrinks meanwhile is an error.
    Read,
}

/// The data type Burn holds this one in, or `None` when it has no such type.
pub(crate) fn burn_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

/// The data of one tensor of a checkpoint.
///
/// # Errors
/// [`WeightsError::TensorData`] when it cannot be read or Burn has no such data type.
pub fn read_tensor(entry: &TensorEntry) -> Result<TensorData> {
    let dtype = burn_dtype(entry.dtype)
        .ok_or_else(|| entry.fault(format!("Burn has no data type for {:?}", entry.dtype)))?;
    let bytes = TensorReader::new(Access::Read, std::iter::once(entry)).read(entry)?;
    Ok(TensorData::from_bytes(bytes, entry.shape.clone(), dtype))
}

/// Whether burn-store's reader knows this type. It refuses a file that holds any other.
fn mappable(dtype: Dtype) -> bool {
    burn_dtype(dtype).is_some() && dtype != Dtype::U16
}

/// Reads tensors, keeping the file of the last one open.
pub(crate) struct TensorReader<'a> {
    access: Access,
    /// Files that hold a type burn-store does not read.
    unmappable: Vec<&'a Arc<Path>>,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: Arc<Path>,
    file: File,
    map: Option<SafetensorsStore>,
}

impl<'a> TensorReader<'a> {
    /// A reader for a checkpoint with these tensors.
    pub(crate) fn new(access: Access, tensors: impl Iterator<Item = &'a TensorEntry>) -> Self {
        let mut unmappable: Vec<&Arc<Path>> = Vec::new();
        for t in tensors {
            if !mappable(t.dtype) && !unmappable.contains(&&t.file) {
                unmappable.push(&t.file);
            }
        }
        Self {
            access,
            unmappable,
            open: None,
        }
    }

    /// The bytes of one tensor.
    pub(crate) fn read(&mut self, entry: &TensorEntry) -> Result<Bytes> {
        let fail = |why: String| entry.fault(why);
        let source = self.source(entry)?;
        let bytes = match &mut source.map {
            Some(store) if entry.len >= MAP_FROM => {
                let tensor = store
                    .get_tensor(&entry.key)
                    .map_err(|e| fail(e.to_string()))?
                    .ok_or_else(|| fail("it is gone; the file changed while loading".into()))?;
                tensor.to_bytes().map_err(|e| fail(e.to_string()))?
            }
            _ => {
                let len = usize::try_from(entry.len)
                    .map_err(|_| fail("it is larger than the address space".into()))?;
                let mut bytes = Vec::new();
                bytes
                    .try_reserve_exact(len)
                    .map_err(|e| fail(format!("no memory for {len} bytes: {e}")))?;
                let file = &mut source.file;
                file.seek(SeekFrom::Start(entry.offset))
                    .and_then(|_| file.take(entry.len).read_to_end(&mut bytes))
                    .map_err(|e| fail(e.to_string()))?;
                Bytes::from_bytes_vec(bytes)
            }
        };
        if bytes.len() as u64 != entry.len {
            return Err(fail(format!(
                "{} bytes were read where the header says {}; the file changed while loading",
                bytes.len(),
                entry.len
            )));
        }
        Ok(bytes)
    }

    fn source(&mut self, entry: &TensorEntry) -> Result<&mut OpenFile> {
        let open = match self.open.take().filter(|open| open.path == entry.file) {
            Some(open) => open,
            None => {
                let mapped =
                    self.access == Access::MemoryMap && !self.unmappable.contains(&&entry.file);
                OpenFile {
                    path: entry.file.clone(),
                    file: File::open(&entry.file)
                        .map_err(WeightsError::io("opening", &entry.file))?,
                    // Maps the file when the first tensor is asked for.
                    map: mapped.then(|| SafetensorsStore::from_file(&*entry.file)),
                }
            }
        };
        Ok(self.open.insert(open))
    }
}
