//! Who calls, by client certificate (RFC 5280 subject: common name is the user, organizations are
//! the groups), and whether that is enough.

use x509_parser::prelude::{FromDer, X509Certificate};

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// The user that kubeadm gives the API server for its calls to nodes.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: String,
    /// The groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// The subject of a certificate that has been verified before. `None` without a common name.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect();
        (!user.is_empty()).then_some(Self { user, groups })
    }

    /// Whether the caller is an administrator or the API server.
    pub fn may_do_everything(&self) -> bool {
        self.user == API_SERVER || self.groups.iter().any(|g| g == MASTERS)
    }
}
