//! Configurations of the heads of a model, by name.

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TaskHead;
use crate::error::{CoreError, Result};

/// Widths that heads are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSizes {
    /// Width of the language model's hidden states, and so of a task embedding.
    pub llm: usize,
    /// Width of a visual token of the vision encoder.
    pub vision: usize,
}

impl ModelSizes {
    /// Checks a width that a head's configuration repeats.
    ///
    /// # Errors
    /// [`CoreError::HeadConfig`] when it is another.
    pub fn check(&self, head: &str, field: &str, found: usize, expected: usize) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(CoreError::HeadConfig {
            head: head.into(),
            why: format!("`{field}` is {found} and must be {expected}, as the model has it"),
        })
    }
}

/// The configurations of heads as `tpo.json` holds them: `"heads": { "region": {..}, .. }`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HeadConfigs(pub BTreeMap<String, Value>);

impl HeadConfigs {
    /// Adds or replaces the configuration of a head.
    ///
    /// # Errors
    /// [`CoreError::HeadConfig`] when it cannot be written as JSON.
    pub fn with<H: TaskHead>(mut self, config: &H::Config) -> Result<Self> {
        let value = serde_json::to_value(config).map_err(|e| failed::<H>(e.to_string()))?;
        self.0.insert(H::NAME.into(), value);
        Ok(self)
    }

    /// The configuration of a head; without one, what `{}` reads as.
    ///
    /// # Errors
    /// [`CoreError::HeadConfig`] when it is not one of this head.
    pub fn get<H: TaskHead>(&self) -> Result<H::Config> {
        let empty = Value::Object(Default::default());
        let found = self.0.get(H::NAME);
        H::Config::deserialize(found.unwrap_or(&empty)).map_err(|e| {
            failed::<H>(match found {
                Some(_) => e.to_string(),
                None => format!("nothing is written under `heads.{}`, and {e}", H::NAME),
            })
        })
    }

    /// Creates a head of its configuration.
    ///
    /// # Errors
    /// As [`HeadConfigs::get`] and [`TaskHead::init`].
    pub fn init<H: TaskHead>(&self, sizes: &ModelSizes, device: &Device) -> Result<H> {
        H::init(&self.get::<H>()?, sizes, device)
    }
}

fn failed<H: TaskHead>(why: String) -> CoreError {
    CoreError::HeadConfig {
        head: H::NAME.into(),
        why,
    }
}
