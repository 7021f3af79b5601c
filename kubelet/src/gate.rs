//! The gate that every pod passes once before it runs: what the node does not do
//! ([`crate::unsupported`]), then what the node has ([`crate::admission`]).

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::admission::{self, AdmissionInputs, Admitted, AppArmorSupport, SysctlPolicy};
use crate::events::{Recorder, Severity};
use crate::eviction::Conditions;
use crate::meters::{self, Meters};
use crate::node::Shared;
use crate::qos::{PodDemand, ResourceAmounts};
use crate::quantity::Quantity;
use crate::resize::Why;
use crate::unsupported;
use crate::worker::memory::Failure;
use crate::worker::roster::{Allocation, Gatekeeper, Judgement};

/// The gate of a node.
pub struct Gate {
    /// The node as it was last seen.
    pub node: Shared,
    /// What pods may set through sysctls.
    pub sysctls: SysctlPolicy,
    /// Whether the node has AppArmor.
    pub app_armor: AppArmorSupport,
    /// The pressures that the node is under.
    pub conditions: watch::Receiver<Conditions>,
    /// Takes events on what a pod asks for in vain.
    pub events: Recorder,
    /// Counts the pods that are refused.
    pub meters: Meters,
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
        let judgement = self.admit_uncounted(pod, others);
        if let Judgement::Refuse(failure) = &judgement {
            self.meters.count(&meters::REFUSED_PODS, &[&failure.reason]);
        }
        judgement
    }

    fn resize(&self, pod: &Pod, others: &[Arc<Pod>]) -> Allocation {
        let demand = match PodDemand::parse(pod) {
            Ok(demand) => demand,
            Err(error) => {
                let message = admission::reject_invalid_resource(&error).message;
                return Allocation::Waits(Why::Infeasible, message);
            }
        };
        if let Some(message) = admission::beyond_node(&demand, &allocatable(&self.node)) {
            return Allocation::Waits(Why::Infeasible, message);
        }
        match self.judge((pod, &demand), others) {
            admission::Judgement::Admit => Allocation::Granted,
            admission::Judgement::Reject(rejection) => {
                Allocation::Waits(Why::Deferred, rejection.message)
            }
            admission::Judgement::Preempt(places) => {
                let message = "other pods are preempted in order to resize a critical pod";
                Allocation::Preempt(uids(others, &places), message.to_owned())
            }
        }
    }
}

impl Gate {
    fn admit_uncounted(&self, pod: &Pod, others: &[Arc<Pod>]) -> Judgement {
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
        if let Some(pressed) = admission::under_pressure(pod, &demand, &self.conditions.borrow()) {
            return refuse(&pressed);
        }
        match self.judge((pod, &demand), others) {
            admission::Judgement::Admit => {
                for finding in &findings {
                    let message = finding.to_string();
                    self.events.pod(pod, Severity::Warning, "FieldNotHonoured", message);
                }
                Judgement::Admit
            }
            admission::Judgement::Reject(rejection) => refuse(&rejection),
            admission::Judgement::Preempt(places) => Judgement::Preempt(uids(others, &places)),
        }
    }
}

fn uids(pods: &[Arc<Pod>], places: &[usize]) -> Vec<String> {
    let pods = places.iter().filter_map(|place| pods.get(*place));
    pods.filter_map(|pod| pod.metadata.uid.clone()).collect()
}

impl Gate {
    /// Holds a pod against what the node has beside others; of those whose requests cannot be read
    /// only the number counts.
    fn judge(
        &self,
        (pod, demand): (&Pod, &PodDemand),
        others: &[Arc<Pod>],
    ) -> admission::Judgement {
        let demands: Vec<PodDemand> =
            others.iter().map(|other| PodDemand::parse(other).unwrap_or_default()).collect();
        let allocatable = allocatable(&self.node);
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner);
        let others = others.iter().zip(&demands);
        let inputs = AdmissionInputs {
            node: &node,
            allocatable: &allocatable,
            others: others.map(|(pod, demand)| Admitted { pod, demand }).collect(),
            sysctls: &self.sysctls,
            app_armor: self.app_armor,
        };
        admission::admit(pod, demand, &inputs)
    }
}
