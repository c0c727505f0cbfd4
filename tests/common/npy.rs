//! Files as numpy writes them.

use std::path::Path;

use burn::tensor::Tensor;

/// Writes a matrix as numpy does.
pub fn write_npy(path: &Path, rows: &Tensor<2>) {
    let [n, width] = rows.dims();
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {width}), }}");
    header += &" ".repeat(63 - (10 + header.len()) % 64);
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.to_data().iter::<f32>().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}
