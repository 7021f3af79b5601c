//! Label and field selectors of list, watch and deletecollection requests. Parsing and matching
//! only; pure.

pub(crate) mod field;
pub(crate) mod label;

use serde_json::Value;

/// Text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A label selector breaks the grammar.
    #[error("unable to parse requirement: {0}")]
    Label(String),
    /// A field selector breaks the grammar.
    #[error("invalid selector: '{0}'; can't understand '{1}'")]
    Field(String, String),
    /// A field that cannot be selected by.
    #[error("field label not supported: {0}")]
    UnknownField(String),
}

/// Both selectors of a request; an object must match both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    /// By labels.
    pub labels: label::Selector,
    /// By fields.
    pub fields: field::Selector,
}

impl Selector {
    /// Whether an object is selected.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.fields.matches(object) && self.labels.matches(object)
    }

    /// Whether every object is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}
