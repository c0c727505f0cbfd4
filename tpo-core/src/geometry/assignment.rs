//! Minimum-cost assignment (the "Hungarian" matching of set criteria).

use crate::error::{CoreError, Result};

/// Matches rows to columns of a cost matrix `[rows][columns]` so that the summed cost is minimal.
///
/// Returns `min(rows, columns)` pairs `(row, column)` with ascending rows. Shortest augmenting
/// paths (Jonker–Volgenant) in f64, O(n²·m).
///
/// # Errors
/// [`CoreError::Shape`] when rows have different lengths or a cost is NaN or infinite.
pub fn assign(cost: &[Vec<f64>]) -> Result<Vec<(usize, usize)>> {
    let rows = cost.len();
    let columns = cost.first().map_or(0, Vec::len);
    if cost
        .iter()
        .any(|r| r.len() != columns || r.iter().any(|c| !c.is_finite()))
    {
        return Err(CoreError::Shape {
            place: "assignment",
            what: "cost matrix",
            expected: format!("{rows} rows of {columns} finite numbers"),
            found: cost.iter().map(Vec::len).collect(),
        });
    }
    if rows == 0 || columns == 0 {
        return Ok(Vec::new());
    }
    if rows > columns {
        let transposed: Vec<Vec<f64>> = (0..columns)
            .map(|c| cost.iter().map(|r| r[c]).collect())
            .collect();
        let mut pairs: Vec<_> = augment(&transposed).map(|(c, r)| (r, c)).collect();
        pairs.sort_unstable();
        return Ok(pairs);
    }
    let mut pairs: Vec<_> = augment(cost).collect();
    pairs.sort_unstable();
    Ok(pairs)
}

/// Needs `rows <= columns`, both positive. Row and column 0 of the work arrays are sentinels.
fn augment(cost: &[Vec<f64>]) -> impl Iterator<Item = (usize, usize)> {
    let (n, m) = (cost.len(), cost[0].len());
    let mut row_potential = vec![0.0; n + 1];
    let mut column_potential = vec![0.0; m + 1];
    let mut row_of = vec![0usize; m + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut column = 0;
        let mut slack = vec![f64::INFINITY; m + 1];
        let mut previous = vec![0usize; m + 1];
        let mut done = vec![false; m + 1];
        loop {
            done[column] = true;
            let r = row_of[column];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for c in 1..=m {
                if done[c] {
                    continue;
                }
                let reduced = cost[r - 1][c - 1] - row_potential[r] - column_potential[c];
                if reduced < slack[c] {
                    slack[c] = reduced;
                    previous[c] = column;
                }
                if slack[c] < delta {
                    delta = slack[c];
                    next = c;
                }
            }
            for c in 0..=m {
                if done[c] {
                    row_potential[row_of[c]] += delta;
                    column_potential[c] -= delta;
                } else {
                    slack[c] -= delta;
                }
            }
            column = next;
            if row_of[column] == 0 {
                break;
            }
        }
        while column != 0 {
            row_of[column] = row_of[previous[column]];
            column = previous[column];
        }
    }
    row_of
        .into_iter()
        .enumerate()
        .skip(1)
        .filter(|(_, r)| *r > 0)
        .map(|(c, r)| (r - 1, c - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_by_three_by_hand() {
        // 2 + 2 + 1: rows take columns 1, 0, 2.
        let cost = vec![
            vec![4.0, 2.0, 8.0],
            vec![2.0, 3.0, 7.0],
            vec![3.0, 1.0, 1.0],
        ];
        assert_eq!(assign(&cost).unwrap(), [(0, 1), (1, 0), (2, 2)]);
    }

    #[test]
    fn rectangular_both_ways_and_empty() {
        let wide = vec![vec![5.0, 1.0, 9.0]];
        assert_eq!(assign(&wide).unwrap(), [(0, 1)]);
        let tall = vec![vec![5.0], vec![1.0], vec![9.0]];
        assert_eq!(assign(&tall).unwrap(), [(1, 0)]);
        assert!(assign(&[]).unwrap().is_empty());
        assert!(assign(&[vec![], vec![]]).unwrap().is_empty());
    }

    #[test]
    fn not_a_number_is_an_error() {
        assert!(assign(&[vec![f64::NAN]]).is_err());
        assert!(assign(&[vec![1.0, 2.0], vec![1.0]]).is_err());
    }
}
