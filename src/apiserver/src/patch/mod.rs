//! The three patch formats. Each turns an object into a new one or says why not; pure.
//! Server-side apply is not served.

pub(crate) mod json;
pub(crate) mod merge;
pub(crate) mod strategic;

/// The format of a patch, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists merge by key.
    Strategic,
}

/// The media types understood, as error messages list them.
pub(crate) const MEDIA_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
                               application/strategic-merge-patch+json";

impl Format {
    /// The format of a media type.
    pub(crate) fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Why a patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// It is not a patch of its format.
    #[error("error decoding patch: {0}")]
    Malformed(String),
    /// It does not fit the object.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Inapplicable(String),
}
