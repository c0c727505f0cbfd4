//! Configuration files of SAM 2 and of transformers, read value by value.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::HeadsError;

/// The values of a file. Paths join names with dots.
pub(super) struct Fields<'a>(pub(super) &'a Value);

impl<'a> Fields<'a> {
    /// The value at `path`; `None` if it is absent or null.
    pub(super) fn at(&self, path: &'static str) -> Result<Option<&'a Value>, HeadsError> {
        let mut at = self.0;
        for name in path.split('.') {
            at = match at {
                Value::Object(fields) => fields.get(name).unwrap_or(&Value::Null),
                Value::Null => at,
                _ => return Err(HeadsError::config(path, "fields in objects", "elsewhere")),
            };
        }
        Ok((!at.is_null()).then_some(at))
    }

    /// Puts the value at `path`, if there is one, into `field`.
    pub(super) fn take<T: DeserializeOwned>(
        &self,
        path: &'static str,
        field: &mut T,
    ) -> Result<(), HeadsError> {
        if let Some(value) = self.at(path)? {
            *field = T::deserialize(value).map_err(|e| {
                HeadsError::config(path, format!("a value of its type ({e})"), "unusable")
            })?;
        }
        Ok(())
    }

    /// Puts the value at `path`, which must be there, into `field`.
    pub(super) fn need<T: DeserializeOwned>(
        &self,
        path: &'static str,
        field: &mut T,
    ) -> Result<(), HeadsError> {
        HeadsError::require(self.at(path)?.is_some(), path, "a value", "missing")?;
        self.take(path, field)
    }

    /// The value at `path`, or `default`.
    pub(super) fn or<T: DeserializeOwned>(
        &self,
        path: &'static str,
        mut default: T,
    ) -> Result<T, HeadsError> {
        self.take(path, &mut default)?;
        Ok(default)
    }

    /// Refuses any other value at `path` than `only`.
    pub(super) fn fixed(
        &self,
        path: &'static str,
        only: impl Into<Value>,
    ) -> Result<(), HeadsError> {
        let (found, only) = (self.at(path)?.unwrap_or(&Value::Null), only.into());
        let expected = format!("{only}, the only value supported");
        HeadsError::require(*found == only, path, expected, found)
    }
}
