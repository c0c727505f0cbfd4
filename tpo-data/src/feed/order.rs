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

/// How often a source is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceShare {
    /// How many times an epoch uses the source: 2 shows every row twice, 0.25 a different
    /// quarter each epoch. Default 1.
    pub repeat: f64,
    /// Factor on the source's share among the others. Default 1.
    pub weight: f64,
}

impl Default for SourceShare {
    fn default() -> Self {
        Self {
            repeat: 1.0,
            weight: 1.0,
        }
    }
}

/// How sources are mixed.
///
/// A source of `n` rows has the natural size `n * repeat`; its share of the epoch is
/// proportional to `weight * size^(1 / temperature)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// 1 keeps the natural sizes; larger values raise small sources; infinity makes all equal.
    /// Default 1.
    pub temperature: f64,
    /// Samples of an epoch; `None` for the sum of the natural sizes.
    pub epoch_size: Option<u64>,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            epoch_size: None,
        }
    }
}

/// How the epoch is ordered and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrderConfig {
    /// Seed of everything random. Default 42 (the reference's training arguments).
    pub seed: u64,
    /// Samples of a batch on one shard. Default 1.
    pub batch_size: usize,
    /// Shuffle, or keep the order of the files. Default true.
    pub shuffle: bool,
    /// Leave out the last batch of each group when it is not full. Default false.
    pub drop_last: bool,
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
            shuffle: true,
            drop_last: false,
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
    /// Its share.
    pub share: SourceShare,
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

#[derive(Debug, Clone)]
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
    /// # Errors
    /// [`DataError::InvalidConfig`] for numbers that make no sense, no rows at all, or a source
    /// with a share but without rows.
    pub fn new(
        sources: &[SourceRows],
        mixture: &MixtureConfig,
        order: &OrderConfig,
    ) -> Result<Self, DataError> {
        check(sources, mixture, order)?;
        let rows = |s: &SourceRows| s.groups.iter().sum::<u64>();
        let natural: Vec<f64> = sources
            .iter()
            .map(|s| rows(s) as f64 * s.share.repeat)
            .collect();
        let plain = mixture.temperature == 1.0
            && mixture.epoch_size.is_none()
            && sources
                .iter()
                .all(|s| s.share.weight == sources[0].share.weight);
        let counts: Vec<u64> = if plain {
            natural.iter().map(|n| n.round() as u64).collect()
        } else {
            let total = mixture
                .epoch_size
                .unwrap_or_else(|| natural.iter().sum::<f64>().round() as u64);
            let shares: Vec<f64> = sources
                .iter()
                .zip(&natural)
                .map(|(s, n)| {
                    if *n > 0.0 {
                        s.share.weight * n.powf(1.0 / mixture.temperature)
                    } else {
                        0.0
                    }
                })
                .collect();
            apportion(total, &shares)
        };
        let n_groups = sources[0].groups.len();
        let mut groups: Vec<Group> = (0..n_groups)
            .map(|_| Group {
                leaves: Vec::new(),
                total: 0,
                batches: 0,
                first_batch: 0,
                first_index: 0,
            })
            .collect();
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
            group.batches = if order.drop_last {
                group.total / global
            } else {
                group.total.div_ceil(global)
            };
            batches += group.batches;
            samples += group.total;
        }
        if batches == 0 {
            return Err(invalid(format!(
                "{samples} samples make no batch of {global}; lower the batch size or keep the \
                 last batch"
            )));
        }
        let mut parts = vec![order.seed, global, u64::from(order.shuffle), batches];
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

    /// Samples of an epoch over all shards, with those `drop_last` leaves out.
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
        let batch = if self.order.shuffle {
            Permutation::new(self.batches, hash(&[seed, epoch, 1])).get(batch)
        } else {
            batch
        };
        let at = self.groups.partition_point(|g| g.first_batch <= batch);
        let Some((g, group)) = at.checked_sub(1).and_then(|g| {
            // Groups without batches share a start with the next one.
            let g = (0..=g).rev().find(|g| self.groups[*g].batches > 0)?;
            Some((g, &self.groups[g]))
        }) else {
            return Vec::new();
        };
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
        let shuffled = if self.order.shuffle {
            Permutation::new(group.total, hash(&[seed, epoch, 2, g as u64])).get(place)
        } else {
            place
        };
        let at = group.leaves.partition_point(|l| l.first <= shuffled);
        let leaf = group.leaves[..at].iter().rev().find(|l| l.count > 0)?;
        // Passes continue from epoch to epoch, so that a quarter of a source is another quarter
        // every time and four epochs show every row once.
        let drawn = u128::from(epoch) * u128::from(leaf.count) + u128::from(shuffled - leaf.first);
        let rows = u128::from(leaf.rows);
        let (pass, within) = ((drawn / rows) as u64, (drawn % rows) as u64);
        let row = if self.order.shuffle {
            let key = hash(&[seed, 3, leaf.source as u64, g as u64, pass]);
            Permutation::new(leaf.rows, key).get(within)
        } else {
            within
        };
        Some(SampleKey {
            epoch,
            index: group.first_index + place,
            source: leaf.source,
            group: g,
            row,
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

fn check(
    sources: &[SourceRows],
    mixture: &MixtureConfig,
    order: &OrderConfig,
) -> Result<(), DataError> {
    if sources.is_empty() {
        return Err(invalid("there is no source".into()));
    }
    let t = mixture.temperature;
    if t.is_nan() || t <= 0.0 {
        return Err(invalid(format!(
            "temperature {t}; expected a positive number"
        )));
    }
    if mixture.epoch_size.is_some_and(|n| n == 0 || n > 1 << 48) {
        return Err(invalid(format!("epoch size {:?}", mixture.epoch_size)));
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
        let SourceShare { repeat, weight } = s.share;
        let fits = |v: f64| v.is_finite() && (0.0..=1e6).contains(&v);
        if !fits(repeat) || !fits(weight) {
            return Err(invalid(format!(
                "source `{}`: repeat {repeat}, weight {weight}; expected 0 to 1e6",
                s.name
            )));
        }
        if s.groups.len() != sources[0].groups.len() {
            return Err(invalid(format!("source `{}` lists other groups", s.name)));
        }
        if s.groups.iter().sum::<u64>() == 0 && repeat > 0.0 && weight > 0.0 {
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

    fn source(groups: &[u64], repeat: f64, weight: f64) -> SourceRows {
        SourceRows {
            name: "s".into(),
            share: SourceShare { repeat, weight },
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
        let sources = [source(&[900], 1.0, 1.0), source(&[100], 1.0, 1.0)];
        let count = |mixture: MixtureConfig, sources: &[SourceRows]| {
            let plan = Plan::new(sources, &mixture, &OrderConfig::default()).unwrap();
            let keys = epoch(&plan, 0);
            [0, 1].map(|s| keys.iter().filter(|k| k.source == s).count())
        };
        assert_eq!(count(MixtureConfig::default(), &sources), [900, 100]);
        let t = |temperature| MixtureConfig {
            temperature,
            ..Default::default()
        };
        assert_eq!(count(t(2.0), &sources), [750, 250]);
        assert_eq!(count(t(f64::INFINITY), &sources), [500, 500]);
        let sized = MixtureConfig {
            epoch_size: Some(100),
            ..Default::default()
        };
        let weighted = [source(&[900], 1.0, 1.0), source(&[100], 1.0, 9.0)];
        assert_eq!(count(sized, &weighted), [50, 50]);
    }

    #[test]
    fn a_quarter_is_another_quarter_each_epoch() {
        let plan = Plan::new(
            &[source(&[40], 0.25, 1.0)],
            &MixtureConfig::default(),
            &OrderConfig::default(),
        )
        .unwrap();
        let mut rows: Vec<u64> = (0..4)
            .flat_map(|e| epoch(&plan, e))
            .map(|k| k.row)
            .collect();
        assert_eq!(rows.len(), 40);
        rows.sort_unstable();
        assert_eq!(rows, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let ok = [source(&[3, 0], 1.0, 1.0)];
        let (mixture, order) = (MixtureConfig::default(), OrderConfig::default());
        for bad in [
            OrderConfig {
                batch_size: 0,
                ..order
            },
            OrderConfig { shard: 1, ..order },
            OrderConfig { shards: 0, ..order },
            OrderConfig {
                batch_size: 4,
                drop_last: true,
                ..order
            },
            OrderConfig {
                batch_size: usize::MAX,
                ..order
            },
        ] {
            assert!(Plan::new(&ok, &mixture, &bad).is_err(), "{bad:?}");
        }
        for (repeat, weight) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            let s = [source(&[3], repeat, weight)];
            assert!(Plan::new(&s, &mixture, &order).is_err());
        }
        assert!(Plan::new(&[], &mixture, &order).is_err());
        assert!(Plan::new(&[source(&[0], 1.0, 1.0)], &mixture, &order).is_err());
        let cold = MixtureConfig {
            temperature: 0.0,
            ..mixture
        };
        assert!(Plan::new(&ok, &cold, &order).is_err());
        let plan = Plan::new(&ok, &mixture, &order).unwrap();
        let other = Cursor {
            plan: 7,
            ..Cursor::default()
        };
        assert!(plan.check(&other).is_err());
        assert!(plan.batch(0, plan.batches()).is_empty());
    }
}
