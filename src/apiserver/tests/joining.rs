//! How a machine becomes a node: the public description of the cluster, bootstrap tokens, and
//! certificate signing requests from their making to their answer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use harness::{Running, client, eventually, serve};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

async fn make_token(running: &Running) {
    let secrets: Api<Secret> = Api::namespaced(running.admin().await, "kube-system");
    let secret = serde_json::from_value(json!({
        "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    }));
    secrets.create(&PostParams::default(), &secret.unwrap()).await.unwrap();
}

/// A client that shows a token, or nothing.
fn stranger(running: &Running, token: Option<&str>) -> Client {
    let mut config = kube::Config::new(running.server.url.parse().unwrap());
    let der = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(
        running.server.credentials.ca_pem.as_bytes(),
    );
    config.root_cert = Some(vec![der.unwrap().to_vec()]);
    config.auth_info.token = token.map(|token| token.to_owned().into());
    Client::try_from(config).unwrap()
}

/// A request for a subject and names, and its key.
fn request(
    (name, signer, usage): (&str, &str, &str),
    (subject, names): (&str, &[&str]),
) -> (CertificateSigningRequest, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, subject);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let mut object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"request": "", "signerName": signer, "usages": ["digital signature", usage],
            "username": "system:admin", "groups": ["system:masters"]},
    }))
    .unwrap();
    object.spec.request = ByteString(pem.into_bytes());
    (object, key)
}

fn issued(request: &CertificateSigningRequest) -> Option<String> {
    let bytes = &request.status.as_ref()?.certificate.as_ref()?.0;
    Some(String::from_utf8(bytes.clone()).unwrap())
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn strangers_read_the_description_of_the_cluster_and_no_other_object() {
    let running = serve().await;
    make_token(&running).await;
    let nobody = stranger(&running, None);
    let maps: Api<ConfigMap> = Api::namespaced(nobody.clone(), "kube-public");
    eventually("the description is signed", || async {
        let info = maps.get("cluster-info").await.unwrap();
        info.data.unwrap().contains_key("jws-kubeconfig-abcdef")
    })
    .await;
    let info = maps.get("cluster-info").await.unwrap().data.unwrap();
    assert!(info["kubeconfig"].contains(&running.server.url), "{}", info["kubeconfig"]);
    for path in [
        "/api/v1/namespaces/kube-public/configmaps",
        "/api/v1/namespaces/kube-public/configmaps/kube-root-ca.crt",
        "/api/v1/namespaces/default/configmaps/cluster-info",
        "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    ] {
        let asked = nobody.request_text(get(path)).await.unwrap_err();
        assert_eq!(code(asked), 401, "{path}");
    }
    let written = maps.delete("cluster-info", &Default::default()).await.unwrap_err();
    assert_eq!(code(written), 401);

    // Without the role that gives it, it is not public.
    let roles: Api<k8s_openapi::api::rbac::v1::RoleBinding> =
        Api::namespaced(running.admin().await, "kube-public");
    roles.delete("kubeadm:bootstrap-signer-clusterinfo", &Default::default()).await.unwrap();
    assert_eq!(code(maps.get("cluster-info").await.unwrap_err()), 403);
    running.stop().await;
}

fn get(path: &str) -> hyper::Request<Vec<u8>> {
    hyper::Request::get(path).body(Vec::new()).unwrap()
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node_and_nothing_more() {
    let running = serve().await;
    make_token(&running).await;
    let wrong = stranger(&running, Some("abcdef.0123456789abcdeg"));
    let requests: Api<CertificateSigningRequest> = Api::all(wrong);
    assert_eq!(code(requests.list(&ListParams::default()).await.unwrap_err()), 401);

    let bootstrapper = stranger(&running, Some("abcdef.0123456789abcdef"));
    let pods: Api<Pod> = Api::namespaced(bootstrapper.clone(), "default");
    assert_eq!(code(pods.list(&ListParams::default()).await.unwrap_err()), 403);
    let requests: Api<CertificateSigningRequest> = Api::all(bootstrapper);
    let (object, key) = request(("one", CLIENT_SIGNER, "client auth"), ("system:node:n9", &[]));
    let made = requests.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(made.spec.username.as_deref(), Some("system:bootstrap:abcdef"));
    eventually("the certificate is issued", || async {
        issued(&requests.get("one").await.unwrap()).is_some()
    })
    .await;
    let pem = issued(&requests.get("one").await.unwrap()).unwrap();

    // Whoever has it is that node.
    let mut config = kube::Config::new(running.server.url.parse().unwrap());
    config.root_cert = stranger_roots(&running);
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    config.auth_info.client_certificate_data = Some(STANDARD.encode(&pem));
    config.auth_info.client_key_data = Some(STANDARD.encode(key.serialize_pem()).into());
    let node = Client::try_from(config).unwrap();
    let nodes: Api<Node> = Api::all(node.clone());
    let object = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    nodes.create(&PostParams::default(), &object("n9")).await.unwrap();
    assert_eq!(code(nodes.create(&PostParams::default(), &object("n8")).await.unwrap_err()), 403);

    // It gets its next certificate without a person, and no other node's.
    let requests: Api<CertificateSigningRequest> = Api::all(node);
    for (name, subject) in [("own", "system:node:n9"), ("other", "system:node:n1")] {
        let (object, _) = request((name, CLIENT_SIGNER, "client auth"), (subject, &[]));
        requests.create(&PostParams::default(), &object).await.unwrap();
    }
    eventually("its own is issued", || async {
        issued(&requests.get("own").await.unwrap()).is_some()
    })
    .await;
    let other = requests.get("other").await.unwrap();
    assert!(other.status.unwrap_or_default().conditions.is_none(), "it waits for a person");
    // Nor does it approve its own requests.
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let patch = Patch::Merge(&approved);
    let refused = requests.patch_approval("other", &PatchParams::default(), &patch).await;
    assert_eq!(code(refused.unwrap_err()), 403);
    running.stop().await;
}

fn stranger_roots(running: &Running) -> Option<Vec<Vec<u8>>> {
    use rustls::pki_types::pem::PemObject;
    let pem = running.server.credentials.ca_pem.as_bytes();
    Some(vec![rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap().to_vec()])
}

#[tokio::test]
async fn a_person_approves_or_denies_what_serves() {
    let running = serve().await;
    let agent = client(&running.server.credentials.agent_kubeconfig).await;
    let requests: Api<CertificateSigningRequest> = Api::all(agent);
    for name in ["good", "bad"] {
        let kind = (name, SERVING_SIGNER, "server auth");
        let (object, _) = request(kind, ("system:node:node-1", &["node-1", "192.0.2.1"]));
        requests.create(&PostParams::default(), &object).await.unwrap();
    }
    // Approved, but by the signer's rules nothing that it signs.
    let (object, _) = request(("none", SERVING_SIGNER, "server auth"), ("system:node:node-1", &[]));
    requests.create(&PostParams::default(), &object).await.unwrap();
    let listed = running.kubectl_ok(&["get", "csr"], "").await;
    assert!(listed.contains("system:node:node-1") && listed.contains("Pending"), "{listed}");
    running.kubectl_ok(&["certificate", "approve", "good", "none"], "").await;
    running.kubectl_ok(&["certificate", "deny", "bad"], "").await;
    eventually("the good one is issued", || async {
        issued(&requests.get("good").await.unwrap()).is_some()
    })
    .await;
    eventually("the one without names has failed", || async {
        let status = requests.get("none").await.unwrap().status.unwrap();
        status.conditions.unwrap().iter().any(|one| one.type_ == "Failed")
    })
    .await;
    let listed = running.kubectl_ok(&["get", "csr"], "").await;
    let state = |name: &str| {
        let line = listed.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().next_back().unwrap().to_owned()
    };
    assert_eq!(
        (state("good"), state("bad"), state("none")),
        ("Approved,Issued".into(), "Denied".into(), "Approved,Failed".into())
    );
    let pem = issued(&requests.get("good").await.unwrap()).unwrap();
    use rustls::pki_types::pem::PemObject;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !certificate.is_ca());
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 2);
    running.stop().await;
}
