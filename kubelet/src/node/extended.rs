//! Extended resources: what others advertise in the node's capacity, such as an administrator by a patch.
//!
//! Whoever advertises one writes the capacity alone; the node brings what is allocatable after it, as
//! upstream's kubelets do. The capacity itself is never written here, so that what is taken back stays
//! taken back. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeStatus;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

type Amounts = BTreeMap<String, Quantity>;

/// What of the node's allocatable amounts follows from what others advertise.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Advertised {
    /// All of each is for pods.
    there: Amounts,
    /// What the API server has as allocatable at the moment.
    told: Amounts,
}

impl Advertised {
    /// Reads it from the status that the API server has.
    pub(super) fn of(known: Option<&NodeStatus>) -> Self {
        let extended = |amounts: Option<&Amounts>| {
            let all = amounts.into_iter().flatten().filter(|(name, _)| is_extended(name));
            all.map(|(name, amount)| (name.clone(), amount.clone())).collect()
        };
        Self {
            there: extended(known.and_then(|status| status.capacity.as_ref())),
            told: extended(known.and_then(|status| status.allocatable.as_ref())),
        }
    }

    /// Whether the API server has to be told.
    pub(super) fn is_news(&self) -> bool {
        self.there != self.told
    }

    /// Adds what is allocatable to a status.
    pub(super) fn add_to(&self, status: &mut NodeStatus) {
        status.allocatable.get_or_insert_default().extend(self.there.clone());
    }

    /// Takes out of a patch of the status what nobody advertises any more.
    pub(super) fn withdraw_from(&self, patch: &mut Value) {
        let gone = self.told.keys().filter(|name| !self.there.contains_key(*name));
        for name in gone {
            patch["allocatable"][name] = Value::Null;
        }
    }
}

/// Whether a resource is none of Kubernetes' own: it has a domain, and not one of theirs.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(capacity: Value, allocatable: Value) -> NodeStatus {
        serde_json::from_value(json!({"capacity": capacity, "allocatable": allocatable})).unwrap()
    }

    #[test]
    fn what_others_put_into_the_capacity_is_allocatable() {
        let known = status(
            json!({"cpu": "4", "example.com/dongle": "3", "x.kubernetes.io/y": "1"}),
            json!({"cpu": "4"}),
        );
        let advertised = Advertised::of(Some(&known));
        assert!(advertised.is_news());
        let mut wanted = status(json!({"cpu": "4"}), json!({"cpu": "4"}));
        advertised.add_to(&mut wanted);
        let dongles = status(json!({"cpu": "4"}), json!({"cpu": "4", "example.com/dongle": "3"}));
        assert_eq!(wanted, dongles, "the capacity is not written again");
    }

    #[test]
    fn what_nobody_advertises_any_more_is_taken_back() {
        let known = status(json!({"cpu": "4"}), json!({"cpu": "4", "example.com/dongle": "3"}));
        let advertised = Advertised::of(Some(&known));
        assert!(advertised.is_news());
        let mut patch = json!({"allocatable": {"cpu": "4"}});
        advertised.withdraw_from(&mut patch);
        assert_eq!(patch, json!({"allocatable": {"cpu": "4", "example.com/dongle": null}}));
    }

    #[test]
    fn what_was_told_is_no_news() {
        let amounts = json!({"cpu": "4", "example.com/dongle": "3"});
        assert!(!Advertised::of(Some(&status(amounts.clone(), amounts))).is_news());
        assert!(!Advertised::of(None).is_news());
    }
}
