//! Python's spelling of values, JSON and dates, as templates written for transformers expect.

use std::time::{SystemTime, UNIX_EPOCH};

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

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `datetime.strftime` in UTC and the C locale, for the directives templates use.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = match now.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_secs()).unwrap_or(0),
        Err(_) => 0,
    };
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month_name = MONTHS[(month - 1) as usize];
    let day_name = DAYS[((days + 4) % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |n: i64, width: usize| {
            if unpadded {
                n.to_string()
            } else {
                format!("{n:0width$}")
            }
        };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => {
                return Err(invalid(format!(
                    "strftime_now: directive `%{}` is not supported",
                    other.map(String::from).unwrap_or_default()
                )));
            }
        });
    }
    Ok(out)
}

/// Days from 1970-01-01 to the first of January.
fn days_before(year: i64) -> i64 {
    let y = year - 1;
    365 * (year - 1970) + (y / 4 - 492) - (y / 100 - 19) + (y / 400 - 4)
}

/// Year, month and day of a day since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut left = days - days_before(year);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let lengths = [
        31,
        28 + i64::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
