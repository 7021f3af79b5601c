//! What LimitRanges do to new pods and claims, as upstream's LimitRanger admission: containers get the default
//! requests and limits, and what is outside the bounds is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::admit::{quantity, resources};
use crate::object::ObjectExt;
use crate::resource::{Kind, prefix};
use crate::store::Tx;

/// Where it is said what a pod got.
const NOTE: &str = "kubernetes.io/limit-ranger";

/// An amount in thousandths, with the text it was written in.
type Amount = (i128, String);
/// Amounts by resource.
type Amounts = BTreeMap<String, Amount>;

fn ranges(tx: &Tx<'_>, namespace: &str) -> Vec<Arc<Value>> {
    let found = tx.list(&prefix(Kind::LimitRange, namespace));
    found.into_iter().map(|(_, range)| range).collect()
}

/// Gives the containers of a pod what the ranges of the namespace have for them, and holds the pod to the
/// bounds.
///
/// # Errors
/// For a pod outside the bounds.
pub(crate) fn admit_pod(tx: &Tx<'_>, namespace: &str, pod: &mut Value) -> Result<(), String> {
    let ranges = ranges(tx, namespace);
    for range in &ranges {
        fill(range, pod);
    }
    ranges.iter().try_for_each(|range| check_pod(range, pod))
}

/// Holds a claim to the bounds of the namespace.
///
/// # Errors
/// For a claim outside the bounds.
pub(crate) fn admit_claim(tx: &Tx<'_>, namespace: &str, claim: &Value) -> Result<(), String> {
    ranges(tx, namespace).iter().try_for_each(|range| check_claim(range, claim))
}

fn items<'a>(range: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    range.list("/spec/limits").iter().filter(move |item| item.text("/type") == kind)
}

fn fill(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for (list, called) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod.list_mut(&format!("/spec/{list}")) {
            for item in items(range, "Container") {
                for (into, from) in [("requests", "defaultRequest"), ("limits", "default")] {
                    let set = set_missing(container, (into, item.map(&format!("/{from}"))));
                    if !set.is_empty() {
                        let kind = into.trim_end_matches('s');
                        let name = container.text("/name");
                        notes.push(format!("{} {kind} for {called} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    if !pod.has("/metadata/annotations") {
        pod.put("/metadata/annotations", Map::new());
    }
    pod["metadata"]["annotations"][NOTE] =
        format!("LimitRanger plugin set: {}", notes.join("; ")).into();
}

/// Sets what a container has not; the resources that were set.
fn set_missing(
    container: &mut Value,
    (into, from): (&str, Option<&Map<String, Value>>),
) -> Vec<String> {
    let pointer = format!("/resources/{into}");
    let mut amounts = container.map(&pointer).cloned().unwrap_or_default();
    let mut set = Vec::new();
    for (resource, amount) in from.into_iter().flatten() {
        if !amounts.contains_key(resource) {
            amounts.insert(resource.clone(), amount.clone());
            set.push(resource.clone());
        }
    }
    if !set.is_empty() {
        container.put(&pointer, amounts);
    }
    set
}

fn check_pod(range: &Value, pod: &Value) -> Result<(), String> {
    let mut problems = Vec::new();
    for item in items(range, "Container") {
        for list in ["/spec/containers", "/spec/initContainers"] {
            for container in pod.list(list) {
                let of = |what: &str| amounts(container.map(&format!("/resources/{what}")));
                check_item(item, (&of("requests"), &of("limits")), &mut problems);
            }
        }
    }
    for item in items(range, "Pod") {
        let of = |what: &str| of_pod(pod, what);
        check_item(item, (&of("requests"), &of("limits")), &mut problems);
    }
    joined(problems)
}

fn check_claim(range: &Value, claim: &Value) -> Result<(), String> {
    let mut problems = Vec::new();
    let requests = amounts(claim.map("/spec/resources/requests"));
    for item in items(range, "PersistentVolumeClaim") {
        for (resource, bound) in amounts(item.map("/min")) {
            problems.extend(below(item, (&resource, &bound), (&requests, &Amounts::new())));
        }
        for (resource, bound) in amounts(item.map("/max")) {
            let of = requests.get(&resource);
            problems.extend(above(item, (&resource, &bound), (of, "request")).or_else(|| {
                of.is_none().then(|| missing(item, (&resource, &bound), "maximum", "request"))
            }));
        }
    }
    joined(problems)
}

fn joined(mut problems: Vec<String>) -> Result<(), String> {
    problems.dedup();
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

type Bound<'a> = (&'a str, &'a Amount);

fn check_item(item: &Value, (requests, limits): (&Amounts, &Amounts), problems: &mut Vec<String>) {
    for (resource, bound) in amounts(item.map("/min")) {
        problems.extend(below(item, (&resource, &bound), (requests, limits)));
    }
    for (resource, bound) in amounts(item.map("/max")) {
        let bound = (resource.as_str(), &bound);
        let limit = limits.get(&resource);
        problems.extend(match limit {
            None => Some(missing(item, bound, "maximum", "limit")),
            Some(_) => above(item, bound, (limit, "limit"))
                .or_else(|| above(item, bound, (requests.get(&resource), "request"))),
        });
    }
    for (resource, bound) in amounts(item.map("/maxLimitRequestRatio")) {
        let of = (requests.get(&resource), limits.get(&resource));
        problems.extend(too_wide(item, (&resource, &bound), of));
    }
}

fn missing(item: &Value, (resource, bound): Bound<'_>, which: &str, what: &str) -> String {
    let kind = item.text("/type");
    format!("{which} {resource} usage per {kind} is {}.  No {what} is specified", bound.1)
}

fn below(
    item: &Value,
    bound: Bound<'_>,
    (requests, limits): (&Amounts, &Amounts),
) -> Option<String> {
    let (resource, least) = bound;
    let Some(request) = requests.get(resource) else {
        return Some(missing(item, bound, "minimum", "request"));
    };
    let under = |amount: &Amount, what: &str| {
        let kind = item.text("/type");
        let text = &amount.1;
        (amount.0 < least.0).then(|| {
            format!("minimum {resource} usage per {kind} is {}, but {what} is {text}", least.1)
        })
    };
    under(request, "request").or_else(|| under(limits.get(resource)?, "limit"))
}

fn above(
    item: &Value,
    (resource, most): Bound<'_>,
    (amount, what): (Option<&Amount>, &str),
) -> Option<String> {
    let (value, text) = amount?;
    let kind = item.text("/type");
    (*value > most.0)
        .then(|| format!("maximum {resource} usage per {kind} is {}, but {what} is {text}", most.1))
}

fn too_wide(
    item: &Value,
    (resource, widest): Bound<'_>,
    (request, limit): (Option<&Amount>, Option<&Amount>),
) -> Option<String> {
    let kind = item.text("/type");
    let rule = format!("{resource} max limit to request ratio per {kind} is {}", widest.1);
    let of = |amount: Option<&Amount>| amount.map(|one| one.0).filter(|value| *value != 0);
    let Some(request) = of(request) else {
        return Some(format!("{rule}, but no request is specified or request is 0"));
    };
    let Some(limit) = of(limit) else {
        return Some(format!("{rule}, but no limit is specified or limit is 0"));
    };
    (limit * 1000 > widest.0 * request).then(|| {
        let ratio = limit as f64 / request as f64;
        format!("{rule}, but provided ratio is {ratio:.6}")
    })
}

fn amounts(map: Option<&Map<String, Value>>) -> Amounts {
    let read = |(name, value): (&String, &Value)| {
        let text = resources::text(value);
        Some((name.clone(), (quantity::millis(text)?, text.to_owned())))
    };
    map.into_iter().flatten().filter_map(read).collect()
}

/// The requests or limits of a whole pod: the sum of its containers and sidecars, or what an init container has
/// with the sidecars before it, if that is more; what the pod says as a whole goes over that.
fn of_pod(pod: &Value, what: &str) -> Amounts {
    let own = |container: &Value| amounts(container.map(&format!("/resources/{what}")));
    let mut total = Amounts::new();
    pod.list("/spec/containers").iter().for_each(|container| add(&mut total, &own(container)));
    let (mut sidecars, mut first) = (Amounts::new(), Amounts::new());
    for container in pod.list("/spec/initContainers") {
        let mut at_once = sidecars.clone();
        add(&mut at_once, &own(container));
        if container.text("/restartPolicy") == "Always" {
            add(&mut total, &own(container));
            sidecars = at_once.clone();
        }
        raise(&mut first, &at_once);
    }
    raise(&mut total, &first);
    let whole = pod.get("spec").map(own).unwrap_or_default();
    total.extend(whole.into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")));
    total
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, (value, text)) in more {
        let sum = match total.get(name) {
            Some((before, form)) => {
                let sum = before + value;
                (sum, quantity::like(sum, form))
            }
            None => (*value, text.clone()),
        };
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if total.get(name).is_none_or(|before| before.0 < amount.0) {
            total.insert(name.clone(), amount.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn containers_get_what_they_leave_out_and_a_note_says_so() {
        let range = range(json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}));
        let mut one = pod(json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}));
        one["spec"]["initContainers"] = json!([{"name": "i"}]);
        fill(&range, &mut one);
        let resources = |list: &str| one["spec"][list][0]["resources"].clone();
        let wanted = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}});
        assert_eq!(resources("containers"), wanted);
        let wanted = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(resources("initContainers"), wanted);
        assert_eq!(
            one["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: memory limit for container a; cpu request for init container \
             i; cpu, memory limit for init container i"
        );
        let mut full = pod(wanted.clone());
        let before = full.clone();
        fill(&range, &mut full);
        assert_eq!(full, before, "who says all gets nothing");
    }

    #[test]
    fn what_is_outside_the_bounds_is_refused_in_the_usual_words() {
        let range = range(json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "4"}}));
        for (resources, why) in [
            (
                json!({}),
                "[minimum cpu usage per Container is 100m.  No request is specified, maximum cpu usage per Container is 1.  No limit is specified, cpu max limit to request ratio per Container is 4, but no request is specified or request is 0]",
            ),
            (
                json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "1"}}),
                "cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000",
            ),
        ] {
            assert_eq!(check_pod(&range, &pod(resources)), Err(why.to_owned()));
        }
        let good = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}});
        assert_eq!(check_pod(&range, &pod(good)), Ok(()));
    }

    #[test]
    fn a_pod_is_held_to_the_sum_of_its_containers() {
        let range = range(json!({"type": "Pod", "max": {"memory": "200Mi"}}));
        let of = |memory: &str| json!({"resources": {"limits": {"memory": memory}}});
        let mut pod = json!({"spec": {"containers": [of("64Mi"), of("128Mi")]}});
        assert_eq!(check_pod(&range, &pod), Ok(()));
        pod["spec"]["initContainers"] = json!([of("150Mi")]);
        assert_eq!(check_pod(&range, &pod), Ok(()), "an init container runs alone");
        let mut sidecar = of("64Mi");
        sidecar["restartPolicy"] = json!("Always");
        pod["spec"]["initContainers"] = json!([sidecar, of("150Mi")]);
        let why = "maximum memory usage per Pod is 200Mi, but limit is 256Mi";
        assert_eq!(check_pod(&range, &pod), Err(why.to_owned()));
        pod["spec"]["resources"] = json!({"limits": {"memory": "100Mi"}});
        assert_eq!(check_pod(&range, &pod), Ok(()), "what the pod says as a whole counts");
    }

    #[test]
    fn a_claim_is_held_to_what_it_asks_for() {
        let range = range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"},
            "max": {"storage": "2Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert_eq!(check_claim(&range, &claim("1Gi")), Ok(()));
        let small = "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 512Mi";
        assert_eq!(check_claim(&range, &claim("512Mi")), Err(small.to_owned()));
        let large = "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi";
        assert_eq!(check_claim(&range, &claim("3Gi")), Err(large.to_owned()));
    }
}
