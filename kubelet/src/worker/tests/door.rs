//! Who is let in on the fake node: everybody but pods that say otherwise in their labels.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::qos::PodDemand;
use crate::resize::Why;
use crate::worker::memory::Failure;
use crate::worker::roster::{Allocation, Gatekeeper, Judgement};

/// Refuses pods with the label `refuse`, and more pods than the label `room` says. Resizes have room while
/// all requests for processors are at most [`PROCESSORS`] together.
pub(super) struct Door;

/// What there is for resizes, in thousandths.
const PROCESSORS: i64 = 4000;

impl Gatekeeper for Door {
    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Judgement {
        let label = |pod: &Pod, key: &str| pod.metadata.labels.as_ref()?.get(key).cloned();
        if label(pod, "refuse").is_some() {
            return Judgement::Refuse(Failure::new("OutOfcpu", "Pod was rejected: no cpu"));
        }
        // There is room for so many; who is urgent takes the place of those that came first.
        let (Some(room), urgent) = (label(pod, "room"), label(pod, "urgent").is_some()) else {
            return Judgement::Admit;
        };
        let surplus = (others.len() + 1).saturating_sub(room.parse().unwrap());
        match (surplus, urgent) {
            (0, _) => Judgement::Admit,
            (_, false) => Judgement::Refuse(Failure::new("OutOfpods", "Pod was rejected: full")),
            (surplus, true) => {
                let others = others.iter().filter(|other| label(other, "urgent").is_none());
                let mut uids: Vec<_> = others.filter_map(|o| o.metadata.uid.clone()).collect();
                uids.sort();
                uids.truncate(surplus);
                Judgement::Preempt(uids)
            }
        }
    }

    fn resize(&self, pod: &Pod, others: &[Arc<Pod>]) -> Allocation {
        let millis = |pod: &Pod| {
            let requests = PodDemand::parse(pod).unwrap().requests();
            requests.get("cpu").copied().unwrap_or_default().milli_value()
        };
        let wanted = millis(pod);
        let taken: i64 = others.iter().map(|other| millis(other)).sum();
        match wanted {
            _ if wanted > PROCESSORS => Allocation::Waits(Why::Infeasible, "never".to_owned()),
            _ if wanted + taken > PROCESSORS => Allocation::Waits(Why::Deferred, "full".to_owned()),
            _ => Allocation::Granted,
        }
    }
}
