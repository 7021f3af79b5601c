//! Runtime classes (`node.k8s.io/v1`): which of the runtime's handlers a pod asks for.
//!
//! A handler is a name and no more: whichever it is, `berth-oci` runs the pod. The one without a name
//! is always there, others are those of the node's configuration.
//!
//! Differs: upstream watches all classes on every node; here one is asked for when a sandbox is to be
//! made, so that a node without such pods asks for none. While the API server is away, the class is as
//! it was last seen, as it is upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// Why a pod's handler is not to be had for now. The texts are upstream's and containerd's, since users
/// search for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The API server has no such class.
    #[error("runtimeclass.node.k8s.io {0:?} not found")]
    NotFound(String),
    /// It could not be asked, or refused.
    #[error("failed to lookup RuntimeClass {class}: {message}")]
    NotAsked {
        /// The class.
        class: String,
        /// What the API server or the network said.
        message: String,
    },
    /// The class is for a runtime that this node has not.
    #[error("failed to get sandbox runtime: no runtime for {0:?} is configured")]
    NotConfigured(String),
}

/// Finds the handlers of pods.
pub struct Classes {
    client: kube::Client,
    /// Those of the node's configuration.
    handlers: BTreeSet<String>,
    /// The handlers of classes as they were last seen.
    seen: Mutex<BTreeMap<String, String>>,
}

impl Classes {
    /// Finds handlers among these.
    pub fn new(client: kube::Client, handlers: impl IntoIterator<Item = String>) -> Self {
        let handlers = handlers.into_iter().collect();
        Self { client, handlers, seen: Mutex::default() }
    }

    /// The name of the handler that a pod is to run with; empty where it names no class. Async; asks
    /// the API server, for at most ten seconds.
    ///
    /// # Errors
    /// When there is no such class, it cannot be asked for, or its handler is not configured.
    pub async fn handler(&self, pod: &Pod) -> Result<String, Error> {
        let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
        let Some(class) = class.filter(|class| !class.is_empty()) else {
            return Ok(String::new());
        };
        let handler = self.look_up(class).await?;
        match handler.is_empty() || self.handlers.contains(&handler) {
            true => Ok(handler),
            false => Err(Error::NotConfigured(handler)),
        }
    }

    async fn look_up(&self, class: &str) -> Result<String, Error> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        let message = match tokio::time::timeout(REQUEST, api.get_opt(class)).await {
            Ok(Ok(Some(found))) => {
                self.seen().insert(class.to_owned(), found.handler.clone());
                return Ok(found.handler);
            }
            Ok(Ok(None)) => {
                self.seen().remove(class);
                return Err(Error::NotFound(class.to_owned()));
            }
            Ok(Err(kube::Error::Api(status))) => status.message.clone(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        let seen = self.seen().get(class).cloned();
        seen.ok_or_else(|| Error::NotAsked { class: class.to_owned(), message })
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use serde_json::{Value, json};

    use super::*;

    /// What the API server answers, and what it was asked.
    #[derive(Default)]
    struct Cluster {
        classes: BTreeMap<String, Value>,
        is_away: bool,
        asked: Vec<String>,
    }

    type Shared = Arc<Mutex<Cluster>>;

    fn answer(cluster: &Mutex<Cluster>, path: &str) -> Response {
        let mut cluster = cluster.lock().unwrap();
        cluster.asked.push(path.to_owned());
        let class = path.rsplit('/').next().and_then(|name| cluster.classes.get(name));
        match (cluster.is_away, class) {
            (true, _) => {
                let status = json!({"message": "on fire", "code": 500, "status": "Failure"});
                (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(status)).into_response()
            }
            (false, Some(class)) => axum::Json(class.clone()).into_response(),
            (false, None) => {
                let status = json!({"reason": "NotFound", "code": 404, "status": "Failure"});
                (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
            }
        }
    }

    fn cluster(handlers: &[&str]) -> (Shared, Classes) {
        let cluster = Shared::default();
        let asked = Arc::clone(&cluster);
        let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let response = answer(&asked, request.uri().path());
            async move { response }
        });
        let client = kube::Client::new(router, "default");
        (cluster, Classes::new(client, handlers.iter().map(|&name| name.to_owned())))
    }

    fn class(name: &str, handler: &str) -> (String, Value) {
        (name.to_owned(), json!({"metadata": {"name": name}, "handler": handler}))
    }

    fn pod(class: Option<&str>) -> Pod {
        let spec = json!({"runtimeClassName": class, "containers": []});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[tokio::test]
    async fn a_pod_without_a_class_asks_nobody() {
        let (cluster, classes) = cluster(&[]);
        for name in [None, Some("")] {
            assert_eq!(classes.handler(&pod(name)).await, Ok(String::new()));
        }
        assert_eq!(cluster.lock().unwrap().asked, [""; 0]);
    }

    #[tokio::test]
    async fn a_class_has_to_be_there_and_its_handler_configured() {
        let (cluster, classes) = cluster(&["runc", "fast"]);
        let told = async |name: &str| {
            let handler = classes.handler(&pod(Some(name))).await;
            handler.map_err(|error| error.to_string())
        };
        let missing = "runtimeclass.node.k8s.io \"usual\" not found";
        assert_eq!(told("usual").await, Err(missing.to_owned()));
        let all = [class("usual", "runc"), class("plain", ""), class("safe", "kata")];
        cluster.lock().unwrap().classes.extend(all);
        assert_eq!(told("usual").await, Ok("runc".to_owned()));
        assert_eq!(told("plain").await, Ok(String::new()), "the one without a name is there");
        let foreign = "failed to get sandbox runtime: no runtime for \"kata\" is configured";
        assert_eq!(told("safe").await, Err(foreign.to_owned()));
        cluster.lock().unwrap().classes.extend([class("usual", "fast")]);
        assert_eq!(told("usual").await, Ok("fast".to_owned()), "asked for anew");
        let path = "/apis/node.k8s.io/v1/runtimeclasses/usual";
        assert_eq!(cluster.lock().unwrap().asked[0], path);
    }

    #[tokio::test]
    async fn a_class_is_as_it_was_last_seen_while_the_api_server_is_away() {
        let (cluster, classes) = cluster(&["runc"]);
        let usual = pod(Some("usual"));
        cluster.lock().unwrap().is_away = true;
        let error = classes.handler(&usual).await.unwrap_err().to_string();
        assert_eq!(error, "failed to lookup RuntimeClass usual: on fire");
        let set = |is_away, classes: &[(String, Value)]| {
            let classes = classes.iter().cloned().collect();
            *cluster.lock().unwrap() = Cluster { classes, is_away, asked: Vec::new() };
        };
        set(false, &[class("usual", "runc")]);
        classes.handler(&usual).await.unwrap();
        set(true, &[]);
        assert_eq!(classes.handler(&usual).await, Ok("runc".to_owned()));
        set(false, &[]);
        classes.handler(&usual).await.unwrap_err();
        set(true, &[]);
        classes.handler(&usual).await.expect_err("one that was deleted is not remembered");
    }
}
