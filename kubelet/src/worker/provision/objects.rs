//! Fetches the ConfigMaps, Secrets and tokens that pods refer to, and remembers them for the time the
//! API server is away: a container may restart then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::following::Following;
use crate::api_retry;
use crate::objects::{self, Fetched, Kind, Lookup, ObjectRef};
use crate::volumes::{self, Token, TokenRequest, Tokens};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// How long a token that is due waits before it is asked for again.
const TOKEN_RETRY: Duration = Duration::from_secs(10);

/// What is remembered of one pod.
#[derive(Default)]
struct Kept {
    lookups: BTreeMap<ObjectRef, Lookup>,
    tokens: BTreeMap<TokenRequest, Issued>,
}

/// A token as the API server gave it.
#[derive(Clone)]
struct Issued {
    token: String,
    at: Instant,
    /// For how long; a server may give less than was asked for.
    lifetime: Duration,
}

/// Fetches objects for pods.
pub(super) struct Objects {
    client: kube::Client,
    kept: Mutex<BTreeMap<String, Kept>>,
    following: Following,
}

impl Objects {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, kept: Mutex::new(BTreeMap::new()), following: Following::default() }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up whenever what the pod's volumes are filled from has changed.
    pub(super) fn changes(&self, pod: &Pod) -> watch::Receiver<u64> {
        self.following.changes(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// Everything the pod's environment, volumes and pull secrets name.
    ///
    /// What a pod names for the first time is asked for, since it may have been changed just before the
    /// pod was made; after that, what its volumes name is taken from the watch.
    pub(super) async fn fetch(&self, pod: &Pod) -> Fetched {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let wanted = objects::references(pod);
        self.following.follow(&self.client, (&uid, namespace), objects::volume_references(pod));
        let known: BTreeSet<ObjectRef> = {
            let kept = self.kept();
            kept.get(&uid).map(|k| k.lookups.keys().cloned().collect()).unwrap_or_default()
        };
        let known = &known;
        let lookups = join_all(wanted.into_iter().map(|object| async move {
            let newest = self.following.newest(namespace, &object);
            let lookup = match newest.filter(|_| known.contains(&object)) {
                Some(newest) => newest,
                None => {
                    let lookup = self.look_up(namespace, &object).await;
                    self.following.note(namespace, &object, &lookup);
                    lookup
                }
            };
            (object, lookup)
        }));
        let fetched = self.keep(uid, lookups.await);
        self.with_bound(fetched).await
    }

    /// Keeps what was found; what could not be asked for is as it was last known.
    fn keep(&self, uid: String, lookups: Vec<(ObjectRef, Lookup)>) -> Fetched {
        let mut kept = self.kept();
        let kept = kept.entry(uid).or_default();
        let mut fetched = Fetched::default();
        for (object, lookup) in lookups {
            let lookup = match (&lookup, kept.lookups.get(&object)) {
                (Lookup::Failed(_), Some(known)) => known.clone(),
                _ => lookup,
            };
            if !matches!(lookup, Lookup::Failed(_)) {
                kept.lookups.insert(object.clone(), lookup.clone());
            }
            fetched.insert(object, lookup);
        }
        fetched
    }

    /// Adds the volumes that claims are bound to.
    async fn with_bound(&self, mut fetched: Fetched) -> Fetched {
        let names = fetched.bound_names();
        let found = join_all(names.into_iter().map(|name| async move {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let asking = api_retry::settled(|| api.get(&name));
            let volume = match tokio::time::timeout(REQUEST, asking).await {
                Ok(Ok(volume)) => Ok(Arc::new(volume)),
                Ok(Err(error)) => Err(message(&error)),
                Err(_) => Err("the API server did not answer in time".to_owned()),
            };
            (name, volume)
        }));
        for (name, volume) in found.await {
            fetched.insert_bound(name, volume);
        }
        fetched
    }

    async fn look_up(&self, namespace: &str, object: &ObjectRef) -> Lookup {
        let asking = async {
            match object.kind {
                Kind::ConfigMap => {
                    let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                    let found = api_retry::settled(|| api.get_opt(&object.name)).await?;
                    Ok(found.map(|o| Lookup::ConfigMap(Arc::new(o))))
                }
                Kind::Secret => {
                    let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                    let found = api_retry::settled(|| api.get_opt(&object.name)).await?;
                    Ok(found.map(|o| Lookup::Secret(Arc::new(o))))
                }
                Kind::Claim => {
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), namespace);
                    let found = api_retry::settled(|| api.get_opt(&object.name)).await?;
                    Ok(found.map(|o| Lookup::Claim(Arc::new(o))))
                }
                Kind::TrustBundles => {
                    let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
                    let all = ListParams::default();
                    let found = match api_retry::settled(|| api.list(&all)).await {
                        // Not every API server serves them.
                        Err(kube::Error::Api(status)) if status.code == 404 => None,
                        found => Some(found?.into_iter().collect()),
                    };
                    Ok(found.map(|all| Lookup::TrustBundles(Arc::new(all))))
                }
            }
        };
        match tokio::time::timeout(REQUEST, asking).await {
            Ok(Ok(found)) => found.unwrap_or(Lookup::NotFound),
            Ok(Err(error)) => Lookup::Failed(message(&error)),
            Err(_) => Lookup::Failed(format!(
                "failed to sync {} cache: timed out waiting for the condition",
                object.kind.noun()
            )),
        }
    }

    /// The pod's pull secrets, and the names of those that cannot be had.
    pub(super) async fn pull_secrets(&self, pod: &Pod) -> (Vec<Arc<Secret>>, Vec<String>) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let named = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
        let names: Vec<&str> = named.map(|s| s.name.as_str()).filter(|n| !n.is_empty()).collect();
        let lookups = join_all(names.iter().map(|name| async {
            let object = ObjectRef::secret(*name);
            self.look_up(namespace, &object).await
        }));
        let (mut secrets, mut without) = (Vec::new(), Vec::new());
        for (name, lookup) in names.iter().zip(lookups.await) {
            match lookup {
                Lookup::Secret(secret) => secrets.push(secret),
                _ => without.push((*name).to_owned()),
            }
        }
        (secrets, without)
    }

    /// The service account tokens that the pod's volumes want; those at hand are used until they
    /// have to be renewed.
    pub(super) async fn tokens(&self, pod: &Pod) -> Tokens {
        let requests = volumes::token_requests(pod);
        let tokens = join_all(requests.into_iter().map(|request| async move {
            let token = self.token(pod, &request).await;
            (request, token)
        }));
        let tokens: Tokens = tokens.await.into_iter().collect();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(after) = self.next_renewal(uid) {
            self.following.remind(uid, after);
        }
        tokens
    }

    /// When the first of a pod's tokens is to be renewed.
    fn next_renewal(&self, uid: &str) -> Option<Duration> {
        let kept = self.kept();
        let tokens = &kept.get(uid)?.tokens;
        let left = tokens.values().map(|issued| {
            volumes::refresh_after(issued.lifetime).saturating_sub(issued.at.elapsed())
        });
        // One that is due and could not be had is asked for again soon.
        left.min().map(|left| left.max(TOKEN_RETRY))
    }

    async fn token(&self, pod: &Pod, request: &TokenRequest) -> Token {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known = {
            let kept = self.kept();
            kept.get(&uid).and_then(|k| k.tokens.get(request).cloned())
        };
        if let Some(known) = &known
            && !volumes::refresh_is_due(known.lifetime, known.at.elapsed())
        {
            return Token::Ready(known.token.clone());
        }
        let asked = tokio::time::timeout(REQUEST, self.ask_token(pod, request)).await;
        match (asked, known) {
            (Ok(Ok(issued)), _) => {
                let mut kept = self.kept();
                let kept = kept.entry(uid).or_default();
                kept.tokens.insert(request.clone(), issued.clone());
                Token::Ready(issued.token)
            }
            // One that still lives is better than none.
            (_, Some(known)) if known.at.elapsed() < known.lifetime => Token::Ready(known.token),
            (Ok(Err(message)), _) => Token::Failed(message),
            (Err(_), _) => Token::Failed("the API server did not answer in time".to_owned()),
        }
    }

    async fn ask_token(&self, pod: &Pod, request: &TokenRequest) -> Result<Issued, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|a| !a.is_empty()).unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": request.audience.iter().collect::<Vec<_>>(),
                "expirationSeconds": request.expiration_seconds,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod",
                    "name": pod.metadata.name, "uid": pod.metadata.uid,
                },
            },
        });
        let parameters = PostParams::default();
        let asking = || api.create_subresource::<_, Value>("token", account, &parameters, &body);
        let reply = api_retry::settled_from(api_retry::is_unknown_pod, asking).await;
        let reply = reply.map_err(|error| message(&error))?;
        issued(&reply, request.lifetime()).ok_or_else(|| "the reply has no token".to_owned())
    }

    /// Forgets what was kept for a pod.
    pub(super) fn forget(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.kept().remove(uid);
        self.following.forget(uid);
    }
}

/// The token of a reply, with the lifetime that the server gave it where it tells.
fn issued(reply: &Value, asked: Duration) -> Option<Issued> {
    let token = reply["status"]["token"].as_str().filter(|t| !t.is_empty())?;
    let given = reply["spec"]["expirationSeconds"].as_u64().filter(|seconds| *seconds > 0);
    let lifetime = given.map_or(asked, Duration::from_secs);
    Some(Issued { token: token.to_owned(), at: Instant::now(), lifetime })
}

/// What the API server said, without the client's wrapping.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_as_long_as_the_server_says() {
        let asked = Duration::from_secs(3600);
        let reply = |spec: Value| json!({"spec": spec, "status": {"token": "t"}});
        let lifetime = |spec| issued(&reply(spec), asked).unwrap().lifetime.as_secs();
        assert_eq!(lifetime(json!({"expirationSeconds": 600})), 600, "the server's limit");
        assert_eq!(lifetime(json!({"expirationSeconds": 7200})), 7200);
        assert_eq!(lifetime(json!({})), 3600);
        assert_eq!(lifetime(json!({"expirationSeconds": -1})), 3600);
        assert!(issued(&json!({"status": {"token": ""}}), asked).is_none());
    }
}
