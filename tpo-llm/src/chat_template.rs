//! Chat templates: messages to prompt text, with the Jinja environment of Hugging Face
//! transformers.

mod python;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use crate::error::{LlmError, Result};

/// Template instructions a rendering may cost; a few thousand are usual. Bounds the time a
/// template from an unknown source can take.
const FUEL: u64 = 20_000_000;

/// Longest template in bytes. Published ones stay under 20 kB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The message.
    pub content: Content,
}

/// Text, or a list of text and visual parts (LLaVA-OneVision's template wants a list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text only.
    Text(String),
    /// Parts in order.
    Parts(Vec<Part>),
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The place of an image.
    Image,
    /// The place of a video.
    Video,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Content::Text(content.into()),
        }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A message of parts.
    pub fn parts(role: impl Into<String>, parts: Vec<Part>) -> Self {
        Self {
            role: role.into(),
            content: Content::Parts(parts),
        }
    }
}

impl Part {
    /// A text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

/// Variables a template sees besides `messages`.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Whether to end with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// `bos_token`; undefined when absent.
    pub bos_token: Option<String>,
    /// `eos_token`.
    pub eos_token: Option<String>,
    /// `pad_token`.
    pub pad_token: Option<String>,
    /// `unk_token`.
    pub unk_token: Option<String>,
    /// Further variables (`tools`, `enable_thinking`, ..). Keys of objects are in the order
    /// of [`serde_json::Map`].
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Time seen by `strftime_now`, in UTC; now when absent.
    pub now: Option<SystemTime>,
}

/// A compiled chat template.
///
/// The environment is transformers': `trim_blocks`, `lstrip_blocks`, loop controls,
/// `raise_exception`, `strftime_now`, its `tojson` (no HTML escapes), Python's string and dict
/// methods, and `{% generation %}` blocks, which only mark text there and do so here.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] with the line of a syntax error, or for a template larger than 1 MiB.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(LlmError::ChatTemplate {
                problem: format!(
                    "{} bytes long; at most {MAX_TEMPLATE_BYTES} are read",
                    source.len()
                ),
            });
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(engine_error)?;
        env.set_syntax(syntax);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(python::format);
        env.add_filter("tojson", python::tojson);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_template_owned(NAME, plain_generation_blocks(source))
            .map_err(engine_error)?;
        Ok(Self { env })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] with the template's own message when it rejects the messages
    /// (`raise_exception`), or the engine's with the line.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let mut variables = vec![
            ("messages".to_string(), Value::from(Serde(messages))),
            (
                "add_generation_prompt".to_string(),
                Value::from(options.add_generation_prompt),
            ),
        ];
        for (name, token) in [
            ("bos_token", &options.bos_token),
            ("eos_token", &options.eos_token),
            ("pad_token", &options.pad_token),
            ("unk_token", &options.unk_token),
        ] {
            if let Some(token) = token {
                variables.push((name.into(), Value::from(token.as_str())));
            }
        }
        let now = options.now.unwrap_or_else(SystemTime::now);
        variables.push((
            "strftime_now".into(),
            Value::from_function(move |format: String| python::strftime(&format, now)),
        ));
        for (name, value) in &options.extra {
            variables.push((name.clone(), Value::from(Serde(value))));
        }
        let template = self.env.get_template(NAME).map_err(engine_error)?;
        template
            .render(Value::from_pairs(variables))
            .map_err(engine_error)
    }
}

fn engine_error(error: Error) -> LlmError {
    let mut problem = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        problem.push_str(&format!(" (line {line})"));
    }
    LlmError::ChatTemplate { problem }
}

/// Turns `{% generation %}` into `{% if true %}`, with its white-space marks.
fn plain_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", inner.replace(word, "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inner.replace(word, "endif"))),
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Arguments of transformers' `tojson` that change its output here.
fn json_arguments(kwargs: &Kwargs) -> Result<(Option<usize>, bool), Error> {
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?;
    let _sort = kwargs.get::<Option<bool>>("sort_keys")?;
    kwargs.assert_all_used()?;
    Ok((indent, ascii.unwrap_or(false)))
}
