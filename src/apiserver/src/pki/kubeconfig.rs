//! Kubeconfig files with everything inside them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::Pair;

/// A kubeconfig (JSON, which is YAML) for a user with a client certificate.
pub(crate) fn render(server: &str, ca_pem: &str, (user, pair): (&str, &Pair)) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "berth",
            "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(ca_pem),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(&pair.cert_pem),
                "client-key-data": STANDARD.encode(&pair.key_pem),
            },
        }],
        "contexts": [{"name": "berth", "context": {"cluster": "berth", "user": user}}],
        "current-context": "berth",
    });
    format!("{config:#}\n")
}
