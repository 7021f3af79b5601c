//! LimitRanges: defaults, and rules for what they may say (`ValidateLimitRange`). What they do to pods and
//! claims is in `enforce`.

mod enforce;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{pod_rules, quantity, resources};
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::selector::label;

pub(crate) use enforce::{admit_claim, admit_pod};

const AMOUNTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// Sets what an item for containers leaves out: the limit is the maximum, the request is the limit, or else
/// the minimum.
pub(super) fn defaults(range: &mut Value) {
    for item in range.list_mut("/spec/limits") {
        if item.text("/type") != "Container" {
            continue;
        }
        for (into, from) in
            [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
        {
            let source = item.map(&format!("/{from}")).cloned().unwrap_or_default();
            let mut merged = item.map(&format!("/{into}")).cloned().unwrap_or_default();
            for (resource, amount) in source {
                merged.entry(resource).or_insert(amount);
            }
            if !merged.is_empty() {
                item[into] = merged.into();
            }
        }
    }
}

/// Checks a range.
pub(super) fn check(range: &Value, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, item) in range.list("/spec/limits").iter().enumerate() {
        let field = format!("spec.limits[{index}]");
        let kind = item.text("/type");
        check_type(&format!("{field}.type"), kind, causes);
        if !seen.insert(kind) {
            causes.push(Cause::duplicate(format!("{field}.type"), &json!(kind)));
        }
        check_amounts(&field, item, causes);
        let storage = |of: &str| item.has(&format!("/{of}/storage"));
        if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let detail =
                "either minimum or maximum storage value is required, but neither was provided";
            causes.push(Cause::required(format!("{field}.limits"), detail));
        }
        let named: BTreeSet<&String> = AMOUNTS
            .iter()
            .filter_map(|of| item.map(&format!("/{of}")))
            .flat_map(Map::keys)
            .collect();
        for resource in named {
            check_order(&field, (item, resource), causes);
        }
    }
}

fn check_type(field: &str, kind: &str, causes: &mut Vec<Cause>) {
    let problem = match kind {
        "Container" | "Pod" | "PersistentVolumeClaim" => return,
        other if !label::is_qualified_name(other) => label::NAME_RULE,
        other if !other.contains('/') => "must be a standard limit type or fully qualified",
        _ => return,
    };
    causes.push(Cause::invalid(field, &json!(kind), problem));
}

fn check_amounts(field: &str, item: &Value, causes: &mut Vec<Cause>) {
    let kind = item.text("/type");
    for of in AMOUNTS {
        let amounts = item.map(&format!("/{of}"));
        if kind == "Pod" && of.starts_with("default") && amounts.is_some_and(|map| !map.is_empty())
        {
            let detail = "may not be specified when `type` is 'Pod'";
            causes.push(Cause::forbidden(format!("{field}.{of}"), detail));
            continue;
        }
        for (resource, amount) in amounts.into_iter().flatten() {
            let field = format!("{field}.{of}[{resource}]");
            match kind {
                "Pod" | "Container" => resources::check_for_container(&field, resource, causes),
                _ => resources::check(&field, resource, causes),
            }
            pod_rules::check_amount(&field, amount, causes);
        }
    }
}

/// Of one resource the minimum is the least, then the default request, the default limit and the maximum.
fn check_order(field: &str, (item, resource): (&Value, &str), causes: &mut Vec<Cause>) {
    let amount = |of: &str| {
        let value = item.map(&format!("/{of}"))?.get(resource)?;
        Some((quantity::millis(resources::text(value))?, value))
    };
    let mut ascending = |small: (&str, &str), large: (&str, &str), (at, shown): (&str, &str)| {
        if let (Some(less), Some(more)) = (amount(small.0), amount(large.0))
            && less.0 > more.0
        {
            let (less, more) = (resources::text(less.1), resources::text(more.1));
            let verb = if small.1 == "min" { "value " } else { "" };
            let detail = format!("{} {verb}{less} is greater than {} {more}", small.1, large.1);
            let value = if shown == small.0 { less } else { more };
            causes.push(Cause::invalid(
                format!("{field}.{at}[{resource}]"),
                &json!(value),
                &detail,
            ));
        }
    };
    let (request, limit) = ("defaultRequest", "default");
    ascending(("min", "min"), ("max", "max value"), ("min", "min"));
    ascending(("min", "min"), (request, "default request value"), (request, request));
    ascending((request, "default request value"), ("max", "max value"), (request, request));
    ascending(
        (request, "default request value"),
        (limit, "default limit value"),
        (request, request),
    );
    ascending(("min", "min"), (limit, "default value"), (limit, "min"));
    ascending((limit, "default value"), ("max", "max value"), (limit, "max"));
    check_ratio(field, (item, resource), causes);
    if let (Some(one), Some(other)) = (amount(limit), amount(request))
        && one.0 != other.0
        && !resources::may_be_overcommitted(resource)
    {
        let (one, other) = (resources::text(one.1), resources::text(other.1));
        let detail =
            format!("default value {one} must equal to defaultRequest value {other} in {resource}");
        causes.push(Cause::invalid(
            format!("{field}.{request}[{resource}]"),
            &json!(other),
            &detail,
        ));
    }
}

fn check_ratio(field: &str, (item, resource): (&Value, &str), causes: &mut Vec<Cause>) {
    let text = |of: &str| {
        item.map(&format!("/{of}")).and_then(|map| map.get(resource)).map(resources::text)
    };
    let amount = |of: &str| text(of).and_then(quantity::millis);
    let Some((ratio, shown)) = amount("maxLimitRequestRatio").zip(text("maxLimitRequestRatio"))
    else {
        return;
    };
    let field = format!("{field}.maxLimitRequestRatio[{resource}]");
    if ratio < 1000 {
        let detail = format!("ratio {shown} is less than 1");
        causes.push(Cause::invalid(&field, &json!(shown), &detail));
    }
    if let Some((min, max)) = amount("min").zip(amount("max"))
        && min > 0
        && ratio * min > max * 1000
    {
        let widest = max as f64 / min as f64;
        let detail = format!("ratio {shown} is greater than max/min = {widest:.6}");
        causes.push(Cause::invalid(field, &json!(shown), &detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(item: Value) -> Vec<String> {
        let mut causes = Vec::new();
        check(&json!({"spec": {"limits": [item]}}), &mut causes);
        causes.iter().map(Cause::line).collect()
    }

    #[test]
    fn what_an_item_for_containers_leaves_out_follows_from_the_rest() {
        let mut range = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2", "memory": "1Gi"}, "default": {"cpu": "1"},
                "min": {"cpu": "100m", "ephemeral-storage": "1Mi"}},
            {"type": "Pod", "max": {"cpu": "2"}}]}});
        defaults(&mut range);
        let item = &range["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "1", "memory": "1Gi"}));
        let requests = json!({"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Mi"});
        assert_eq!(item["defaultRequest"], requests);
        assert_eq!(range["spec"]["limits"][1], json!({"type": "Pod", "max": {"cpu": "2"}}));
    }

    #[test]
    fn a_good_range_is_taken() {
        let good = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "2"},
            "defaultRequest": {"cpu": "200m"}, "default": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "10"}});
        assert_eq!(lines(good), [""; 0]);
        assert_eq!(
            lines(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}})),
            [""; 0]
        );
        assert_eq!(lines(json!({"type": "a.io/thing", "max": {"pods": "1"}})), [""; 0]);
    }

    #[test]
    fn amounts_that_contradict_each_other_are_named() {
        for (item, line) in [
            (
                json!({"type": "Node"}),
                "type: Invalid value: \"Node\": must be a standard limit type",
            ),
            (json!({"type": "PersistentVolumeClaim"}), "limits: Required value: either minimum"),
            (
                json!({"type": "Container", "max": {"pods": "1"}}),
                "max[pods]: Invalid value: \"pods\"",
            ),
            (json!({"type": "Container", "max": {"cpu": "-1"}}), "max[cpu]: Invalid value: \"-1\""),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                "default: Forbidden: may not be specified when",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                "min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}}),
                "defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
                "defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": "2"}, "max": {"cpu": "1"}}),
                "default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
            ),
            (
                json!({"type": "Container", "default": {"a.io/gpu": "2"}, "defaultRequest": {"a.io/gpu": "1"}}),
                "defaultRequest[a.io/gpu]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in a.io/gpu",
            ),
        ] {
            let found = lines(item);
            let wanted = format!("spec.limits[0].{line}");
            assert!(found.len() == 1 && found[0].starts_with(&wanted), "{wanted}: {found:?}");
        }
        let twice = json!({"spec": {"limits": [{"type": "Pod"}, {"type": "Pod"}]}});
        let mut causes = Vec::new();
        check(&twice, &mut causes);
        assert_eq!(causes, [Cause::duplicate("spec.limits[1].type", &json!("Pod"))]);
    }
}
