//! Sizes: when they differ, what becomes of a container then, and what is told.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pod(containers: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "generation": 2}, "spec": {"containers": containers}}))
    .unwrap()
}

fn one(resources: Value) -> Pod {
    pod(json!([{"name": "c", "resources": resources}]))
}

fn size(resources: Value) -> Size {
    let pod = one(resources);
    Size::of(&pod, &members::app_containers(&pod)[0])
}

#[test]
fn equal_amounts_are_one_size_however_they_are_written() {
    let a = json!({"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": "2"}});
    let b = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2000m"}});
    assert!(size(a.clone()).is(&size(b.clone())));
    assert_eq!(pod_size(&one(a.clone())), pod_size(&one(b.clone())));
    assert_eq!(with_allocation(&one(a), &one(b)), None);
    let storage = json!({"requests": {"ephemeral-storage": "1Gi"}});
    assert!(size(storage).is(&size(json!({}))));
}

#[test]
fn what_is_held_stays_until_there_is_room_and_nothing_else_does() {
    let held = one(json!({"requests": {"cpu": "1"}}));
    let mut wanted = one(json!({"requests": {"cpu": "2"}}));
    wanted.spec.as_mut().unwrap().containers[0].image = Some("new".to_owned());
    let allocated = with_allocation(&wanted, &held).unwrap();
    assert_eq!(pod_size(&allocated), pod_size(&held));
    assert_eq!(members::app_containers(&allocated)[0].image.as_deref(), Some("new"));
}

#[test]
fn a_policy_restarts_a_container_only_for_its_own_resource() {
    let policies = json!([
        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
    ]);
    let pod = pod(json!([{"name": "c", "resizePolicy": policies}]));
    let container = &members::app_containers(&pod)[0];
    let now = size(json!({"requests": {"cpu": "1", "memory": "1Mi"}}));
    for (wanted, restarts) in [
        (json!({"requests": {"cpu": "2", "memory": "1Mi"}}), false),
        (json!({"requests": {"cpu": "1", "memory": "2Mi"}}), true),
        (json!({"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"memory": "2Mi"}}), true),
    ] {
        assert_eq!(now.restarts(container, &size(wanted.clone())), restarts, "{wanted}");
    }
}

#[test]
fn a_status_shows_the_amounts_in_force_until_the_new_ones_are() {
    let resources = json!({"requests": {"cpu": "2", "ephemeral-storage": "1Gi"},
                           "limits": {"cpu": "4", "memory": "1Gi"}});
    let pod = one(resources.clone());
    let container = &members::app_containers(&pod)[0];
    let shown_of = |size: &Size| {
        let size: Size = serde_json::from_str(&size.label()).unwrap();
        serde_json::to_value(shown(container, Some(&size)).unwrap()).unwrap()
    };
    assert_eq!(shown_of(&size(resources.clone())), resources);
    assert_eq!(
        shown_of(&size(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "4"}}))),
        json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "4"}})
    );
    let none = serde_json::to_value(shown(container, None).unwrap()).unwrap();
    assert_eq!(none, resources);
}

#[test]
fn events_name_the_resources_as_upstream_does() {
    let pod = one(json!({"requests": {"memory": "1Mi", "cpu": "1"}}));
    assert_eq!(
        told("started", &pod, (Some(2), "")),
        r#"Pod resize started: {"containers":[{"name":"c","resources":{"requests":{"cpu":"1","memory":"1Mi"}}}],"generation":2}"#
    );
    assert!(told("error", &pod, (Some(2), "no")).ends_with(r#""generation":2,"error":"no"}"#));
}

#[test]
fn what_goes_on_is_read_back_from_the_conditions_that_tell_of_it() {
    for error in [None, Some("cannot decrease memory limits: x".to_owned())] {
        let progress = Progress {
            pending: Some(Pending {
                why: Why::Infeasible,
                message: "too much".to_owned(),
                generation: Some(4),
            }),
            under_way: Some(UnderWay { generation: Some(3), error }),
        };
        let conditions = Some(progress.conditions());
        let status = PodStatus { conditions, ..PodStatus::default() };
        assert_eq!(Progress::recovered(&status), progress);
    }
    assert_eq!(Progress::recovered(&PodStatus::default()), Progress::default());
}

fn limits() -> impl Strategy<Value = Resources> {
    let some = || proptest::option::of(0..9u64);
    (0..9u64, some(), some()).prop_map(|(weight, quota, memory)| Resources {
        cpu_weight: Some(weight),
        cpu_quota_us: quota,
        memory_limit_bytes: memory,
        ..Resources::default()
    })
}

proptest! {
    #[test]
    fn in_between_a_pod_is_held_no_tighter_than_before_or_after(a in limits(), b in limits()) {
        let wide = loosest(&a, &b);
        let bound = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        for one in [&a, &b] {
            prop_assert!(wide.cpu_weight >= one.cpu_weight);
            prop_assert!(bound(wide.cpu_quota_us) >= bound(one.cpu_quota_us));
            prop_assert!(bound(wide.memory_limit_bytes) >= bound(one.memory_limit_bytes));
        }
        prop_assert_eq!(&loosest(&a, &a), &a);
    }
}
