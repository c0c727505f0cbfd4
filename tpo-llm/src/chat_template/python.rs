//! Python's spelling of values, JSON and dates, as templates written for transformers expect.

use std::time::SystemTime;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Deepest nesting `tojson` follows.
const MAX_DEPTH: usize = 64;
/// Widest indent `tojson` accepts.
const MAX_INDENT: usize = 16;

/// Prints a value as Jinja on Python does: `True`, `None`; no escaping.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let (indent, ascii) = super::json_arguments(&kwargs)?;
    if indent.is_some_and(|i| i > MAX_INDENT) {
        return Err(invalid(format!("tojson: indent above {MAX_INDENT}")));
    }
    let mut out = String::new();
    write_json(&value, indent, 0, &mut out)?;
    if ascii {
        out = escape_non_ascii(&out);
    }
    Ok(Value::from(out))
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("tojson: nested deeper than {MAX_DEPTH}")));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())?),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                let mut text = String::new();
                write_json(&item, indent, depth + 1, &mut text)?;
                items.push(text);
            }
            join('[', ']', &items, indent, depth, out);
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let mut text = match key.as_str() {
                    Some(k) => quoted(k)?,
                    None => quoted(&key.to_string())?,
                };
                text.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, &mut text)?;
                items.push(text);
            }
            join('{', '}', &items, indent, depth, out);
        }
        kind => return Err(invalid(format!("tojson: {kind} is not JSON"))),
    }
    Ok(())
}

fn join(
    open: char,
    close: char,
    items: &[String],
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) {
    out.push(open);
    match indent {
        Some(width) if !items.is_empty() => {
            let pad = |n: usize| format!("\n{}", " ".repeat(width * n));
            out.push_str(&pad(depth + 1));
            out.push_str(&items.join(&format!(",{}", pad(depth + 1))));
            out.push_str(&pad(depth));
        }
        _ => out.push_str(&items.join(", ")),
    }
    out.push(close);
}

fn quoted(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|e| invalid(e.to_string()))
}

fn escape_non_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// `datetime.strftime` in UTC and the C locale.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let items = StrftimeItems::new(format);
    if items.clone().any(|item| item == Item::Error) {
        return Err(invalid(format!(
            "strftime_now: `{format}` has a directive that is not supported"
        )));
    }
    Ok(DateTime::<Utc>::from(now)
        .format_with_items(items)
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn dates() {
        assert_eq!(at(0, "%Y-%m-%d %A %j"), "1970-01-01 Thursday 001");
        // date -u -d @1709210096: Thu Feb 29 12:34:56 2024, day 60
        assert_eq!(
            at(1_709_210_096, "%d %B %Y %H:%M:%S %a %j %p"),
            "29 February 2024 12:34:56 Thu 060 PM"
        );
        // The last second of 2099 and of 2000.
        assert_eq!(at(4_102_444_799, "%F %T"), "2099-12-31 23:59:59");
        assert_eq!(at(978_307_199, "%F %-d %j"), "2000-12-31 31 366");
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
        assert!(strftime("%", UNIX_EPOCH).is_err());
    }
}
