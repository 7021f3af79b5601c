//! From a path to what it names. Pure; knows the resource table, nothing of verbs.

use super::query::decode;
use crate::resource::{self, Kind, Resource, Review, Subresource};

/// What a path names.
#[derive(Debug)]
pub(crate) enum Route {
    /// `/healthz`, `/readyz`, `/livez` and the checks below them.
    Health,
    /// `/version`.
    Version,
    /// `/`.
    Index,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/<group>`.
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`: group and version.
    Resources(String, String),
    /// `/openapi/v3`.
    OpenApiIndex,
    /// `/openapi/v3/<path>`.
    OpenApi(String),
    /// A question that is not stored.
    Review(Review),
    /// `/.well-known/openid-configuration`.
    Issuer,
    /// `/openid/v1/jwks`.
    IssuerKeys,
    /// A collection, an object or something below it.
    Object(Target),
    /// Nothing that is served.
    Nothing,
}

/// A collection, an object or something below it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Which resource.
    pub resource: &'static Resource,
    /// The namespace, or "" for cluster-scoped resources and lists over all namespaces.
    pub namespace: String,
    /// The name, or "" for collections.
    pub name: String,
    /// What below the object.
    pub subresource: Option<Subresource>,
}

impl Target {
    /// The object's key in the store.
    pub(crate) fn key(&self) -> String {
        self.resource.key(&self.namespace, &self.name)
    }
}

/// Finds what a path names.
pub(crate) fn route(path: &str) -> Route {
    let segments: Vec<String> =
        path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Route::Index,
        ["healthz" | "readyz" | "livez", ..] => Route::Health,
        ["version"] => Route::Version,
        ["openapi", "v3"] => Route::OpenApiIndex,
        ["openapi", "v3", rest @ ..] => Route::OpenApi(rest.join("/")),
        ["api"] => Route::CoreVersions,
        ["api", version] => Route::Resources(String::new(), (*version).to_owned()),
        ["api", version, rest @ ..] => object("", version, rest),
        [".well-known", "openid-configuration"] => Route::Issuer,
        ["openid", "v1", "jwks"] => Route::IssuerKeys,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).to_owned()),
        ["apis", group, version] => Route::Resources((*group).to_owned(), (*version).to_owned()),
        ["apis", group, version, rest @ ..] => match rest {
            [plural] => match Review::find(group, version, plural) {
                Some(review) => Route::Review(review),
                None => object(group, version, rest),
            },
            rest => object(group, version, rest),
        },
        _ => Route::Nothing,
    }
}

fn object(group: &str, version: &str, rest: &[&str]) -> Route {
    // A namespace's own subresources look like a namespaced collection; theirs are few.
    let (namespace, rest) = match rest {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let Some((plural, rest)) = rest.split_first() else { return Route::Nothing };
    let Some(resource) = resource::find(group, version, plural) else { return Route::Nothing };
    if !resource.is_namespaced() && !namespace.is_empty() {
        return Route::Nothing;
    }
    let target = |name: &str, subresource| {
        Route::Object(Target {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource,
        })
    };
    match rest {
        [] => target("", None),
        [_] | [_, _] if resource.is_namespaced() && namespace.is_empty() => Route::Nothing,
        [name] => target(name, None),
        [name, sub, rest @ ..] => match resource.subresource(sub) {
            // Only what is passed on to a node has paths of its own.
            Some(sub) if rest.is_empty() || sub == Subresource::Proxy => target(name, Some(sub)),
            _ => Route::Nothing,
        },
    }
}

impl Target {
    /// The object itself, without what is below it.
    pub(crate) fn of(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource::of(kind),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str) -> Option<(String, String, String, Option<&'static str>)> {
        match route(path) {
            Route::Object(t) => Some((
                t.resource.qualified(),
                t.namespace,
                t.name,
                t.subresource.map(Subresource::name),
            )),
            _ => None,
        }
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        let case = |r: &str, ns: &str, n: &str, s| Some((r.into(), ns.into(), n.into(), s));
        assert_eq!(named("/api/v1/pods"), case("pods", "", "", None));
        assert_eq!(named("/api/v1/namespaces/a/pods/x/log"), case("pods", "a", "x", Some("log")));
        assert_eq!(named("/api/v1/namespaces/a"), case("namespaces", "", "a", None));
        assert_eq!(
            named("/api/v1/namespaces/a/finalize"),
            case("namespaces", "", "a", Some("finalize"))
        );
        assert_eq!(named("/api/v1/nodes/n/status"), case("nodes", "", "n", Some("status")));
        assert_eq!(
            named("/apis/events.k8s.io/v1/namespaces/a/events"),
            case("events.events.k8s.io", "a", "", None)
        );
    }

    #[test]
    fn what_is_below_a_nodes_proxy_is_the_nodes_business() {
        let proxy = Some(("nodes".into(), String::new(), "n".into(), Some("proxy")));
        for path in ["", "/", "/logs/a", "/status"] {
            assert_eq!(named(&format!("/api/v1/nodes/n/proxy{path}")), proxy, "{path}");
        }
        assert_eq!(named("/api/v1/nodes/n/status/x"), None);
    }

    #[test]
    fn what_is_not_served_names_nothing() {
        for path in [
            "/apis/apps/v1/deployments",
            "/api/v1/pods/x",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/pods/x/exec/y",
            "/api/v1/namespaces/a/pods/x/log/y",
            "/foo",
            "/api/v2/pods",
        ] {
            assert!(matches!(route(path), Route::Nothing), "{path}");
        }
    }
}
