//! Trust in one certificate that somebody else's word vouches for, besides our authority's.
//!
//! A node that joined shows a certificate that it made itself until somebody signs one for it. Its
//! Node object says which, and only the node can have written that: so exactly that certificate is
//! believed, for that node alone.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};

use super::{Error, provider, roots};

#[derive(Debug)]
struct Pinned {
    digest: [u8; 32],
    authority: Arc<WebPkiServerVerifier>,
}

/// The same settings, which believe this certificate as well.
///
/// # Errors
/// When the authority is unusable.
pub(crate) fn pinned(
    base: &ClientConfig,
    ca_pem: &str,
    digest: [u8; 32],
) -> Result<Arc<ClientConfig>, Error> {
    let authority =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
    let mut config = base.clone();
    // A session that another verifier let in must not be resumed here.
    config.resumption = rustls::client::Resumption::disabled();
    config.dangerous().set_certificate_verifier(Arc::new(Pinned { digest, authority }));
    Ok(Arc::new(config))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let digest: [u8; 32] = Sha256::digest(leaf.as_ref()).into();
        match digest == self.digest {
            true => Ok(ServerCertVerified::assertion()),
            false => self.authority.verify_server_cert(leaf, chain, name, ocsp, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}
