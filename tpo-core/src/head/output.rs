//! Predictions as they leave the model: plain Rust values of any type.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;

use super::Drawing;

/// A finished answer of a head. Implemented for every serialisable plain type.
pub trait Prediction: Any + Debug + Send + Sync {
    /// The value as JSON.
    fn to_json(&self) -> serde_json::Value;
}

impl<T: Serialize + Debug + Send + Sync + 'static> Prediction for T {
    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_else(|e| serde_json::json!({ "error": e.to_string() }))
    }
}

/// What a head answered, with its place in the answer.
#[derive(Debug, Clone)]
pub struct TaskOutput {
    /// Name of the task.
    pub task: String,
    /// Index of the routing token among the generated tokens.
    pub token: usize,
    value: Arc<dyn Prediction>,
    drawing: Arc<Drawing>,
}

impl TaskOutput {
    /// Wraps a prediction and how it is shown.
    pub fn new(
        task: impl Into<String>,
        token: usize,
        value: Arc<dyn Prediction>,
        drawing: Drawing,
    ) -> Self {
        Self {
            task: task.into(),
            token,
            value,
            drawing: Arc::new(drawing),
        }
    }

    /// How its head shows it: words and shapes.
    pub fn drawing(&self) -> &Drawing {
        &self.drawing
    }

    /// The prediction as the head's own type, if that is what it is.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        let value: &dyn Any = &*self.value;
        value.downcast_ref()
    }

    /// The prediction as JSON, whatever its type.
    pub fn to_json(&self) -> serde_json::Value {
        self.value.to_json()
    }
}

impl Serialize for TaskOutput {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({ "task": self.task, "token": self.token, "value": self.to_json() })
            .serialize(serializer)
    }
}
