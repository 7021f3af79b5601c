//! Namespaces: the four that always exist, what each active one contains, and emptying those
//! that are being deleted.

use std::sync::Arc;

use serde_json::{Value, json};

use super::put;
use crate::api::Api;
use crate::failure::Failure;
use crate::object::ObjectExt;
use crate::resource::{Kind, RESOURCES, key, of, prefix};
use crate::store::Tx;
use crate::verbs::delete::{self, Options};

const ALWAYS: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Makes the namespaces that always exist.
///
/// # Errors
/// When the store fails.
pub(super) async fn bootstrap(api: &Api) -> Result<(), Failure> {
    let ca_pem = api.settings.ca_pem.clone();
    api.store
        .write(move |tx| {
            for name in ALWAYS {
                if tx.get(&key(Kind::Namespace, "", name)).is_none() {
                    put(tx, Kind::Namespace, json!({"metadata": {"name": name}}));
                }
                fill(tx, name, &ca_pem);
            }
            Ok(())
        })
        .await
}

/// Fills active namespaces, empties terminating ones.
///
/// # Errors
/// When the store fails.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let settings = Arc::clone(&api.settings);
    let namespaces = api.store.list(&prefix(Kind::Namespace, "")).items;
    for (_, namespace) in namespaces {
        let name = namespace.name().to_owned();
        let terminating = namespace.is_terminating();
        if !terminating && is_filled(api, &name) {
            continue;
        }
        let settings = Arc::clone(&settings);
        api.store
            .write(move |tx| {
                match tx.get(&key(Kind::Namespace, "", &name)) {
                    Some(now) if now.is_terminating() => empty(tx, &now)?,
                    Some(_) => fill(tx, &name, &settings.ca_pem),
                    None => {}
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}

fn is_filled(api: &Api, namespace: &str) -> bool {
    let ca = api.store.get(&key(Kind::ConfigMap, namespace, ROOT_CA));
    api.store.get(&key(Kind::ServiceAccount, namespace, "default")).is_some()
        && ca.is_some_and(|map| map.text("/data/ca.crt") == api.settings.ca_pem)
}

const ROOT_CA: &str = "kube-root-ca.crt";

fn fill(tx: &mut Tx<'_>, namespace: &str, ca_pem: &str) {
    if tx.get(&key(Kind::ServiceAccount, namespace, "default")).is_none() {
        let account = json!({"metadata": {"name": "default", "namespace": namespace}});
        put(tx, Kind::ServiceAccount, account);
    }
    put(
        tx,
        Kind::ConfigMap,
        json!({"metadata": {"name": ROOT_CA, "namespace": namespace}, "data": {"ca.crt": ca_pem}}),
    );
}

/// Deletes what a namespace contains; once nothing is left, the namespace.
fn empty(tx: &mut Tx<'_>, namespace: &Value) -> Result<(), Failure> {
    let name = namespace.name();
    let mut left = 0;
    for resource in RESOURCES.iter().filter(|r| r.is_namespaced()) {
        for (_, object) in tx.list(&resource.prefix(name)) {
            let outcome = delete::remove(tx, (resource, &object), &Options::default())?;
            left += usize::from(matches!(outcome, delete::Outcome::Marked(_)));
        }
    }
    if left > 0 {
        return Ok(());
    }
    let resource = of(Kind::Namespace);
    let mut done = namespace.clone();
    done.put("/spec/finalizers", json!([]));
    match done.list("/metadata/finalizers").is_empty() {
        true => {
            tx.remove(&resource.key("", name));
        }
        false if done != *namespace => {
            tx.put(&resource.key("", name), done);
        }
        false => {}
    }
    Ok(())
}
