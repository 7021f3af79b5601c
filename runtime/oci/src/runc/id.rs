//! A container's id: letters, digits, `_`, `+`, `-` and `.`, and no path.

use std::fmt;

use super::{Error, Result};

/// No file name is longer.
const MAX_LENGTH: usize = 255;

/// A container's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(String);

impl Id {
    /// Takes what the caller wrote.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let plain = !matches!(text, "" | "." | "..") && text.len() <= MAX_LENGTH;
        match plain && text.bytes().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::InvalidId(text.to_owned())),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_paths_or_nothing_are_refused() {
        for id in ["", ".", "..", "a/b", "/a", "../a", "a b", "a\n", "ä", "a\0", "a*", "a:b"] {
            assert!(matches!(Id::parse(id), Err(Error::InvalidId(_))), "{id:?}");
        }
        assert!(Id::parse(&"a".repeat(256)).is_err());
        for id in ["a", "a.b", "...", "-a", "A_b+c-d.0", ".hidden"] {
            assert_eq!(Id::parse(id).unwrap().as_str(), id);
        }
    }
}
