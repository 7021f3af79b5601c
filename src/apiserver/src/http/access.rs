//! Who asks, and whether they may. Users are client certificates (the common name is the user, the
//! organizations are the groups) or service accounts that show a token ([`crate::tokens`]).
//!
//! `system:masters` may do everything, `system:nodes` what a node needs and on its own objects only;
//! everybody else what RBAC allows them ([`crate::rbac`]), which at first is nothing but discovery and
//! questions about themselves.

use crate::failure::Failure;
use crate::rbac::{self, Asked};
use crate::resource::{Kind, Resource, Review, Subresource, find};
use crate::store::Store;

/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The group of nodes.
pub(crate) const NODES: &str = "system:nodes";
/// Whom a request without credentials is from.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// What a node's user name starts with.
pub(crate) const NODE_PREFIX: &str = "system:node:";

/// Somebody with a certificate that this server's CA signed, or a token that it issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The common name, or the account's user name.
    pub user: String,
    /// The organizations, or the account's groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// The name of the node this is the agent of.
    pub(crate) fn node(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.user.strip_prefix(NODE_PREFIX)).flatten()
    }

    /// Whether everything is allowed.
    pub(crate) fn is_master(&self) -> bool {
        self.is_in(MASTERS)
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// Reads the subject of a certificate.
    pub(crate) fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self { user, groups })
    }
}

/// What is to be done to what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt<'a> {
    /// The verb, as discovery names them.
    pub verb: &'a str,
    /// On which resource.
    pub resource: &'static Resource,
    /// What below the object.
    pub subresource: Option<Subresource>,
    /// In which namespace.
    pub namespace: &'a str,
    /// On which object; "" for collections, unless the field selector names one, and creations.
    pub name: &'a str,
    /// Of which node alone, by the field selector; "" where it does not say.
    pub node: &'a str,
}

/// Whether an attempt is allowed, by what the request alone says. Rules that need the object
/// (a node's own pods) are checked where the object is.
///
/// # Errors
/// 403, in upstream's words.
pub(crate) fn authorize(
    store: &Store,
    identity: &Identity,
    attempt: &Attempt<'_>,
) -> Result<(), Failure> {
    if identity.is_master() || identity.node().is_some_and(|node| node_may(node, attempt)) {
        return Ok(());
    }
    let Attempt { verb, resource, namespace, name, .. } = *attempt;
    // A namespace is in itself, as upstream's rules see it.
    let within = if resource.kind == Kind::Namespace { name } else { namespace };
    let asked = Asked {
        verb,
        group: resource.group,
        resource: resource.plural,
        subresource: attempt.subresource.map(Subresource::name).unwrap_or_default(),
        namespace: within,
        name,
    };
    if rbac::allows(store, identity, &asked) {
        return Ok(());
    }
    refused(identity, attempt)
}

/// Whether somebody may do what a review asks about.
pub(crate) fn may(store: &Store, identity: &Identity, asked: &Asked<'_>) -> bool {
    let as_node = || {
        let resource = find(asked.group, "v1", asked.resource)?;
        let subresource = match asked.subresource {
            "" => None,
            name => Some(resource.subresource(name)?),
        };
        let Asked { verb, namespace, name, .. } = *asked;
        let attempt = Attempt { verb, resource, subresource, namespace, name, node: "" };
        Some(node_may(identity.node()?, &attempt))
    };
    identity.is_master() || as_node() == Some(true) || rbac::allows(store, identity, asked)
}

/// Whether a question may be asked: about oneself always, about others by nodes and by whom RBAC
/// allows it.
///
/// # Errors
/// 403.
pub(crate) fn authorize_review(
    store: &Store,
    identity: &Identity,
    review: Review,
) -> Result<(), Failure> {
    let about_self = matches!(review, Review::SelfSubject | Review::SelfAccess | Review::SelfRules);
    let plural = review.plural();
    let asked =
        Asked { verb: "create", group: review.group(), resource: &plural, ..Asked::default() };
    let node = identity.node().is_some();
    if about_self || node || identity.is_master() || rbac::allows(store, identity, &asked) {
        return Ok(());
    }
    Err(Failure::forbidden_review(
        &format!("{plural}.{}", review.group()),
        &format!(
            "User {:?} cannot create resource {plural:?} in API group {:?} at the cluster scope",
            identity.user,
            review.group()
        ),
    ))
}

fn refused(identity: &Identity, attempt: &Attempt<'_>) -> Result<(), Failure> {
    let Attempt { verb, resource, namespace, name, .. } = *attempt;
    let full = match attempt.subresource {
        Some(sub) => format!("{}/{}", resource.plural, sub.name()),
        None => resource.plural.to_owned(),
    };
    let place = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    Err(Failure::forbidden(
        resource,
        name,
        &format!(
            "User {:?} cannot {verb} resource {full:?} in API group {:?} {place}",
            identity.user, resource.group
        ),
    ))
}

fn node_may(node: &str, attempt: &Attempt<'_>) -> bool {
    use Subresource::{Attach, Eviction, Exec, Log, PortForward, Proxy, Status};
    let reads = matches!(attempt.verb, "get" | "list" | "watch");
    let changes = matches!(attempt.verb, "update" | "patch");
    let own = attempt.name == node;
    let named = !attempt.name.is_empty();
    match (attempt.resource.kind, attempt.subresource) {
        (_, Some(Log | Exec | Attach | PortForward | Proxy)) => false,
        // All pods are nobody's business but the scheduler's: a node lists those on it.
        (Kind::Pod, None) => match attempt.verb {
            "list" | "watch" => attempt.node == node || named,
            verb => matches!(verb, "get" | "create" | "delete"),
        },
        (Kind::Pod, Some(Status)) => reads || changes,
        (Kind::Pod, Some(Eviction)) => attempt.verb == "create",
        // A creation names its object in the body; it is checked there. Other nodes are read for the
        // routes to their pods, as `system:node-proxier` allows it.
        (Kind::Node, None) => reads || attempt.verb == "create" || (own && changes),
        (Kind::Node, Some(Status)) => own && (reads || changes),
        (Kind::Lease, None) => {
            attempt.namespace == "kube-node-lease"
                && (attempt.verb == "create"
                    || own && (reads || changes || attempt.verb == "delete"))
        }
        (Kind::CertificateSigningRequest, None) => reads || attempt.verb == "create",
        // For which pods is checked where the pod is.
        (Kind::ServiceAccount, Some(Subresource::Token)) => attempt.verb == "create",
        (Kind::Event, None) => attempt.verb == "create" || changes,
        // What a real cluster grants to the service proxy, too.
        (Kind::Service | Kind::EndpointSlice, None) => reads,
        (Kind::ClusterTrustBundle | Kind::RuntimeClass, None) => reads,
        // One at a time, and claims and volumes cannot be watched, as under upstream's Node authorizer.
        (Kind::ConfigMap | Kind::Secret, None) => reads && named,
        (
            Kind::ServiceAccount
            | Kind::PersistentVolume
            | Kind::PersistentVolumeClaim
            | Kind::Endpoints,
            None,
        ) => attempt.verb == "get",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::of;
    use crate::store::{Config, History, Recovery};

    /// A store with nothing in it.
    fn empty() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("objects.redb");
        let config = Config {
            path,
            recovery: Recovery::Refuse,
            history: History { changes: 10, bytes: 4096 },
            packed: "events/",
        };
        let (store, _) = Store::open(&config).unwrap();
        (dir, store)
    }

    fn who(user: &str, group: &str) -> Identity {
        Identity { user: user.into(), groups: vec![group.into()] }
    }

    fn may(identity: &Identity, verb: &str, kind: Kind, name: &str) -> bool {
        let namespace = if kind == Kind::Lease { "kube-node-lease" } else { "" };
        let (_dir, store) = empty();
        authorize(
            &store,
            identity,
            &Attempt { verb, resource: of(kind), subresource: None, namespace, name, node: "" },
        )
        .is_ok()
    }

    #[test]
    fn a_node_reads_what_it_needs_and_writes_what_is_its_own() {
        let node = who("system:node:n1", NODES);
        assert!(may(&node, "get", Kind::Pod, "p") && may(&node, "get", Kind::Secret, "s"));
        assert!(may(&node, "patch", Kind::Node, "n1") && may(&node, "update", Kind::Lease, "n1"));
        assert!(!may(&node, "patch", Kind::Node, "n2") && !may(&node, "update", Kind::Lease, "n2"));
        assert!(!may(&node, "update", Kind::Secret, "s") && !may(&node, "update", Kind::Pod, "p"));
    }

    #[test]
    fn a_node_lists_its_own_pods_and_reads_what_they_name_one_by_one() {
        let node = who("system:node:n1", NODES);
        let (_dir, store) = empty();
        let list = |of_node| {
            let resource = of(Kind::Pod);
            let (subresource, namespace) = (None, "");
            let attempt =
                Attempt { verb: "list", resource, subresource, namespace, name: "", node: of_node };
            authorize(&store, &node, &attempt).is_ok()
        };
        assert!(list("n1") && !list("n2") && !list(""));
        for kind in [Kind::ConfigMap, Kind::Secret] {
            assert!(may(&node, "watch", kind, "one") && !may(&node, "watch", kind, ""));
        }
        for kind in [Kind::PersistentVolumeClaim, Kind::PersistentVolume] {
            assert!(may(&node, "get", kind, "one") && !may(&node, "watch", kind, "one"));
        }
        assert!(!may(&node, "list", Kind::Namespace, ""));
        let class = |verb, name| may(&node, verb, Kind::RuntimeClass, name);
        assert!(class("get", "one") && class("list", "") && class("watch", ""));
        assert!(!class("create", "") && !class("delete", "one"));
    }

    #[test]
    fn masters_may_everything_and_strangers_nothing() {
        assert!(may(&who("admin", MASTERS), "delete", Kind::Node, "n1"));
        let stranger = who("eve", "people");
        let attempt = Attempt {
            verb: "list",
            resource: of(Kind::Pod),
            subresource: None,
            namespace: "default",
            name: "",
            node: "",
        };
        let (_dir, store) = empty();
        assert_eq!(
            authorize(&store, &stranger, &attempt).unwrap_err().to_string(),
            "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in \
             the namespace \"default\""
        );
        let posing = who("system:node:n1", "people");
        assert!(!may(&posing, "watch", Kind::Pod, ""), "the name alone makes no node");
    }
}
