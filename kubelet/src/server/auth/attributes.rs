//! What right a request needs: a verb on a subresource of `nodes` (upstream's node authorizer
//! attributes, KEP-2862 for the fine-grained ones). Pure.

use axum::http::Method;

/// A right: `verb` on `nodes/<subresource>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// The verb.
    pub verb: &'static str,
    /// The subresource.
    pub subresource: &'static str,
}

/// What reading anything else needs.
pub(super) const PROXY: Attributes = Attributes { verb: "get", subresource: "proxy" };

/// The rights of which one is enough, the narrowest first.
///
/// Streams need `create` whatever the method: a WebSocket begins with GET, and who may read is not to
/// run commands by it.
pub(in crate::server) fn of(method: &Method, path: &str) -> Vec<Attributes> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let first = segments.next().unwrap_or_default();
    let streams = matches!(first, "exec" | "attach" | "portForward" | "run" | "cri");
    let verb = match *method {
        _ if streams => "create",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let narrow = match first {
        "stats" => return vec![Attributes { verb, subresource: "stats" }],
        "metrics" => return vec![Attributes { verb, subresource: "metrics" }],
        "logs" => return vec![Attributes { verb, subresource: "log" }],
        "statusz" => return vec![Attributes { verb, subresource: "statusz" }],
        "flagz" => return vec![Attributes { verb, subresource: "configz" }],
        "checkpoint" => return vec![Attributes { verb, subresource: "checkpoint" }],
        "pods" | "runningpods" => Some("pods"),
        "healthz" => Some("healthz"),
        "configz" => Some("configz"),
        _ => None,
    };
    let narrow = narrow.into_iter().map(|subresource| Attributes { verb, subresource });
    narrow.chain([Attributes { verb, subresource: "proxy" }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(method: Method, path: &str) -> Vec<String> {
        of(&method, path).iter().map(|a| format!("{} {}", a.verb, a.subresource)).collect()
    }

    #[test]
    fn every_path_needs_the_right_that_upstream_gives_it() {
        for (method, path, expected) in [
            (Method::GET, "/stats/summary", &["get stats"][..]),
            (Method::GET, "/metrics", &["get metrics"]),
            (Method::GET, "/metrics/cadvisor", &["get metrics"]),
            (Method::GET, "/logs/messages", &["get log"]),
            (Method::GET, "/pods", &["get pods", "get proxy"]),
            (Method::GET, "/runningpods/", &["get pods", "get proxy"]),
            (Method::GET, "/healthz/ping", &["get healthz", "get proxy"]),
            (Method::GET, "/configz", &["get configz", "get proxy"]),
            (Method::GET, "/statusz", &["get statusz"]),
            (Method::GET, "/flagz", &["get configz"]),
            (Method::GET, "/containerLogs/a/b/c", &["get proxy"]),
            (Method::GET, "/exec/a/b/c", &["create proxy"]),
            (Method::POST, "/exec/a/b/c", &["create proxy"]),
            (Method::GET, "/attach/a/b/c", &["create proxy"]),
            (Method::GET, "/portForward/a/b", &["create proxy"]),
            (Method::POST, "/run/a/b/c", &["create proxy"]),
            (Method::GET, "//exec/a/b/c", &["create proxy"]),
            (Method::POST, "/checkpoint/a/b/c", &["create checkpoint"]),
            (Method::PUT, "/debug/flags/v", &["update proxy"]),
            (Method::DELETE, "/pods", &["delete pods", "delete proxy"]),
            (Method::GET, "/metricsx", &["get proxy"]),
            (Method::GET, "/", &["get proxy"]),
        ] {
            assert_eq!(rights(method, path), expected, "{path}");
        }
    }
}
