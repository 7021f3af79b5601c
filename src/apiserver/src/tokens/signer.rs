//! The key that signs service account tokens: JSON web tokens with ES256 (RFC 7515, RFC 7518), and the
//! public half as a key set (RFC 7517) for whoever verifies them without asking.
//!
//! Only tokens that this key signed are ever accepted: the algorithm is not the token's choice.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::object::ObjectExt;
use crate::pki::{self, Error};

/// The longest token that is looked at.
const MAX_BYTES: usize = 16 << 10;

/// A token cannot be trusted; the text is for the log and for reviewers, not for strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is no JSON web token.
    #[error("the token is malformed")]
    Malformed,
    /// Another key or algorithm signed it, or nobody did.
    #[error("the token was not signed by this cluster")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    Early,
}

/// Signs and verifies tokens.
pub(crate) struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

impl Signer {
    /// Reads the key from `sa.key` in a directory, or makes it. Blocks.
    ///
    /// # Errors
    /// When the file cannot be accessed or holds no usable key.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("sa.key");
        let unusable = |why: String| Error::Unusable { path: path.clone(), why };
        let pem = match std::fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = KeyPair::generate()
                    .map_err(|source| Error::Make { name: "sa".into(), source })?;
                let pem = made.serialize_pem();
                pki::write_private(&path, &pem)?;
                pem
            }
            Err(source) => return Err(Error::File { path, source }),
        };
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der(), &random)
                .map_err(|error| unusable(error.to_string()))?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(pair.public_key().as_ref()));
        Ok(Self { pair, random, id })
    }

    /// Signs claims. `None` when the system has no randomness.
    pub(crate) fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key signed and whose time it is, in seconds since 1970.
    ///
    /// # Errors
    /// Why it cannot be trusted.
    pub(crate) fn verify(&self, token: &str, now: i64) -> Result<Value, Refused> {
        if token.len() > MAX_BYTES {
            return Err(Refused::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Malformed)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed);
        let object = |part: &str| -> Result<Value, Refused> {
            let value: Value =
                serde_json::from_slice(&bytes(part)?).map_err(|_| Refused::Malformed)?;
            value.is_object().then_some(value).ok_or(Refused::Malformed)
        };
        let header = object(header)?;
        if header.text("/alg") != "ES256" || header.text("/kid") != self.id {
            return Err(Refused::Signature);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &bytes(signature)?)
            .map_err(|_| Refused::Signature)?;
        let claims = object(claims)?;
        match (claims.int("/nbf"), claims.int("/exp")) {
            (Some(from), _) if now < from => Err(Refused::Early),
            (_, Some(until)) if now < until => Ok(claims),
            _ => Err(Refused::Expired),
        }
    }

    /// The public key as a key set.
    pub(crate) fn key_set(&self) -> Value {
        // An uncompressed point: a mark, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer() -> (tempfile::TempDir, Signer) {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::open(dir.path()).unwrap();
        (dir, signer)
    }

    #[test]
    fn a_token_is_trusted_while_its_time_is_and_after_a_restart() {
        let (dir, signer) = signer();
        let token = signer.sign(&json!({"sub": "x", "nbf": 100, "exp": 200})).unwrap();
        let again = Signer::open(dir.path()).unwrap();
        assert_eq!(again.verify(&token, 150).unwrap()["sub"], "x");
        assert_eq!(again.verify(&token, 99), Err(Refused::Early));
        assert_eq!(again.verify(&token, 200), Err(Refused::Expired));
        let endless = signer.sign(&json!({"sub": "x"})).unwrap();
        assert_eq!(signer.verify(&endless, 150), Err(Refused::Expired));
    }

    #[test]
    fn a_token_chooses_neither_its_algorithm_nor_its_key() {
        let (_dir, signer) = signer();
        let (_other_dir, other) = self::signer();
        let claims = json!({"sub": "x", "exp": 200});
        assert_eq!(signer.verify(&other.sign(&claims).unwrap(), 1), Err(Refused::Signature));
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "HS256", "RS256", ""] {
            let header = json!({"alg": alg, "kid": signer.id});
            let token = format!("{}.{}.", part(&header), part(&claims));
            assert_eq!(signer.verify(&token, 1), Err(Refused::Signature), "{alg}");
        }
        let good = signer.sign(&claims).unwrap();
        let parts: Vec<&str> = good.split('.').collect();
        let forged = part(&json!({"sub": "admin", "exp": 200}));
        let token = format!("{}.{forged}.{}", parts[0], parts[2]);
        assert_eq!(signer.verify(&token, 1), Err(Refused::Signature));
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_token(text in "[A-Za-z0-9_.=-]{0,80}") {
            let (_dir, signer) = signer();
            prop_assert!(signer.verify(&text, 1).is_err());
        }
    }
}
