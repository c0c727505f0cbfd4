//! Rows of features in memory.

use burn::tensor::{Device, Tensor, TensorData};

use crate::temporal::features::L2_EPS;

/// Feature rows `[rows, width]`, row-major, both at least one, every value finite.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMatrix {
    rows: usize,
    width: usize,
    values: Vec<f32>,
}

impl FeatureMatrix {
    /// A matrix of `rows · width` finite values; `None` for any other number or other values.
    pub fn new(rows: usize, width: usize, values: Vec<f32>) -> Option<Self> {
        let fits = rows.checked_mul(width) == Some(values.len()) && !values.is_empty();
        (fits && values.iter().all(|v| v.is_finite())).then_some(Self {
            rows,
            width,
            values,
        })
    }

    /// Number of rows: seconds or clips of a video, tokens of a query.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As a tensor `[rows, width]` in f32.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let data = TensorData::new(self.values.clone(), [self.rows, self.width]);
        Tensor::from_data(data, device)
    }

    /// Keeps at most the first `rows` rows, at least one.
    pub fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows.max(1));
        self.values.truncate(self.rows * self.width);
    }

    /// Divides every row by its length plus 1e-5 (CG-DETR's data loader).
    pub fn normalise(&mut self) {
        for row in self.values.chunks_exact_mut(self.width) {
            let square: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            let norm = square.sqrt() + L2_EPS;
            row.iter_mut()
                .for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }

    /// Puts matrices side by side, cut to the shortest; `None` for none.
    pub fn concat(parts: Vec<Self>) -> Option<Self> {
        let rows = parts.iter().map(|p| p.rows).min()?;
        if parts.len() == 1 {
            return parts.into_iter().next();
        }
        let width = parts.iter().map(|p| p.width).sum();
        let mut values = Vec::with_capacity(rows * width);
        for row in 0..rows {
            for part in &parts {
                values.extend(&part.values[row * part.width..(row + 1) * part.width]);
            }
        }
        Some(Self {
            rows,
            width,
            values,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_side_by_side_are_cut_to_the_shortest() {
        let a = FeatureMatrix::new(3, 1, vec![1.0, 2.0, 3.0]).unwrap();
        let b = FeatureMatrix::new(2, 2, vec![4.0, 5.0, 6.0, 7.0]).unwrap();
        let both = FeatureMatrix::concat(vec![a, b]).unwrap();
        assert_eq!((both.rows(), both.width()), (2, 3));
        assert_eq!(both.values(), [1.0, 4.0, 5.0, 2.0, 6.0, 7.0]);
        assert_eq!(FeatureMatrix::concat(Vec::new()), None);
    }

    #[test]
    fn only_finite_matrices_exist() {
        assert!(FeatureMatrix::new(1, 2, vec![1.0, f32::NAN]).is_none());
        assert!(FeatureMatrix::new(2, 2, vec![1.0]).is_none());
        assert!(FeatureMatrix::new(0, 5, Vec::new()).is_none());
        assert!(FeatureMatrix::new(usize::MAX, 2, vec![1.0]).is_none());
    }
}
