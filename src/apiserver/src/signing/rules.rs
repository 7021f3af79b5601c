//! What the signers of nodes' certificates sign, and whose requests are approved without a person, as
//! upstream's controllers decide it.

use super::Request;
use crate::http::access::{Identity, NODE_PREFIX, NODES};

/// A signer that this server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signer {
    /// Client certificates of nodes' agents.
    NodeClient,
    /// Certificates that nodes' APIs show.
    NodeServing,
}

/// Why a signer does not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Not a node's group.
    #[error("organization is not system:nodes")]
    Organization,
    /// Not a node's name.
    #[error("subject common name does not begin with system:node:")]
    CommonName,
    /// Names in a client's certificate.
    #[error("subjectAltNames are not allowed")]
    Names,
    /// No names in a server's certificate.
    #[error("at least one DNS or IP subjectAltName is required")]
    NoNames,
    /// Something that these certificates do not have.
    #[error("only a common name, an organization, DNS names and addresses are allowed")]
    More,
    /// Other usages.
    #[error("usages did not match the signer's")]
    Usages,
}

impl Signer {
    /// The signer of a name; none for those that others are.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Self::NodeClient),
            "kubernetes.io/kubelet-serving" => Some(Self::NodeServing),
            _ => None,
        }
    }

    /// Whether the signer signs a request for these usages.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub(crate) fn check(self, request: &Request, usages: &[String]) -> Result<(), Refused> {
        if request.organizations != [NODES] {
            return Err(Refused::Organization);
        }
        let node = request.common_name.strip_prefix(NODE_PREFIX);
        if node.is_none_or(str::is_empty) {
            return Err(Refused::CommonName);
        }
        let has_names = !request.dns_names.is_empty() || !request.addresses.is_empty();
        match self {
            Self::NodeClient if has_names => return Err(Refused::Names),
            Self::NodeServing if !has_names => return Err(Refused::NoNames),
            _ => {}
        }
        if request.has_more {
            return Err(Refused::More);
        }
        let purpose = match self {
            Self::NodeClient => "client auth",
            Self::NodeServing => "server auth",
        };
        let has = |usage: &str| usages.iter().any(|one| one == usage);
        let allowed = ["digital signature", "key encipherment", purpose];
        let only_those = usages.iter().all(|one| allowed.contains(&one.as_str()));
        match has("digital signature") && has(purpose) && only_those {
            true => Ok(()),
            false => Err(Refused::Usages),
        }
    }
}

/// The subresource by whose right somebody gets a node's client certificate without a person: one for
/// the node that they are, or one for any node.
pub(crate) fn approved_by(request: &Request, asker: &Identity) -> &'static str {
    match asker.user == request.common_name {
        true => "selfnodeclient",
        false => "nodeclient",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|one| (*one).to_owned()).collect()
    }

    fn node() -> Request {
        Request {
            common_name: "system:node:n1".into(),
            organizations: vec!["system:nodes".into()],
            ..Request::default()
        }
    }

    #[test]
    fn a_client_certificate_is_a_nodes_and_nothing_more() {
        let client = usages(&["digital signature", "client auth"]);
        let check = |request: Request| Signer::NodeClient.check(&request, &client);
        assert_eq!(check(node()), Ok(()));
        assert_eq!(
            check(Request { organizations: vec!["system:masters".into()], ..node() }),
            Err(Refused::Organization)
        );
        let both = vec!["system:nodes".into(), "system:masters".into()];
        assert_eq!(
            check(Request { organizations: both, ..node() }),
            Err(Refused::Organization),
            "two organizations are two groups"
        );
        for name in ["admin", "system:node:"] {
            let named = Request { common_name: name.into(), ..node() };
            assert_eq!(check(named), Err(Refused::CommonName), "{name}");
        }
        assert_eq!(check(Request { dns_names: vec!["n1".into()], ..node() }), Err(Refused::Names));
        assert_eq!(check(Request { has_more: true, ..node() }), Err(Refused::More));
    }

    #[test]
    fn usages_are_those_of_the_signer_and_no_others() {
        let check = |list: &[&str]| Signer::NodeClient.check(&node(), &usages(list));
        assert_eq!(check(&["key encipherment", "digital signature", "client auth"]), Ok(()));
        for bad in [
            &["digital signature"][..],
            &["client auth"],
            &["digital signature", "server auth"],
            &["digital signature", "client auth", "server auth"],
            &["digital signature", "client auth", "cert sign"],
        ] {
            assert_eq!(check(bad), Err(Refused::Usages), "{bad:?}");
        }
    }

    #[test]
    fn a_serving_certificate_names_what_it_serves() {
        let server = usages(&["digital signature", "server auth"]);
        let check = |request: Request| Signer::NodeServing.check(&request, &server);
        assert_eq!(check(node()), Err(Refused::NoNames));
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        assert_eq!(check(Request { addresses, ..node() }), Ok(()));
    }

    #[test]
    fn other_signers_are_not_ours() {
        assert_eq!(Signer::of("kubernetes.io/kube-apiserver-client"), None);
        assert_eq!(Signer::of("example.com/any"), None);
    }
}
