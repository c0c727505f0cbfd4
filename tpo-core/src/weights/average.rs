//! The mean of several checkpoints.

use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::header::TensorEntry;
use super::read::{burn_dtype, read_tensor, read_tensor_as};
use super::save::{SaveOptions, SaveReport, save_tensors};
use super::source::TensorSource;
use super::{Checkpoint, Result, WeightsError, nearest};

/// Writes the mean of every tensor of `checkpoints` as [`save_module`](super::save_module) writes
/// a module: a uniform model soup (Wortsman et al. 2022, arXiv 2203.05482). Weights that continued
/// from the same start lie in one valley of the loss, and their mean is often better than each of
/// them on data unlike that of training. Of weights with different starts it is good for nothing.
///
/// Floating-point tensors are averaged in 32 bits and written in the first checkpoint's data type
/// unless `options` say otherwise; all others must be the same everywhere. LoRA's factors are
/// averaged one by one, which is not the mean of their products: merge adapters first. One tensor
/// of each checkpoint is in memory at a time.
///
/// # Errors
/// [`WeightsError::Average`] before anything is written when a tensor is missing from one of
/// them or has another shape, or when there are fewer than two; those of reading and saving.
pub fn average_checkpoints(
    checkpoints: &[Checkpoint],
    destination: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport> {
    let destination = destination.as_ref();
    let [first, _, ..] = checkpoints else {
        return Err(WeightsError::Average {
            path: destination.to_path_buf(),
            why: format!(
                "expected two or more checkpoints to average, {} given",
                checkpoints.len()
            ),
        });
    };
    for other in &checkpoints[1..] {
        comparable(first, other)?;
        comparable(other, first)?;
    }
    let mut tensors = Vec::new();
    for entry in first.tensors() {
        let all: Vec<TensorEntry> = checkpoints
            .iter()
            .filter_map(|c| c.get(&entry.key).cloned())
            .collect();
        let kept = entry.element_type()?;
        let read = move || {
            if kept.is_float() {
                mean(&all)
            } else {
                same(&all)
            }
            .map_err(|e| e.to_string())
        };
        tensors.push(TensorSource::when_asked(
            entry.key.clone(),
            entry.key.clone(),
            entry.shape.clone(),
            options.dtype.of(kept),
            read,
        )?);
    }
    save_tensors(tensors, destination, options)
}

/// Every tensor of `one` is in `other`, with the same shape and a type of the same sort.
fn comparable(one: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let fail = |why: String| WeightsError::Average {
        path: other.path().to_path_buf(),
        why: format!("{why}; average models of one configuration"),
    };
    for t in one.tensors() {
        let from = one.path().display();
        let Some(found) = other.get(&t.key) else {
            let near = nearest(&t.key, other.tensors().map(|t| t.key.as_str()));
            let near = near.map_or(String::new(), |n| format!(" (nearest name: `{n}`)"));
            return Err(fail(format!(
                "has no tensor `{}` of shape {:?}, which {from} has{near}",
                t.key, t.shape
            )));
        };
        if found.shape != t.shape {
            return Err(fail(format!(
                "tensor `{}` has shape {:?}, in {from} {:?}",
                t.key, found.shape, t.shape
            )));
        }
        let float = |t: &TensorEntry| burn_dtype(t.dtype).is_some_and(|d| d.is_float());
        if float(t) != float(found) {
            return Err(fail(format!(
                "tensor `{}` has data type {:?}, in {from} {:?}",
                t.key, found.dtype, t.dtype
            )));
        }
    }
    Ok(())
}

fn mean(entries: &[TensorEntry]) -> Result<TensorData> {
    let mut sum = vec![0.0_f32; entries[0].shape.iter().product()];
    for entry in entries {
        let data = read_tensor_as(entry, DType::F32)?;
        let values = data.as_slice::<f32>();
        let values = values.map_err(|e| entry.fault(format!("{e:?}")))?;
        sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
    }
    let count = entries.len() as f32;
    sum.iter_mut().for_each(|s| *s /= count);
    Ok(TensorData::new(sum, entries[0].shape.clone()))
}

/// A tensor that is not averaged: the same in all.
fn same(entries: &[TensorEntry]) -> Result<TensorData> {
    let first = read_tensor(&entries[0])?;
    for entry in &entries[1..] {
        if read_tensor(entry)?.as_bytes() != first.as_bytes() {
            let why = format!(
                "its {:?} values are not those of {}, and only floating-point tensors are averaged",
                entry.dtype,
                entries[0].file.display()
            );
            return Err(entry.fault(why));
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::write_tensors;
    use super::*;

    fn file(dir: &Path, name: &str, tensors: &[(&str, TensorData)]) -> Checkpoint {
        let mut bytes = Vec::new();
        let mut sources: Vec<TensorSource<'_>> = tensors
            .iter()
            .map(|(key, data)| TensorSource::from_data(*key, data).unwrap())
            .collect();
        write_tensors::<WeightsError>(&mut sources, &BTreeMap::new(), |b| {
            bytes.extend_from_slice(b);
            Ok(())
        })
        .unwrap();
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path).unwrap()
    }

    fn floats(values: &[f32]) -> TensorData {
        TensorData::new(values.to_vec(), [values.len()])
    }

    #[test]
    fn means_are_taken_and_kept_in_the_first_type() {
        let dir = tempfile::tempdir().unwrap();
        let ids = || TensorData::new(vec![0_i64, 1], [2]);
        let half = floats(&[1.0, -2.0, 0.5]).convert_dtype(DType::F16);
        let a = file(dir.path(), "a.safetensors", &[("w", half), ("ids", ids())]);
        let b = file(
            dir.path(),
            "b.safetensors",
            &[("w", floats(&[2.0, 4.0, 0.5])), ("ids", ids())],
        );
        let c = file(
            dir.path(),
            "c.safetensors",
            &[("w", floats(&[3.0, 1.0, 0.5])), ("ids", ids())],
        );
        let out = dir.path().join("mean.safetensors");
        let report = average_checkpoints(&[a, b, c], &out, &SaveOptions::default()).unwrap();
        assert_eq!((report.tensors, report.bytes), (2, 3 * 2 + 2 * 8));
        let mean = Checkpoint::open(&out).unwrap();
        let w = read_tensor(mean.get("w").unwrap()).unwrap();
        assert_eq!(w.dtype(), DType::F16);
        assert_eq!(
            w.convert::<f32>().try_to_vec::<f32>().unwrap(),
            [2.0, 1.0, 0.5]
        );
        let ids = read_tensor(mean.get("ids").unwrap()).unwrap();
        assert_eq!(ids.try_to_vec::<i64>().unwrap(), [0, 1]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("mean.safetensors");
        let a = file(
            dir.path(),
            "a.safetensors",
            &[("layer.weight", floats(&[1.0, 2.0]))],
        );
        for (name, other, expected) in [
            (
                "name",
                ("layer.weigth", floats(&[1.0, 2.0])),
                "nearest name: `layer.weigth`",
            ),
            (
                "shape",
                ("layer.weight", floats(&[1.0])),
                "has shape [1], in",
            ),
            (
                "type",
                ("layer.weight", TensorData::new(vec![1_i64, 2], [2])),
                "has data type I64",
            ),
        ] {
            let b = file(dir.path(), &format!("{name}.safetensors"), &[other]);
            let e = average_checkpoints(&[a.clone(), b], &out, &SaveOptions::default());
            let e = e.unwrap_err().to_string();
            assert!(e.contains(expected) && e.contains(name), "{e}");
        }
        let one = file(
            dir.path(),
            "1.safetensors",
            &[("n", TensorData::new(vec![1_i64], [1]))],
        );
        let two = file(
            dir.path(),
            "2.safetensors",
            &[("n", TensorData::new(vec![2_i64], [1]))],
        );
        let e = average_checkpoints(&[one, two], &out, &SaveOptions::default()).unwrap_err();
        assert!(e.to_string().contains("only floating-point tensors"), "{e}");
        for few in [&[][..], &[a]] {
            let e = average_checkpoints(few, &out, &SaveOptions::default()).unwrap_err();
            assert!(e.to_string().contains("expected two or more"), "{e}");
        }
        assert!(!out.exists());
    }
}
