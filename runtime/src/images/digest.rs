//! Content digests and layer chain identities (OCI image specification, *Descriptor* and *ChainID*).
//!
//! Only sha256 is supported: it is what registries use and what image identities are made of. A
//! [`Digest`] exists only after its syntax was checked, so it may be part of a path.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A string that is not a sha256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {0:?}: want sha256:<64 lower-case hexadecimal digits>")]
pub struct InvalidDigest(String);

const PREFIX: &str = "sha256:";

impl TryFrom<&str> for Digest {
    type Error = InvalidDigest;
    fn try_from(value: &str) -> Result<Self, InvalidDigest> {
        let digits = value.strip_prefix(PREFIX).unwrap_or_default();
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() == 64 && digits.bytes().all(hexadecimal) {
            Ok(Self(value.to_owned()))
        } else {
            let shown: String = value.chars().take(100).collect();
            Err(InvalidDigest(shown))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(value: String) -> Result<Self, InvalidDigest> {
        Self::try_from(value.as_str())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// With the algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits alone: a safe file name.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

/// Computes a digest piece by piece.
#[derive(Default)]
pub(crate) struct Hasher(sha2::Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in self.0.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
            }
        }
        Digest(text)
    }
}

/// Identifies a layer together with everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl From<Digest> for ChainId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ChainId {
    /// The hexadecimal digits: a safe file name.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }

    /// The chain of each layer, bottom first, from the layers' diff ids, bottom first.
    pub fn of_layers(diff_ids: &[Digest]) -> Vec<ChainId> {
        let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let next = match chain.last() {
                None => ChainId(diff_id.clone()),
                Some(below) => ChainId(Digest::of(format!("{below} {diff_id}").as_bytes())),
            };
            chain.push(next);
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
    }

    #[test]
    fn only_well_formed_sha256_digests_are_accepted() {
        assert!(Digest::try_from(EMPTY).is_ok());
        let upper = EMPTY.to_uppercase();
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            "sha512:e3b0",
            &EMPTY[..70],
            upper.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b785\u{e9}85",
        ] {
            assert!(Digest::try_from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_chain_of_the_lowest_layer_is_its_diff_id() {
        let a = Digest::of(b"a");
        let b = Digest::of(b"b");
        let chain = ChainId::of_layers(&[a.clone(), b.clone()]);
        assert_eq!(chain[0].hex(), a.hex());
        let expected = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain[1].hex(), expected.hex());
    }
}
