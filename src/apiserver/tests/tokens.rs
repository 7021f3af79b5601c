//! Service account tokens and what they may do, over TLS as clients see it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use harness::{NODE, Running, config_map, pod, register_node, serve};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

async fn ask(
    client: &Client,
    account: &str,
    spec: serde_json::Value,
) -> kube::Result<TokenRequest> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request = serde_json::from_value(json!({"spec": spec})).unwrap();
    accounts.create_token_request(account, &PostParams::default(), &request).await
}

fn token_of(request: TokenRequest) -> String {
    request.status.unwrap().token.unwrap()
}

/// A client that shows a token and nothing else.
async fn with_token(running: &Running, token: &str) -> Client {
    let mut file = Kubeconfig::read_from(&running.server.credentials.admin_kubeconfig).unwrap();
    file.auth_infos[0].auth_info = Some(serde_json::from_value(json!({"token": token})).unwrap());
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn review(client: &Client, token: &str, audiences: &[&str]) -> TokenReview {
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let asked = json!({"metadata": {}, "spec": {"token": token, "audiences": audiences}});
    let asked: TokenReview = serde_json::from_value(asked).unwrap();
    reviews.create(&PostParams::default(), &asked).await.unwrap()
}

#[tokio::test]
async fn a_token_ends_with_the_pod_it_is_bound_to() {
    let running = serve().await;
    let (admin, agent) = (running.admin().await, running.agent().await);
    register_node(&agent, 1).await;
    let pods: Api<Pod> = Api::default_namespaced(admin.clone());
    let mut wanted = pod("web");
    wanted.spec.as_mut().unwrap().node_name = Some(NODE.into());
    let made = pods.create(&PostParams::default(), &wanted).await.unwrap();
    let volumes = made.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    assert!(volumes[0].name.starts_with("kube-api-access-"));

    let unbound = ask(&agent, "default", json!({"audiences": []})).await.unwrap_err();
    assert_eq!(code(unbound), 403, "a node asks for its pods only");
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": made.metadata.uid});
    let other = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "another"});
    let spec = |bound| json!({"audiences": [], "boundObjectRef": bound, "expirationSeconds": 3607});
    assert_eq!(code(ask(&agent, "default", spec(other)).await.unwrap_err()), 409);
    let token = token_of(ask(&agent, "default", spec(bound)).await.unwrap());

    let status = review(&agent, &token, &[]).await.status.unwrap();
    assert_eq!(status.authenticated, Some(true));
    let user = status.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:default"));
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["web"]);
    assert_eq!(extra["authentication.kubernetes.io/node-name"], [NODE]);
    let elsewhere = review(&agent, &token, &["vault"]).await.status.unwrap();
    assert_eq!(elsewhere.authenticated, Some(false));

    pods.delete("web", &DeleteParams::default().grace_period(0)).await.unwrap();
    let status = review(&agent, &token, &[]).await.status.unwrap();
    assert_eq!(status.authenticated, Some(false), "the pod is gone");
    running.stop().await;
}

#[tokio::test]
async fn a_token_is_for_its_audience_and_lives_as_long_as_was_asked_for() {
    let running = serve().await;
    let admin = running.admin().await;
    for (seconds, expected) in [(599, 422), ((1_i64 << 32) + 1, 422)] {
        let refused =
            ask(&admin, "default", json!({"audiences": [], "expirationSeconds": seconds}));
        assert_eq!(code(refused.await.unwrap_err()), expected);
    }
    assert_eq!(code(ask(&admin, "nobody", json!({"audiences": []})).await.unwrap_err()), 404);
    let token = token_of(ask(&admin, "default", json!({"audiences": ["vault"]})).await.unwrap());
    let status = review(&admin, &token, &["vault", "other"]).await.status.unwrap();
    assert_eq!((status.authenticated, status.audiences), (Some(true), Some(vec!["vault".into()])));
    let client = with_token(&running, &token).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    assert_eq!(code(maps.list(&ListParams::default()).await.unwrap_err()), 401);
    running.stop().await;
}

#[tokio::test]
async fn a_service_account_may_what_its_roles_say() {
    let running = serve().await;
    let admin = running.admin().await;
    let token = token_of(ask(&admin, "default", json!({"audiences": []})).await.unwrap());
    let client = with_token(&running, &token).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let error = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(error.to_string().contains("system:serviceaccount:default:default"), "{error}");
    assert_eq!(code(error), 403);
    assert!(client.apiserver_version().await.is_ok());
    assert!(client.list_core_api_resources("v1").await.is_ok(), "discovery is for all");

    running
        .kubectl_ok(&["create", "role", "reader", "--verb=get,list", "--resource=configmaps"], "")
        .await;
    let binding =
        ["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:default"];
    running.kubectl_ok(&binding, "").await;
    assert!(maps.list(&ListParams::default()).await.is_ok());
    let create = maps.create(&PostParams::default(), &config_map("a", "b")).await;
    assert_eq!(code(create.unwrap_err()), 403);
    assert_eq!(code(secrets.list(&ListParams::default()).await.unwrap_err()), 403);
    let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    assert_eq!(code(elsewhere.list(&ListParams::default()).await.unwrap_err()), 403);

    let can = running.kubectl_ok(&["auth", "can-i", "list", "configmaps"], "").await;
    assert_eq!(can.trim(), "yes");
    let made = running.kubectl_ok(&["create", "token", "default"], "").await;
    assert_eq!(made.trim().split('.').count(), 3);
    let grant = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    running
        .kubectl_ok(&["create", "role", "binder", "--verb=create", "--resource=rolebindings"], "")
        .await;
    let bind =
        ["create", "rolebinding", "binder", "--role=binder", "--serviceaccount=default:default"];
    running.kubectl_ok(&bind, "").await;
    use k8s_openapi::api::rbac::v1::RoleBinding;
    let bindings: Api<RoleBinding> = Api::default_namespaced(client);
    let mut own = grant.clone();
    own["kind"] = "RoleBinding".into();
    let own: RoleBinding = serde_json::from_value(own).unwrap();
    let refused = bindings.create(&PostParams::default(), &own).await.unwrap_err();
    assert!(refused.to_string().contains("not currently held"), "{refused}");
    running.stop().await;
}
