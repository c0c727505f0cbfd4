//! Warnings and errors of the libraries, on standard error.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};

use tpo_train::observe::terminal;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Record};
use tracing::{Event, Id, Level, Metadata, Subscriber};

/// Different messages that one place of the code may print.
const MOST: usize = 5;

/// Prints warnings and errors above the progress bars, each once and a few of each kind.
#[derive(Default)]
pub(super) struct Warnings {
    /// What was printed, by the place in the code that warned.
    printed: Mutex<HashMap<&'static str, Vec<String>>>,
}

impl Warnings {
    /// Listens from now on, unless the program listens already.
    pub(super) fn listen() {
        // A program of somebody's own may have a subscriber of its own.
        let _ = tracing::subscriber::set_global_default(Self::default());
    }

    /// What to print of an event; nothing when it was said already or too much was.
    fn line(&self, metadata: &'static Metadata<'static>, text: String) -> Option<String> {
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        // The name of an event is its file and line.
        let printed = printed.entry(metadata.name()).or_default();
        if printed.len() >= MOST || printed.contains(&text) {
            return None;
        }
        let kind = if *metadata.level() == Level::ERROR {
            "error"
        } else {
            "warning"
        };
        let mut line = format!("{kind}: {text}");
        printed.push(text);
        if printed.len() == MOST {
            line.push_str(" (more of this kind are not shown)");
        }
        Some(line)
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let text = format!("{}{}", words.message, words.values);
        if let Some(line) = self.line(event.metadata(), text) {
            terminal().suspend(|| eprintln!("{line}"));
        }
    }

    // Spans are not looked at.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event as a sentence: its message, then its values.
#[derive(Default)]
struct Words {
    message: String,
    values: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            _ => write!(self.values, ": {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every message is said once, five of a kind at most, and debugging not at all.
    #[test]
    fn warnings_are_said_once_and_a_few_of_a_kind() {
        let warnings = std::sync::Arc::new(Warnings::default());
        tracing::subscriber::with_default(warnings.clone(), || {
            for row in [1, 1, 2, 3, 4, 5, 6, 7] {
                tracing::warn!(row = %format!("a.jsonl:{row}"), "row skipped");
            }
            tracing::error!("another");
            tracing::info!("not said");
        });
        let printed = warnings.printed.lock().unwrap();
        let mut all: Vec<&String> = printed.values().flatten().collect();
        all.sort();
        assert_eq!(all.len(), MOST + 1, "{all:?}");
        assert_eq!(all[0], "another");
        assert_eq!(all[1], "row skipped: a.jsonl:1");
    }
}
