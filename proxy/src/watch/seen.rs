//! A Service as it is read from the API: without the conditions of its status.
//!
//! The proxy asks nothing of them, and API servers take conditions that the API's own type cannot read
//! (a `lastTransitionTime` of null). One such Service would keep all others from this node.

use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// A Service whose status says no more than its load balancer.
#[derive(Debug, Clone)]
pub(crate) struct Seen(pub(crate) Service);

#[derive(Deserialize)]
struct Wire {
    metadata: ObjectMeta,
    spec: Option<ServiceSpec>,
    status: Option<WireStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStatus {
    load_balancer: Option<LoadBalancerStatus>,
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(deserializer)?;
        let status = status.map(|status| ServiceStatus {
            load_balancer: status.load_balancer,
            ..ServiceStatus::default()
        });
        Ok(Self(Service { metadata, spec, status }))
    }
}

impl k8s_openapi::Resource for Seen {
    const API_VERSION: &'static str = Service::API_VERSION;
    const GROUP: &'static str = Service::GROUP;
    const KIND: &'static str = Service::KIND;
    const VERSION: &'static str = Service::VERSION;
    const URL_PATH_SEGMENT: &'static str = Service::URL_PATH_SEGMENT;
    type Scope = <Service as k8s_openapi::Resource>::Scope;
}

impl k8s_openapi::Metadata for Seen {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_is_read_whatever_its_conditions_lack() {
        let mut object = json!({
            "metadata": {"name": "db", "namespace": "a"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}},
        });
        let whole: Service = serde_json::from_value(object.clone()).unwrap();
        object["status"]["conditions"] = json!([{
            "type": "Told", "status": "True", "reason": "E2E", "message": "",
            "lastTransitionTime": null,
        }]);
        let seen: Seen = serde_json::from_value(object).unwrap();
        assert_eq!(seen.0, whole);
    }
}
