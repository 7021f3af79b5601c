//! The `kubernetes` Service: the first address of the Service range leads to this server.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde_json::json;

use super::put;
use crate::api::Api;
use crate::failure::Failure;
use crate::resource::Kind;

/// The address of the `kubernetes` Service.
pub(crate) fn first_service_ip(range: Ipv4Net) -> Option<Ipv4Addr> {
    range.hosts().next()
}

/// Makes the Service and its endpoints what they should be.
///
/// # Errors
/// When the store fails.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let settings = Arc::clone(&api.settings);
    let Some(address) = first_service_ip(settings.service_cidr) else { return Ok(()) };
    let server = settings.for_pods;
    api.store
        .write(move |tx| {
            let labels = json!({"component": "apiserver", "provider": "kubernetes"});
            put(
                tx,
                Kind::Service,
                json!({
                    "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
                    "spec": {
                        "type": "ClusterIP",
                        "clusterIP": address,
                        "clusterIPs": [address],
                        "ports": [{
                            "name": "https", "port": 443, "protocol": "TCP",
                            "targetPort": server.port(),
                        }],
                    },
                }),
            );
            let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
            put(
                tx,
                Kind::EndpointSlice,
                json!({
                    "metadata": {"name": "kubernetes", "namespace": "default",
                        "labels": {"kubernetes.io/service-name": "kubernetes"}},
                    "addressType": family,
                    "endpoints": [{"addresses": [server.ip()], "conditions": {"ready": true}}],
                    "ports": [{"name": "https", "port": server.port(), "protocol": "TCP"}],
                }),
            );
            put(
                tx,
                Kind::Endpoints,
                json!({
                    "metadata": {"name": "kubernetes", "namespace": "default",
                        "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
                    "subsets": [{
                        "addresses": [{"ip": server.ip()}],
                        "ports": [{"name": "https", "port": server.port(), "protocol": "TCP"}],
                    }],
                }),
            );
            Ok(())
        })
        .await
}
