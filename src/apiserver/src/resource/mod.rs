//! What is served: kinds, their paths, scopes, subresources and verbs; the entries are in `table`. Everything
//! that discovery says comes from here, and nothing is routed that is not in it.

mod table;

use serde_json::Value;

use crate::codec;

pub(crate) use table::RESOURCES;

/// A kind of object, as stored. `events.k8s.io` events are the same objects as core ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are the kinds of the API")]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    Endpoints,
    ConfigMap,
    Secret,
    ServiceAccount,
    Event,
    EndpointSlice,
    Lease,
    Role,
    RoleBinding,
    ClusterRole,
    ClusterRoleBinding,
    PersistentVolume,
    PersistentVolumeClaim,
    CertificateSigningRequest,
    ClusterTrustBundle,
    RuntimeClass,
    PriorityClass,
    PodTemplate,
    LimitRange,
}

/// Whether objects live in namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One set of names for the whole cluster.
    Cluster,
    /// One set of names a namespace.
    Namespaced,
}

/// One served resource.
#[derive(Debug)]
pub(crate) struct Resource {
    /// What it stores.
    pub kind: Kind,
    /// API group, "" for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind as clients write it.
    pub kind_name: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name for one, as users type it.
    pub singular: &'static str,
    /// Abbreviations users type.
    pub short: &'static [&'static str],
    /// Groups of resources users type (`all`).
    pub categories: &'static [&'static str],
    /// Cluster or namespaced.
    pub scope: Scope,
    /// Paths below an object.
    pub subresources: &'static [Subresource],
    /// Decodes with the typed struct and encodes again.
    pub canonical: fn(&Value) -> Result<Value, codec::Mistyped>,
}

/// A path below an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the subresources of the API")]
pub(crate) enum Subresource {
    Status,
    Finalize,
    Binding,
    Log,
    Eviction,
    EphemeralContainers,
    Resize,
    Token,
    Exec,
    Attach,
    PortForward,
    Approval,
    Proxy,
}

impl Subresource {
    /// The name in paths and discovery.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Log => "log",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Token => "token",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Approval => "approval",
            Self::Proxy => "proxy",
        }
    }

    /// The verbs it has.
    pub(crate) fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::EphemeralContainers | Self::Resize | Self::Approval => {
                &["get", "patch", "update"]
            }
            Self::Finalize => &["update"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Log | Self::Proxy => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
        }
    }

    /// Whether a connection becomes a stream there.
    pub(crate) fn connects(self) -> bool {
        matches!(self, Self::Exec | Self::Attach | Self::PortForward)
    }

    /// Group, version and kind of what is read or written there, if not the resource's own.
    pub(crate) fn object(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Status
            | Self::Finalize
            | Self::EphemeralContainers
            | Self::Resize
            | Self::Approval => None,
            Self::Binding => Some(("", "v1", "Binding")),
            Self::Eviction => Some(("policy", "v1", "Eviction")),
            Self::Log => Some(("", "v1", "Pod")),
            Self::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            Self::Exec => Some(("", "v1", "PodExecOptions")),
            Self::Attach => Some(("", "v1", "PodAttachOptions")),
            Self::PortForward => Some(("", "v1", "PodPortForwardOptions")),
            Self::Proxy => Some(("", "v1", "NodeProxyOptions")),
        }
    }
}

/// A question that is answered and not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    /// Whom a token stands for.
    Token,
    /// Who the asker is.
    SelfSubject,
    /// Whether somebody may do something.
    Access,
    /// Whether the asker may.
    SelfAccess,
    /// What the asker may do.
    SelfRules,
}

impl Review {
    /// All of them, in the order of discovery.
    pub(crate) const ALL: [Self; 5] =
        [Self::SelfSubject, Self::Token, Self::SelfAccess, Self::SelfRules, Self::Access];

    /// The API group.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Token | Self::SelfSubject => "authentication.k8s.io",
            Self::Access | Self::SelfAccess | Self::SelfRules => "authorization.k8s.io",
        }
    }

    /// Kind as clients write it.
    pub(crate) fn kind_name(self) -> &'static str {
        match self {
            Self::Token => "TokenReview",
            Self::SelfSubject => "SelfSubjectReview",
            Self::Access => "SubjectAccessReview",
            Self::SelfAccess => "SelfSubjectAccessReview",
            Self::SelfRules => "SelfSubjectRulesReview",
        }
    }

    /// Name for one, as users type it.
    pub(crate) fn singular(self) -> String {
        self.kind_name().to_lowercase()
    }

    /// Name in paths.
    pub(crate) fn plural(self) -> String {
        format!("{}s", self.singular())
    }

    /// The review at a path.
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|one| one.plural() == plural);
        found.filter(|one| one.group() == group && version == "v1")
    }
}

/// The verbs every resource has.
pub(crate) const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// `group/version`, or the version alone for core.
    pub(crate) fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The plural with its group, as error messages name it.
    pub(crate) fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Whether objects live in namespaces.
    pub(crate) fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// The subresource of that name.
    pub(crate) fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|one| one.name() == name)
    }

    /// Whether `status` is written through its own path only.
    pub(crate) fn has_status(&self) -> bool {
        self.subresources.contains(&Subresource::Status)
    }

    /// The key of an object in the store.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        key(self.kind, namespace, name)
    }

    /// The part that the keys of this resource have in common, in one namespace or in all.
    pub(crate) fn prefix(&self, namespace: &str) -> String {
        prefix(self.kind, namespace)
    }

    /// Stamps `apiVersion` and `kind`.
    pub(crate) fn stamp(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), self.api_version().into());
            map.insert("kind".into(), self.kind_name.into());
        }
    }
}

/// The key of an object in the store. `namespace` is "" for cluster-scoped kinds.
pub(crate) fn key(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", of(kind).plural)
}

/// The common part of the keys of a kind, in one namespace, or in all for "".
pub(crate) fn prefix(kind: Kind, namespace: &str) -> String {
    match namespace {
        "" => format!("{}/", of(kind).plural),
        namespace => format!("{}/{namespace}/", of(kind).plural),
    }
}

/// `group/version`, or the version alone for core.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

/// The resource that stores a kind.
pub(crate) fn of(kind: Kind) -> &'static Resource {
    // The first entry of a kind is its storage form; the table has every kind.
    RESOURCES.iter().find(|one| one.kind == kind).unwrap_or(&RESOURCES[0])
}

/// The resource at a path.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The groups served with their versions, core and preferred versions first.
pub(crate) const GROUPS: &[(&str, &str)] = &[
    ("", "v1"),
    ("certificates.k8s.io", "v1"),
    ("certificates.k8s.io", "v1beta1"),
    ("coordination.k8s.io", "v1"),
    ("discovery.k8s.io", "v1"),
    ("events.k8s.io", "v1"),
    ("node.k8s.io", "v1"),
    ("rbac.authorization.k8s.io", "v1"),
    ("scheduling.k8s.io", "v1"),
];

/// The groups of which only questions are served ([`Review`]).
pub(crate) const REVIEW_GROUPS: &[(&str, &str)] =
    &[("authentication.k8s.io", "v1"), ("authorization.k8s.io", "v1")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_storage_form_and_a_listed_group() {
        for resource in RESOURCES {
            assert_eq!(of(resource.kind).kind, resource.kind);
            assert!(GROUPS.contains(&(resource.group, resource.version)));
        }
    }

    #[test]
    fn keys_of_one_namespace_share_a_prefix_with_no_other() {
        let pods = of(Kind::Pod);
        assert!(pods.key("a", "x").starts_with(&pods.prefix("a")));
        assert!(!pods.key("a-b", "x").starts_with(&pods.prefix("a")));
        assert!(pods.key("a-b", "x").starts_with(&pods.prefix("")));
    }
}
