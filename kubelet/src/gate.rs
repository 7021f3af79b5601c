//! The gate that every pod passes once before it runs: what the node does not do
//! ([`crate::unsupported`]), then what the node has ([`crate::admission`]).

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use crate::admission::{self, AdmissionInputs, Admitted, SysctlPolicy};
use crate::events::{Recorder, Severity};
use crate::node::Shared;
use crate::qos::{PodDemand, ResourceAmounts};
use crate::quantity::Quantity;
use crate::unsupported;
use crate::worker::memory::Failure;
use crate::worker::roster::{Gatekeeper, Judgement};

/// The gate of a node.
pub struct Gate {
    /// The node as it was last seen.
    pub node: Shared,
    /// What pods may set through sysctls.
    pub sysctls: SysctlPolicy,
    /// Takes events on what a pod asks for in vain.
    pub events: Recorder,
}

/// What a node offers to pods.
pub(crate) fn allocatable(node: &Shared) -> ResourceAmounts {
    let node = node.read().unwrap_or_else(PoisonError::into_inner);
    let amounts = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let amounts = amounts.into_iter().flatten();
    amounts
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::try_from(amount).ok()?)))
        .collect()
}

impl Gatekeeper for Gate {
    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Judgement {
        let findings = unsupported::audit(pod);
        if let Some(refusal) = unsupported::refusal(&findings) {
            let message = format!("Pod was rejected: {refusal}");
            return Judgement::Refuse(Failure::new("UnsupportedPod", message));
        }
        let refuse = |rejection: &admission::Rejection| {
            let message = rejection.status_message();
            Judgement::Refuse(Failure::new(rejection.reason.clone(), message))
        };
        let demand = match PodDemand::parse(pod) {
            Ok(demand) => demand,
            Err(error) => return refuse(&admission::reject_invalid_resource(&error)),
        };
        let demands: Vec<(&Pod, PodDemand)> = others
            .iter()
            .filter_map(|other| Some((&**other, PodDemand::parse(other).ok()?)))
            .collect();
        let allocatable = allocatable(&self.node);
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner);
        let inputs = AdmissionInputs {
            node: &node,
            allocatable: &allocatable,
            others: demands.iter().map(|(pod, demand)| Admitted { pod, demand }).collect(),
            sysctls: &self.sysctls,
        };
        match admission::admit(pod, &demand, &inputs) {
            admission::Judgement::Admit => {
                for finding in &findings {
                    let message = finding.to_string();
                    self.events.pod(pod, Severity::Warning, "FieldNotHonoured", message);
                }
                Judgement::Admit
            }
            admission::Judgement::Reject(rejection) => refuse(&rejection),
            admission::Judgement::Preempt(places) => {
                let victims = places.into_iter().filter_map(|place| demands.get(place));
                let uids = victims.filter_map(|(pod, _)| pod.metadata.uid.clone());
                Judgement::Preempt(uids.collect())
            }
        }
    }
}
