//! The public description of the cluster, `kube-public/cluster-info`, signed by every bootstrap token
//! that may (kube-controller-manager's bootstrapsigner), and the end of tokens whose time is over
//! (its tokencleaner).

use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{RETRY, Trigger, put};
use crate::api::Api;
use crate::failure::Failure;
use crate::resource::{Kind, prefix};
use crate::tokens::bootstrap::{NAMESPACE, Token};

/// How often tokens are looked at though nothing changed: their time goes by.
const PERIOD: Duration = Duration::from_secs(20);

/// The kubeconfig that whoever wants to join begins with: no user is in it.
fn kubeconfig(api: &Api) -> String {
    let cluster = json!({
        "server": format!("https://{}", api.settings.advertise),
        "certificate-authority-data": STANDARD.encode(&api.settings.ca_pem),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": cluster}],
        "contexts": null,
        "current-context": "",
        "users": null,
    });
    format!("{config:#}\n")
}

/// Keeps description and signatures until the server stops.
pub(super) async fn keep(api: Arc<Api>) {
    let mut trigger = Trigger::new(&api.store, &[Kind::Secret, Kind::ConfigMap], api.stop.clone());
    loop {
        let wait = match reconcile(&api).await {
            Ok(()) => PERIOD,
            Err(failure) => {
                tracing::warn!(%failure, "describe the cluster");
                RETRY
            }
        };
        tokio::select! {
            fired = trigger.fired() => if !fired { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn reconcile(api: &Api) -> Result<(), Failure> {
    let kubeconfig = kubeconfig(api);
    api.store
        .write(move |tx| {
            let now = Timestamp::now();
            let mut data = Map::from_iter([("kubeconfig".to_owned(), Value::from(&*kubeconfig))]);
            for (key, secret) in tx.list(&prefix(Kind::Secret, NAMESPACE)) {
                let Some(token) = Token::of_secret(&secret) else { continue };
                if token.is_over(now) {
                    tx.remove(&key);
                } else if let Some(signature) = token.signature(&kubeconfig, now) {
                    data.insert(format!("jws-kubeconfig-{}", token.id), signature.into());
                }
            }
            let metadata = json!({"name": "cluster-info", "namespace": "kube-public"});
            put(tx, Kind::ConfigMap, json!({"metadata": metadata, "data": data}));
            Ok(())
        })
        .await
}
