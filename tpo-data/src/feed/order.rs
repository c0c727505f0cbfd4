//! The order of samples: a pure function of seed, epoch and position.
//!
//! Rows of one group (same kind of media) form batches together, since a batch holds clips of
//! one shape. Every group is shuffled, cut into batches, and the batches of all groups are
//! shuffled. Nothing of it is stored: each sample is computed from its position, so
//! resuming and sharding cost nothing.

use serde::{Deserialize, Serialize};

use super::draw::hash;
use super::permutation::Permutation;
use crate::DataError;

/// How the epoch is ordered and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderConfig {
    /// Seed of everything random. Default 42 (the reference's training arguments).
    pub seed: u64,
    /// Samples of a batch on one shard. Default 1.
    pub batch_size: usize,
    /// Number of processes that share the epoch. Default 1.
    pub shards: usize,
    /// Which of them this is, 0-based.
    pub shard: usize,
}

impl Default for OrderConfig {
    fn default() -> Self {
        Self {
            seed: 42,
            batch_size: 1,
            shards: 1,
            shard: 0,
        }
    }
}

/// The rows of a source, by group.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceRows {
    /// Its name, for errors.
    pub name: String,
    /// How often each row comes in an epoch.
    pub repeat: u64,
    /// Factor on its share among the others.
    pub weight: f64,
    /// Rows per group; every source lists the same groups.
    pub groups: Vec<u64>,
    /// Changes with the rows, so that a cursor of other data is noticed.
    pub fingerprint: u64,
}

/// A sample by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SampleKey {
    /// Epoch, 0-based.
    pub epoch: u64,
    /// Place in the epoch before batches are shuffled, unique in the epoch.
    pub index: u64,
    /// Which source.
    pub source: usize,
    /// Which group.
    pub group: usize,
    /// Which row of that group of the source.
    pub row: u64,
}

/// Position of a run in its data; part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Epoch of the next batch, 0-based.
    pub epoch: u64,
    /// Next batch of it, 0-based.
    pub batch: u64,
    /// Fingerprint of data and configuration; 0 before the first batch.
    pub plan: u64,
}

#[derive(Debug, Clone)]
struct Leaf {
    source: usize,
    rows: u64,
    /// Samples of an epoch from here.
    count: u64,
    /// Samples of the group before these.
    first: u64,
}

#[derive(Debug, Clone, Default)]
struct Group {
    leaves: Vec<Leaf>,
    total: u64,
    batches: u64,
    first_batch: u64,
    first_index: u64,
}

/// The order of all epochs.
#[derive(Debug, Clone)]
pub struct Plan {
    order: OrderConfig,
    groups: Vec<Group>,
    samples: u64,
    batches: u64,
    fingerprint: u64,
}

impl Plan {
    /// Works out how many samples each source gives.
    ///
    /// A source of `n` rows has the natural size `n * repeat`; its share of the epoch, which has the sum
    /// of the natural sizes, is proportional to `weight * size^(1 / temperature)`.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for numbers that make no sense, no rows at all, or a source
    /// without rows.
    pub fn new(
        sources: &[SourceRows],
        temperature: f64,
        order: &OrderConfig,
    ) -> Result<Self, DataError> {
        check(sources, order)?;
        let natural: Vec<u64> = sources
            .iter()
            .map(|s| s.groups.iter().sum::<u64>().saturating_mul(s.repeat))
            .collect();
        let plain = temperature == 1.0 && sources.iter().all(|s| s.weight == sources[0].weight);
        let counts = if plain {
            natural
        } else {
            let shares: Vec<f64> = sources
                .iter()
                .zip(&natural)
                .map(|(s, n)| s.weight * (*n as f64).powf(1.0 / temperature))
                .collect();
            apportion(natural.iter().sum(), &shares)
        };
        let n_groups = sources[0].groups.len();
        let mut groups = vec![Group::default(); n_groups];
        for (i, (source, count)) in sources.iter().zip(&counts).enumerate() {
            let shares: Vec<f64> = source.groups.iter().map(|n| *n as f64).collect();
            for (g, count) in apportion(*count, &shares).into_iter().enumerate() {
                let group = &mut groups[g];
                group.leaves.push(Leaf {
                    source: i,
                    rows: source.groups[g],
                    count,
                    first: group.total,
                });
                group.total += count;
            }
        }
        let global = order.batch_size as u64 * order.shards as u64;
        let (mut samples, mut batches) = (0, 0);
        for group in &mut groups {
            group.first_batch = batches;
            group.first_index = samples;
            group.batches = group.total.div_ceil(global);
            batches += group.batches;
            samples += group.total;
        }
        // 1: the order is shuffled, as in the cursors of earlier versions, which had a choice.
        let mut parts = vec![order.seed, global, 1, batches];
        parts.extend(sources.iter().map(|s| s.fingerprint));
        for leaf in groups.iter().flat_map(|g| &g.leaves) {
            parts.extend([leaf.source as u64, leaf.rows, leaf.count]);
        }
        Ok(Self {
            order: *order,
            groups,
            samples,
            batches,
            fingerprint: hash(&parts).max(1),
        })
    }

    /// Batches of an epoch.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Samples of an epoch over all shards.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Fingerprint of data, mixture and order.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Accepts a cursor of this plan.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] when it is of other data, another mixture, seed, batch size
    /// or number of shards: the remaining order would not be the one that was interrupted.
    pub fn check(&self, cursor: &Cursor) -> Result<Cursor, DataError> {
        if cursor.plan != 0 && cursor.plan != self.fingerprint {
            return Err(invalid(format!(
                "the cursor belongs to plan {:016x}, this is {:016x}: data, mixture, seed, batch \
                 size or number of shards changed since; start a new run, or restore them",
                cursor.plan, self.fingerprint
            )));
        }
        Ok(Cursor {
            plan: self.fingerprint,
            ..*cursor
        })
    }

    /// The samples of a batch on this shard; empty past the end of the epoch, and where a last
    /// batch has fewer samples than there are shards.
    pub fn batch(&self, epoch: u64, batch: u64) -> Vec<SampleKey> {
        if batch >= self.batches {
            return Vec::new();
        }
        let seed = self.order.seed;
        let batch = Permutation::new(self.batches, hash(&[seed, epoch, 1])).get(batch);
        // Groups without batches share a start with the next one.
        let begun = |g: &Group| g.first_batch <= batch && g.batches > 0;
        let Some(g) = self.groups.iter().rposition(begun) else {
            return Vec::new();
        };
        let group = &self.groups[g];
        let global = self.order.batch_size as u64 * self.order.shards as u64;
        let start = (batch - group.first_batch) * global;
        let end = (start + global).min(group.total);
        (start..end)
            .skip(self.order.shard)
            .step_by(self.order.shards)
            .filter_map(|p| self.sample(epoch, g, p))
            .collect()
    }

    fn sample(&self, epoch: u64, g: usize, place: u64) -> Option<SampleKey> {
        let group = &self.groups[g];
        let seed = self.order.seed;
        let key = hash(&[seed, epoch, 2, g as u64]);
        let shuffled = Permutation::new(group.total, key).get(place);
        let mut leaves = group.leaves.iter().rev();
        let leaf = leaves.find(|l| l.first <= shuffled && l.count > 0)?;
        // Passes continue from epoch to epoch, so that a quarter of a source is another quarter
        // every time and four epochs show every row once.
        let drawn = u128::from(epoch) * u128::from(leaf.count) + u128::from(shuffled - leaf.first);
        let rows = u128::from(leaf.rows);
        let (pass, within) = ((drawn / rows) as u64, (drawn % rows) as u64);
        let key = hash(&[seed, 3, leaf.source as u64, g as u64, pass]);
        Some(SampleKey {
            epoch,
            index: group.first_index + place,
            source: leaf.source,
            group: g,
            row: Permutation::new(leaf.rows, key).get(within),
        })
    }

    /// The cursor after `cursor`.
    pub fn advance(&self, cursor: Cursor) -> Cursor {
        let batch = cursor.batch + 1;
        let over = batch >= self.batches;
        Cursor {
            epoch: cursor.epoch + u64::from(over),
            batch: if over { 0 } else { batch },
            plan: self.fingerprint,
        }
    }
}

fn invalid(reason: String) -> DataError {
    DataError::InvalidConfig {
        what: "order of samples",
        reason,
    }
}

fn check(sources: &[SourceRows], order: &OrderConfig) -> Result<(), DataError> {
    if sources.is_empty() {
        return Err(invalid("there is no source".into()));
    }
    if order.batch_size == 0 || order.shards == 0 || order.shard >= order.shards {
        return Err(invalid(format!(
            "batch size {}, shard {} of {}",
            order.batch_size, order.shard, order.shards
        )));
    }
    if order.batch_size.saturating_mul(order.shards) > 1 << 32 {
        return Err(invalid("a batch over all shards is above 2^32".into()));
    }
    for s in sources {
        if s.groups.len() != sources[0].groups.len() {
            return Err(invalid(format!("source `{}` lists other groups", s.name)));
        }
        if s.groups.iter().sum::<u64>() == 0 {
            return Err(invalid(format!("source `{}` has no usable row", s.name)));
        }
    }
    Ok(())
}

/// `total` in parts proportional to `shares`, whole numbers that add up to it (largest
/// remainders; ties to the first).
fn apportion(total: u64, shares: &[f64]) -> Vec<u64> {
    let sum: f64 = shares.iter().sum();
    if sum <= 0.0 || !sum.is_finite() {
        return vec![0; shares.len()];
    }
    let exact: Vec<f64> = shares.iter().map(|s| total as f64 * s / sum).collect();
    let mut counts: Vec<u64> = exact.iter().map(|e| e.floor() as u64).collect();
    let mut rest: Vec<usize> = (0..shares.len()).filter(|i| shares[*i] > 0.0).collect();
    rest.sort_by(|a, b| {
        (exact[*b] - exact[*b].floor()).total_cmp(&(exact[*a] - exact[*a].floor()))
    });
    let missing = total.saturating_sub(counts.iter().sum());
    for i in rest.iter().cycle().take(missing as usize) {
        counts[*i] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(groups: &[u64], weight: f64) -> SourceRows {
        SourceRows {
            name: "s".into(),
            repeat: 1,
            weight,
            groups: groups.to_vec(),
            fingerprint: 0,
        }
    }

    fn epoch(plan: &Plan, epoch: u64) -> Vec<SampleKey> {
        (0..plan.batches())
            .flat_map(|b| plan.batch(epoch, b))
            .collect()
    }

    #[test]
    fn apportioning_by_hand() {
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(apportion(3, &[0.0, 5.0]), [0, 3]);
        assert_eq!(apportion(7, &[0.0]), [0]);
    }

    #[test]
    fn temperature_and_weights() {
        let sources = [source(&[900], 1.0), source(&[100], 1.0)];
        let count = |temperature: f64, sources: &[SourceRows]| {
            let plan = Plan::new(sources, temperature, &OrderConfig::default()).unwrap();
            let keys = epoch(&plan, 0);
            [0, 1].map(|s| keys.iter().filter(|k| k.source == s).count())
        };
        assert_eq!(count(1.0, &sources), [900, 100]);
        assert_eq!(count(2.0, &sources), [750, 250]);
        assert_eq!(count(f64::INFINITY, &sources), [500, 500]);
        let weighted = [source(&[900], 1.0), source(&[100], 9.0)];
        assert_eq!(count(1.0, &weighted), [500, 500]);
        let twice = SourceRows {
            repeat: 2,
            ..source(&[100], 1.0)
        };
        assert_eq!(count(1.0, &[source(&[900], 1.0), twice]), [900, 200]);
    }

    #[test]
    fn a_quarter_is_another_quarter_each_epoch() {
        let sources = [source(&[40], 1.0), source(&[40], 7.0)];
        let plan = Plan::new(&sources, 1.0, &OrderConfig::default()).unwrap();
        let mut rows: Vec<u64> = (0..4)
            .flat_map(|e| epoch(&plan, e))
            .filter(|k| k.source == 0)
            .map(|k| k.row)
            .collect();
        assert_eq!(rows.len(), 40);
        rows.sort_unstable();
        assert_eq!(rows, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let ok = [source(&[3, 0], 1.0)];
        let order = OrderConfig::default();
        for bad in [
            OrderConfig {
                batch_size: 0,
                ..order
            },
            OrderConfig { shard: 1, ..order },
            OrderConfig { shards: 0, ..order },
            OrderConfig {
                batch_size: usize::MAX,
                ..order
            },
        ] {
            assert!(Plan::new(&ok, 1.0, &bad).is_err(), "{bad:?}");
        }
        assert!(Plan::new(&[], 1.0, &order).is_err());
        assert!(Plan::new(&[source(&[0], 1.0)], 1.0, &order).is_err());
        let plan = Plan::new(&ok, 1.0, &order).unwrap();
        let other = Cursor {
            plan: 7,
            ..Cursor::default()
        };
        assert!(plan.check(&other).is_err());
        assert!(plan.batch(0, plan.batches()).is_empty());
    }
}
