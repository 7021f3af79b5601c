//! The gate that every pod passes once before it runs: shut while the node goes down
//! ([`crate::shutdown`]); then what the node does not do ([`crate::unsupported`]), then what it has
//! ([`crate::admission`]).

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use crate::admission::{self, AdmissionInputs, Admitted, AppArmorSupport, SysctlPolicy};
use crate::events::{Recorder, Severity};
use crate::meters::{self, Meters};
use crate::node::Shared;
use crate::node::heartbeat::Signs;
use crate::qos::{PodDemand, ResourceAmounts};
use crate::quantity::Quantity;
use crate::resize::Why;
use crate::shutdown;
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
    /// The pressures that the node is under, and whether it is about to go down.
    pub signs: Signs,
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
        let refuse = |rejection: &admission::Rejection| {
            let message = rejection.status_message();
            Judgement::Refuse(Failure::new(rejection.reason.clone(), message))
        };
        if self.signs.standing.is_ending() {
            let (reason, message) =
                (shutdown::REFUSED.to_owned(), shutdown::REFUSED_MESSAGE.to_owned());
            return refuse(&admission::Rejection { reason, message });
        }
        let findings = unsupported::audit(pod);
        if let Some(refusal) = unsupported::refusal(&findings) {
            let message = format!("{}{refusal}", admission::REJECTED);
            return Judgement::Refuse(Failure::new("UnsupportedPod", message));
        }
        let demand = match PodDemand::parse(pod) {
            Ok(demand) => demand,
            Err(error) => return refuse(&admission::reject_invalid_resource(&error)),
        };
        if let Some(pressed) =
            admission::under_pressure(pod, &demand, &self.signs.conditions.borrow())
        {
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

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use serde_json::json;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::events::Occurrence;
    use crate::eviction::Conditions;
    use crate::meters::tests::counted;
    use crate::shutdown::Standing;

    fn gate(signs: Signs) -> (Gate, mpsc::Receiver<Occurrence>) {
        let amounts = json!({"cpu": "1", "memory": "1Gi", "pods": "110"});
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": amounts}});
        let (events, occurrences) = Recorder::new();
        let gate = Gate {
            node: Arc::new(RwLock::new(serde_json::from_value(node).unwrap())),
            sysctls: SysctlPolicy::new(&[]),
            app_armor: AppArmorSupport::of_host(),
            signs,
            events,
            meters: Meters::default(),
        };
        (gate, occurrences)
    }

    #[test]
    fn what_is_not_honoured_and_does_no_harm_is_told_by_an_event() {
        let (conditions, standing) = (watch::channel(Conditions::new()).1, Standing::default());
        let (gate, mut occurrences) = gate(Signs { conditions, standing });
        let windows = json!({"windowsOptions": {"runAsUserName": "u"}});
        let spec = json!({"securityContext": windows, "containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        assert_eq!(gate.admit(&serde_json::from_value(pod).unwrap(), &[]), Judgement::Admit);
        let event = occurrences.try_recv().unwrap();
        assert_eq!((event.severity, &*event.reason), (Severity::Warning, "FieldNotHonoured"));
        assert!(
            event.message.starts_with("spec.securityContext.windowsOptions"),
            "{}",
            event.message
        );
        assert!(occurrences.try_recv().is_err());
    }

    #[test]
    fn nobody_is_let_in_while_the_node_goes_down() {
        let standing = Standing::default();
        let conditions = watch::channel(Conditions::new()).1;
        let (gate, _occurrences) = gate(Signs { conditions, standing: standing.clone() });
        let pod = |priority: i32| -> Pod {
            let spec = json!({"priority": priority, "containers": [{"name": "c", "image": "i"}]});
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        assert_eq!(gate.admit(&pod(0), &[]), Judgement::Admit);
        standing.set(true);
        let message = "Pod was rejected: Pod was rejected as the node is shutting down.";
        for priority in [0, 2_000_001_000] {
            let refusal = Judgement::Refuse(Failure::new("NodeShutdown", message));
            assert_eq!(gate.admit(&pod(priority), &[]), refusal);
        }
        assert_eq!(counted(&gate.meters, &meters::REFUSED_PODS)["NodeShutdown"], 2);
        standing.set(false);
        assert_eq!(gate.admit(&pod(0), &[]), Judgement::Admit);
    }
}
