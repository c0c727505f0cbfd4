//! Annotations as text, for the ablation without heads (paper, Table 11 "textualised").

use tpo_core::geometry::{BoxXyxy, TimeSpan};
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};

/// Decimals of normalised coordinates; a hundredth of a 224-pixel input is two pixels.
const COORDINATE_DECIMALS: usize = 2;
/// Decimals of times, as in the reference's frame times.
const TIME_DECIMALS: usize = 1;

/// A box as text, the target of a model that answers in text: `[0.10, 0.20, 0.30, 0.40]`.
pub fn box_text(b: &BoxXyxy) -> String {
    let n: Vec<String> = b
        .to_array()
        .iter()
        .map(|v| format!("{v:.COORDINATE_DECIMALS$}"))
        .collect();
    format!("[{}]", n.join(", "))
}

/// The ground truth as text.
pub(super) fn truth_text(truth: &Truth) -> String {
    match &truth.target {
        TruthTarget::Box(b) => box_text(b),
        TruthTarget::Moments { spans, .. } => {
            let spans: Vec<String> = spans
                .iter()
                .map(|s| {
                    format!(
                        "{:.TIME_DECIMALS$} - {:.TIME_DECIMALS$} seconds",
                        s.start, s.end
                    )
                })
                .collect();
            spans.join(", ")
        }
        TruthTarget::Track(frames) => {
            let frames: Vec<String> = frames
                .iter()
                .filter_map(|f| {
                    let b = match &f.place {
                        TruthPlace::Absent => return None,
                        TruthPlace::Box(b) => *b,
                        TruthPlace::Mask(rle) => {
                            let [h, w] = rle.size;
                            rle.decode()
                                .ok()?
                                .bounding_box()?
                                .to_normalised(w as f32, h as f32)
                        }
                    };
                    Some(format!("{:.TIME_DECIMALS$} s {}", f.time, box_text(&b)))
                })
                .collect();
            frames.join("; ")
        }
        TruthTarget::Value(serde_json::Value::String(s)) => s.clone(),
        TruthTarget::Value(value) => value.to_string(),
    }
}

/// The first box of a text answer: four numbers in brackets, normalised corners, put in order and
/// clamped to the picture. `None` when there is none; never fails, whatever the text.
pub fn read_box(text: &str) -> Option<BoxXyxy> {
    text.match_indices(['[', '(']).find_map(|(at, _)| {
        let inside = &text[at + 1..];
        let inside = &inside[..inside.find([']', ')'])?];
        let numbers: Vec<f32> = inside
            .split(',')
            .map(|n| n.trim().parse().ok().filter(|v: &f32| v.is_finite()))
            .collect::<Option<_>>()?;
        let corners = <[f32; 4]>::try_from(numbers).ok()?;
        Some(BoxXyxy::from(corners).clamped())
    })
}

/// The spans of a text answer, `2.0 - 4.5 seconds` or `from 2 to 4.5`, in the order of the
/// text, in seconds. Reversed ones are left out.
pub fn read_spans(text: &str) -> Vec<TimeSpan> {
    let numbers = numbers(text);
    let mut spans = Vec::new();
    let mut i = 0;
    while let [(_, end, a), (start, _, b)] = numbers[i..(i + 2).min(numbers.len())] {
        if !joins(&text[end..start]) {
            i += 1;
            continue;
        }
        spans.extend(TimeSpan::new(a, b));
        i += 2;
    }
    spans
}

/// The track of a text answer, `0.5 s [0.10, 0.20, 0.30, 0.40]; ..`: seconds and box.
pub fn read_track(text: &str) -> Vec<(f64, BoxXyxy)> {
    text.split(';')
        .filter_map(|part| {
            let (head, _) = part.split_once('[')?;
            let head = head.trim_end().strip_suffix('s')?;
            let (_, end, time) = *numbers(head).last()?;
            let area = read_box(&part[part.find('[')?..])?;
            head[end..].trim().is_empty().then_some((time, area))
        })
        .collect()
}

/// Numbers of a text without sign, with where they begin and end.
fn numbers(text: &str) -> Vec<(usize, usize, f64)> {
    let numeric = |c: char| c.is_ascii_digit() || c == '.';
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(numeric).map(|i| at + i) {
        let length = text[start..].find(|c| !numeric(c));
        let end = length.map_or(text.len(), |n| start + n);
        // A full stop after a number ends its sentence.
        let word = text[start..end].trim_end_matches('.');
        if let Some(v) = word.parse::<f64>().ok().filter(|v| v.is_finite()) {
            found.push((start, start + word.len(), v));
        }
        at = end;
    }
    found
}

/// Whether the words between two numbers make them the ends of a span.
fn joins(between: &str) -> bool {
    let between = between.trim().to_lowercase();
    let unit = ["seconds", "second", "secs", "sec", "s"]
        .iter()
        .find_map(|u| {
            between
                .strip_prefix(u)
                .filter(|r| !r.starts_with(char::is_alphabetic))
        });
    let link = unit.unwrap_or(&between).trim();
    ["-", "\u{2013}", "to", "and", "until"].contains(&link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::truth::TruthFrame;

    fn truth(target: TruthTarget) -> Truth {
        Truth {
            task: "t".into(),
            query: None,
            prompt_box: None,
            target,
            seed: 0,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let b = BoxXyxy::from([0.25, 0.5, 0.75, 1.0]);
        assert_eq!(read_box(&truth_text(&truth(TruthTarget::Box(b)))), Some(b));
        let spans = vec![
            TimeSpan::new(1.5, 3.0).unwrap(),
            TimeSpan::new(4.0, 12.5).unwrap(),
        ];
        let moments = TruthTarget::Moments {
            spans: spans.clone(),
            saliency: None,
            duration: 20.0,
        };
        let text = format!("It happens in {}.", truth_text(&truth(moments)));
        assert_eq!(read_spans(&text), spans);
        let frame = |time: f64| TruthFrame {
            time,
            sampled: 0,
            place: TruthPlace::Box(b),
        };
        let track = TruthTarget::Track(vec![frame(0.0), frame(0.5)]);
        let text = truth_text(&truth(track));
        assert_eq!(read_track(&text), [(0.0, b), (0.5, b)]);
    }

    #[test]
    fn other_wordings_and_nonsense() {
        assert_eq!(
            read_box("at (0.2,.4, 0.1, 2) there").map(|b| b.to_array()),
            Some([0.1, 0.4, 0.2, 1.0])
        );
        for none in [
            "",
            "[]",
            "[1, 2, 3]",
            "[a, b, c, d]",
            "0.1, 0.2, 0.3, 0.4",
            "[.,.,.,.]",
        ] {
            assert_eq!(read_box(none), None, "{none}");
        }
        assert_eq!(
            read_spans("from 2 to 4.5"),
            [TimeSpan::new(2.0, 4.5).unwrap()]
        );
        assert_eq!(read_spans("3s - 5s."), [TimeSpan::new(3.0, 5.0).unwrap()]);
        assert_eq!(read_spans("1 - 2 - 3").len(), 1);
        assert!(read_spans("5 - 2, soon").is_empty() && read_spans("at 5").is_empty());
        assert!(read_track("0.5 s nothing").is_empty());
        let digits = "9".repeat(400);
        assert_eq!(read_box(&format!("[{digits},0,0,0]")), None);
        assert!(read_spans(&format!("{digits} - {digits}")).is_empty());
    }
}
