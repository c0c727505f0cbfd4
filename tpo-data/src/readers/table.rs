//! Files of comma-separated values.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{At, Records, bad, open};
use crate::DataError;

/// Rows of a file of comma-separated values, by the names of their columns, of which one at least is
/// `known`.
pub(super) fn table<T: DeserializeOwned + 'static>(
    path: &Path,
    known: &[&str],
) -> Result<Records<T>, DataError> {
    let file: Arc<Path> = path.into();
    // A row with too few fields costs only itself.
    let mut builder = csv::ReaderBuilder::new();
    let builder = builder.flexible(true).trim(csv::Trim::All);
    let mut rows = builder.from_reader(open(path)?);
    let header = rows.headers().cloned();
    let header = header.map_err(|e| bad(path, "line 1", e.to_string()))?;
    if header.is_empty() {
        return Err(bad(path, "line 1", "no names of columns"));
    }
    if !header.iter().any(|name| known.contains(&name)) {
        let found: Vec<_> = header.iter().collect();
        let separator = found[0].chars().find(|c| matches!(c, ';' | '\t'));
        let hint = match separator {
            Some(c) if found.len() == 1 => format!("; they are separated by {c:?}, not by commas"),
            _ => String::new(),
        };
        let (found, known) = (found.join("`, `"), known.join(", "));
        let why = format!("the columns are `{found}`{hint}; expected some of {known}");
        return Err(bad(path, "line 1", why));
    }
    Ok(Box::new(rows.into_records().map(move |row| {
        let row = row.map_err(|e| bad(&file, "a row", e.to_string()))?;
        let number = row.position().map_or(0, csv::Position::line);
        let at = At {
            file: Arc::clone(&file),
            place: format!("line {number}"),
            number,
            key: String::new(),
        };
        let value = row.deserialize(Some(&header));
        let value = value.map_err(|e| at.bad(fault(&e, &header, &row)))?;
        Ok((at, value))
    })))
}

/// Why a row is not what was expected, with the column if a number was.
fn fault(error: &csv::Error, header: &csv::StringRecord, row: &csv::StringRecord) -> String {
    use csv::DeserializeErrorKind::{ParseFloat, ParseInt};
    let csv::ErrorKind::Deserialize { err, .. } = error.kind() else {
        return error.to_string();
    };
    let column = err.field().and_then(|at| {
        let at = usize::try_from(at).ok()?;
        Some((header.get(at)?, row.get(at)?))
    });
    match (err.kind(), column) {
        (ParseFloat(_) | ParseInt(_), Some((name, value))) => {
            format!("column `{name}` holds `{value}`, expected a number")
        }
        (kind, _) => kind.to_string(),
    }
}
