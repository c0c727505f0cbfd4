//! Small holes in masks.

use ndarray::Array2;

/// Logit that a filled hole gets (reference implementation).
const FILLED: f32 = 0.1;

/// A run of equal pixels in a row: columns `start..end`.
struct Run {
    start: u32,
    end: u32,
}

/// Fills holes of a mask in place: 8-connected regions of logits at or below zero that have at
/// most `max_area` pixels become foreground, with the logit 0.1 (reference implementation). Not a
/// number counts as foreground.
///
/// Runs of background are joined with those of the row above by union-find, so the time is linear
/// in the number of pixels (up to the inverse Ackermann function) and the memory 16 bytes per run.
pub fn fill_holes(logits: &mut Array2<f32>, max_area: usize) {
    let (height, width) = logits.dim();
    if max_area == 0 || width == 0 {
        return;
    }
    let mut runs: Vec<Run> = Vec::new();
    // Parent of a run, and the pixels of a root.
    let (mut parents, mut areas): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut rows = Vec::with_capacity(height + 1);
    let mut above = 0..0;
    for row in logits.rows() {
        let first = runs.len();
        rows.push(first);
        let mut column = 0;
        while column < width {
            if !hole(row[column]) {
                column += 1;
                continue;
            }
            let start = column;
            while column < width && hole(row[column]) {
                column += 1;
            }
            parents.push(runs.len() as u32);
            areas.push((column - start) as u32);
            runs.push(Run {
                start: start as u32,
                end: column as u32,
            });
        }
        let mut up = above.start;
        for at in first..runs.len() {
            let (start, end) = (runs[at].start, runs[at].end);
            // Diagonal neighbours count, so runs may miss each other by one column.
            while up < above.end && runs[up].end < start {
                up += 1;
            }
            let mut touching = up;
            while touching < above.end && runs[touching].start <= end {
                join(&mut parents, &mut areas, at as u32, touching as u32);
                touching += 1;
            }
        }
        above = first..runs.len();
    }
    rows.push(runs.len());
    for (y, mut row) in logits.rows_mut().into_iter().enumerate() {
        let first = rows[y];
        for (at, run) in (first..).zip(&runs[first..rows[y + 1]]) {
            let root = root(&mut parents, at as u32) as usize;
            if areas[root] as usize <= max_area {
                let Run { start, end } = *run;
                for column in start..end {
                    row[column as usize] = FILLED;
                }
            }
        }
    }
}

/// Whether a logit is background.
fn hole(logit: f32) -> bool {
    logit <= 0.0
}

/// The root of a run; halves the path on the way.
fn root(parents: &mut [u32], mut at: u32) -> u32 {
    while parents[at as usize] != at {
        let up = parents[at as usize];
        parents[at as usize] = parents[up as usize];
        at = up;
    }
    at
}

/// Joins two components; the larger keeps its root.
fn join(parents: &mut [u32], areas: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root(parents, a), root(parents, b));
    if a == b {
        return;
    }
    let (large, small) = if areas[a as usize] >= areas[b as usize] {
        (a, b)
    } else {
        (b, a)
    };
    parents[small as usize] = large;
    areas[large as usize] += areas[small as usize];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn logits(rows: &[&str]) -> Array2<f32> {
        Array2::from_shape_fn((rows.len(), rows[0].len()), |(y, x)| {
            if rows[y].as_bytes()[x] == b'#' {
                2.0
            } else {
                -3.0
            }
        })
    }

    fn filled(m: &Array2<f32>) -> Vec<(usize, usize)> {
        m.indexed_iter()
            .filter(|(_, v)| **v == FILLED)
            .map(|(at, _)| at)
            .collect()
    }

    #[test]
    fn diagonal_neighbours_are_one_hole() {
        let picture = ["#####", "#.###", "##.##", "#####", "###.#"];
        let mut m = logits(&picture);
        fill_holes(&mut m, 1);
        assert_eq!(filled(&m), [(4, 3)]);
        let mut m = logits(&picture);
        fill_holes(&mut m, 2);
        assert_eq!(filled(&m), [(1, 1), (2, 2), (4, 3)]);
        let mut m = logits(&picture);
        fill_holes(&mut m, 0);
        assert_eq!(m, logits(&picture));
    }

    #[test]
    fn branches_that_meet_below_are_one_hole() {
        // Nine pixels, two arms that meet in the last row.
        let picture = ["#.###.#", "#.###.#", "#.....#"];
        let mut m = logits(&picture);
        fill_holes(&mut m, 8);
        assert!(filled(&m).is_empty());
        fill_holes(&mut m, 9);
        assert_eq!(filled(&m).len(), 9);
    }

    /// Flood fill, the slow way.
    fn slow(m: &Array2<f32>, max_area: usize) -> Array2<f32> {
        let (h, w) = m.dim();
        let mut out = m.clone();
        let mut seen = Array2::from_elem((h, w), false);
        for start in (0..h * w).map(|i| (i / w, i % w)) {
            if seen[start] || m[start] > 0.0 {
                continue;
            }
            let (mut queue, mut at) = (vec![start], 0);
            seen[start] = true;
            while at < queue.len() {
                let (y, x) = queue[at];
                at += 1;
                for ny in y.saturating_sub(1)..=(y + 1).min(h - 1) {
                    for nx in x.saturating_sub(1)..=(x + 1).min(w - 1) {
                        if !seen[[ny, nx]] && m[[ny, nx]] <= 0.0 {
                            seen[[ny, nx]] = true;
                            queue.push((ny, nx));
                        }
                    }
                }
            }
            if queue.len() <= max_area {
                queue.into_iter().for_each(|p| out[p] = FILLED);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn equals_flood_fill(h in 1usize..24, w in 1usize..24, area in 0usize..40,
            bits in proptest::collection::vec(0u8..10, 576), density in 1u8..9) {
            let m = Array2::from_shape_fn((h, w), |(y, x)| if bits[y * 24 + x] < density { 1.0 } else { 0.0 });
            let mut fast = m.clone();
            fill_holes(&mut fast, area);
            prop_assert_eq!(fast, slow(&m, area));
        }
    }
}
