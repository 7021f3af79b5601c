//! Identifiers, valid by construction: each may be part of a path.

use serde::{Deserialize, Serialize};

/// Identifies a sandbox: 32 lower-case hexadecimal digits, unique on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// Identifies a container: 64 lower-case hexadecimal digits, unique on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// An identifier that is not lower-case hexadecimal of the right length.
#[derive(Debug, thiserror::Error)]
#[error("{value:?} is not an identifier of {expected} lower-case hexadecimal digits")]
pub struct InvalidId {
    value: String,
    expected: usize,
}

fn validate_id(value: String, expected: usize) -> Result<String, InvalidId> {
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if value.len() == expected && value.bytes().all(hexadecimal) {
        Ok(value)
    } else {
        Err(InvalidId { value, expected })
    }
}

macro_rules! identifier {
    ($name:ident, $length:literal) => {
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                validate_id(value, $length).map(Self)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl $name {
            /// The identifier's digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
identifier!(SandboxId, 32);
identifier!(ContainerId, 64);

/// An image's identity: the digest of its configuration, `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl TryFrom<String> for ImageId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        match value.strip_prefix("sha256:") {
            Some(digits) => validate_id(digits.to_owned(), 64).map(|d| Self(format!("sha256:{d}"))),
            None => Err(InvalidId { value, expected: 64 }),
        }
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

impl ImageId {
    /// `sha256:<64 hex digits>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
