//! Task tokens: how a language model calls a head.
//!
//! Each task owns a *routing token* that the language model emits (`<point_begin>`) and a
//! *placeholder* whose input embedding is overwritten by a learnable task token (`<point>`). The
//! last hidden state at the placeholder drives the head. Ids belong to a vocabulary, so the
//! registry is serialised with the model.

use serde::{Deserialize, Serialize};

use crate::error::{CoreError, Result};

/// Strings of one task in the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskTokens {
    /// Name of the task, unique in a model.
    pub name: String,
    /// Token the language model emits to call the head.
    pub routing: TokenId,
    /// Token whose embedding is replaced by the task token.
    pub placeholder: TokenId,
}

/// A token string and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenId {
    /// The string, angle brackets included.
    pub token: String,
    /// Id in the tokenizer's vocabulary.
    pub id: u32,
}

impl TokenId {
    /// A token string with its id.
    pub fn new(token: impl Into<String>, id: u32) -> Self {
        Self {
            token: token.into(),
            id,
        }
    }
}

/// All tasks of a model, and the placeholder of box prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRegistry {
    tasks: Vec<TaskTokens>,
    /// Placeholder in the *question* that is replaced by the encoding of a box.
    #[serde(default)]
    pub box_prompt: Option<TokenId>,
}

impl TaskRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task.
    ///
    /// # Errors
    /// [`CoreError::Task`] when its name or one of its tokens is taken.
    pub fn register(&mut self, task: TaskTokens) -> Result<()> {
        let taken = |why: String| CoreError::Task {
            name: task.name.clone(),
            why,
            known: self.names(),
        };
        if self.get(&task.name).is_some() {
            return Err(taken("a task of this name exists already".into()));
        }
        let new = [&task.routing, &task.placeholder];
        if new[0].id == new[1].id || new[0].token == new[1].token {
            return Err(taken(
                "its routing token and placeholder are the same".into(),
            ));
        }
        if let Some(t) = self
            .tokens()
            .find(|t| new.iter().any(|n| n.id == t.id || n.token == t.token))
        {
            return Err(taken(format!("token `{}` (id {}) is taken", t.token, t.id)));
        }
        self.tasks.push(task);
        Ok(())
    }

    /// Tasks in the order they were registered.
    pub fn tasks(&self) -> &[TaskTokens] {
        &self.tasks
    }

    /// The task called `name`.
    pub fn get(&self, name: &str) -> Option<&TaskTokens> {
        self.tasks.iter().find(|t| t.name == name)
    }

    /// The task called `name`, or an error that lists the known ones.
    pub fn require(&self, name: &str) -> Result<&TaskTokens> {
        self.get(name).ok_or_else(|| CoreError::Task {
            name: name.into(),
            why: "it is not registered".into(),
            known: self.names(),
        })
    }

    /// The task whose routing token has this id.
    pub fn by_routing(&self, id: u32) -> Option<&TaskTokens> {
        self.tasks.iter().find(|t| t.routing.id == id)
    }

    /// Every token of the registry, in no particular order.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenId> {
        self.tasks
            .iter()
            .flat_map(|t| [&t.routing, &t.placeholder])
            .chain(&self.box_prompt)
    }

    /// Checks that names, tokens and ids are unique, as a registry read from a file may not be.
    pub fn validate(&self) -> Result<()> {
        let mut checked = Self {
            tasks: Vec::new(),
            box_prompt: self.box_prompt.clone(),
        };
        self.tasks
            .iter()
            .try_for_each(|task| checked.register(task.clone()))
    }

    /// Checks the ids against a vocabulary and returns the first token it does not hold so.
    pub fn check(&self, id_of: impl Fn(&str) -> Option<u32>) -> Result<()> {
        for t in self.tokens() {
            if id_of(&t.token) != Some(t.id) {
                let task = self
                    .tasks
                    .iter()
                    .find(|k| k.routing == *t || k.placeholder == *t)
                    .map_or("box prompt", |k| &k.name);
                return Err(CoreError::MissingToken {
                    task: task.into(),
                    token: t.token.clone(),
                });
            }
        }
        Ok(())
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.tasks.iter().map(|t| t.name.as_str()).collect();
        if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, a: u32, b: u32) -> TaskTokens {
        TaskTokens {
            name: name.into(),
            routing: TokenId::new(format!("<{name}_begin>"), a),
            placeholder: TokenId::new(format!("<{name}>"), b),
        }
    }

    #[test]
    fn taken_names_and_tokens_are_refused() {
        let mut r = TaskRegistry::new();
        r.register(task("count", 40, 41)).unwrap();
        r.box_prompt = Some(TokenId::new("<area>", 50));
        assert_eq!(r.by_routing(40).unwrap().name, "count");
        assert!(r.by_routing(41).is_none());
        assert!(r.register(task("count", 42, 43)).is_err());
        assert!(r.register(task("point", 41, 43)).is_err());
        assert!(r.register(task("point", 50, 43)).is_err());
        assert!(r.register(task("point", 42, 42)).is_err());
        r.register(task("point", 42, 43)).unwrap();
        assert!(r.check(|_| None).is_err());
        r.validate().unwrap();
        let mut twice = r.clone();
        twice.tasks[1].routing.id = twice.tasks[0].placeholder.id;
        assert!(twice.validate().is_err());
        let json = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<TaskRegistry>(&json).unwrap(), r);
    }
}
