//! An object as the store holds it. Its text is a fifth of what its parsed form takes: the history
//! has the text alone, and so has an object that is hardly ever read.

use std::sync::Arc;

use serde_json::Value;

/// An object of the store.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    text: Arc<str>,
    parsed: Option<Arc<Value>>,
}

impl Kept {
    /// Keeps an object with its parsed form.
    pub(super) fn new(object: Arc<Value>) -> Self {
        Self { text: object.to_string().into(), parsed: Some(object) }
    }

    /// Gives up the parsed form.
    pub(super) fn packed(self) -> Self {
        Self { parsed: None, ..self }
    }

    pub(super) fn text(&self) -> &Arc<str> {
        &self.text
    }

    pub(super) fn value(&self) -> Arc<Value> {
        self.parsed.clone().unwrap_or_else(|| Arc::new(parse(&self.text)))
    }
}

/// Reads what the store has written itself.
pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}
