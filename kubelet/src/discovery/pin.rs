//! A public key that an authority must have: `sha256:` and the digest of its SubjectPublicKeyInfo, in
//! hexadecimal, as kubeadm writes it (RFC 7469, section 2.4, in another spelling).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no public key pin (expected sha256: and 64 hexadecimal digits)")]
pub struct MalformedPin(String);

/// The digest of a public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a certificate's key; `None` for what is no certificate.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self(Sha256::digest(certificate.public_key().raw).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = MalformedPin;

    fn from_str(text: &str) -> Result<Self, MalformedPin> {
        let malformed = || MalformedPin(text.to_owned());
        let (kind, digits) = text.split_once(':').ok_or_else(malformed)?;
        let plain = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !kind.eq_ignore_ascii_case("sha256") || !plain {
            return Err(malformed());
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            let pair = digits.get(2 * index..2 * index + 2).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// An authority that `openssl req` made.
    const AUTHORITY: &str = "MIIBgTCCASegAwIBAgIUGk7ZE/QKU+lKZyLKWilRo9XdSewwCgYIKoZIzj0EAwIwFTETMBEGA1UEAwwKa3ViZXJu\
        ZXRlczAgFw0yNjExMjExNzU3MzVaGA8yMTI2MTAyODE3NTczNVowFTETMBEGA1UEAwwKa3ViZXJuZXRlczBZMBMG\
        ByqGSM49AgEGCCqGSM49AwEHA0IABP2vr9lAMNAoE6E+Rx9CJ9BV5om8m7ZWmEb+TrFd50SMkKEiQqK8Drbsi4Eq\
        T6lthHNVVXPCDMtcT/3hAkyowDejUzBRMB0GA1UdDgQWBBTDQPrihZfajAiJRAbBSJMwGFYDxzAfBgNVHSMEGDAW\
        gBTDQPrihZfajAiJRAbBSJMwGFYDxzAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIDZuHAgQIPI7\
        0dEmKkpqSnxhI3z1IjHPeUifC/OBGVyGAiEA/cOgBtlF0Uf8RV5vaklQzKIvcFqyVvAQ9XNW4SQWkes=";

    /// What `openssl pkey -pubin -outform der | sha256sum` says of its key.
    const DIGEST: &str = "1728c02555bfe5747244975023c9cacd7d77d9a68832243b9e69a9db8f59728b";

    #[test]
    fn the_pin_is_the_digest_that_openssl_computes() {
        let der = STANDARD.decode(AUTHORITY).unwrap();
        let pin = Pin::of_certificate(&der).unwrap();
        assert_eq!(pin.to_string(), format!("sha256:{DIGEST}"));
        assert_eq!(Pin::of_certificate(b"none"), None);
    }

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let text = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        let upper = text.to_uppercase();
        assert_eq!(upper.parse::<Pin>().unwrap().to_string(), text);
        for bad in ["", "sha256:", "sha512:00", &text[..70], &text.replace(':', ""), "sha256:é"] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}
