//! What the server says it serves: legacy and aggregated discovery, and the version. All of it
//! comes from the resource table, so nothing unserved is ever listed.

use serde_json::{Map, Value, json};

use crate::resource::{
    GROUPS, RESOURCES, REVIEW_GROUPS, Resource, Review, Subresource, VERBS, api_version,
};

/// `/version`.
pub(crate) fn version() -> Value {
    let mut parts = crate::VERSION.trim_start_matches('v').split('.');
    json!({
        "major": parts.next().unwrap_or_default(),
        "minor": parts.next().unwrap_or_default(),
        "gitVersion": crate::VERSION,
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The machine's architecture by the name Go gives it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/api`, unaggregated.
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`, unaggregated.
pub(crate) fn groups() -> Value {
    let names = group_names().into_iter().filter(|name| !name.is_empty());
    let groups: Vec<Value> = names.filter_map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub(crate) fn group(name: &str) -> Option<Value> {
    let versions: Vec<Value> = versions(name)
        .map(|version| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    let preferred = versions.first().filter(|_| !name.is_empty())?.clone();
    Some(json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": versions,
        "preferredVersion": preferred,
    }))
}

/// Each group once; its versions follow each other.
fn group_names() -> Vec<&'static str> {
    let mut names: Vec<_> = all_groups().map(|(group, _)| *group).collect();
    names.dedup();
    names
}

fn versions(name: &str) -> impl Iterator<Item = &'static str> {
    all_groups().filter(move |(group, _)| *group == name).map(|(_, version)| *version)
}

fn all_groups() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    GROUPS.iter().chain(REVIEW_GROUPS)
}

fn reviews(group: &str) -> impl Iterator<Item = Review> {
    Review::ALL.into_iter().filter(move |review| review.group() == group)
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub(crate) fn resources(group: &str, version: &str) -> Option<Value> {
    if !all_groups().any(|one| *one == (group, version)) {
        return None;
    }
    let mut list = Vec::new();
    for resource in served(group, version) {
        list.push(legacy_entry(resource));
        list.extend(resource.subresources.iter().map(|sub| legacy_subentry(resource, *sub)));
    }
    list.extend(reviews(group).map(|review| {
        json!({
            "name": review.plural(), "singularName": review.singular(), "namespaced": false,
            "kind": review.kind_name(), "verbs": ["create"],
        })
    }));
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": list,
    }))
}

fn served(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |r| (r.group, r.version) == (group, version))
}

fn legacy_entry(resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.is_namespaced(),
        "kind": resource.kind_name,
        "verbs": VERBS,
    });
    if !resource.short.is_empty() {
        entry["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    entry
}

fn legacy_subentry(resource: &Resource, sub: Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, sub.name()),
        "singularName": "",
        "namespaced": resource.is_namespaced(),
        "kind": sub.object().map_or(resource.kind_name, |(_, _, kind)| kind),
        "verbs": sub.verbs(),
    });
    if let Some((group, version, _)) = sub.object().filter(|(group, _, _)| !group.is_empty()) {
        entry["group"] = group.into();
        entry["version"] = version.into();
    }
    entry
}

/// Which half of the aggregated discovery is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// `/api`.
    Core,
    /// `/apis`.
    Named,
}

/// The aggregated document (`apidiscovery.k8s.io/v2`).
pub(crate) fn aggregated(half: Half) -> Value {
    let items: Vec<Value> = group_names()
        .into_iter()
        .filter(|group| group.is_empty() == (half == Half::Core))
        .map(|group| {
            let mut metadata = Map::new();
            metadata.insert("creationTimestamp".into(), Value::Null);
            if !group.is_empty() {
                metadata.insert("name".into(), group.into());
            }
            let versions: Vec<Value> = versions(group)
                .map(|version| {
                    let asked = reviews(group).map(aggregated_review);
                    let resources: Vec<Value> =
                        served(group, version).map(aggregated_entry).chain(asked).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_review(review: Review) -> Value {
    json!({
        "resource": review.plural(),
        "responseKind": {"group": review.group(), "version": "v1", "kind": review.kind_name()},
        "scope": "Cluster",
        "singularResource": review.singular(),
        "verbs": ["create"],
    })
}

fn aggregated_entry(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let own = kind(resource.group, resource.version, resource.kind_name);
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            let shape = match sub.object() {
                Some((group, version, name)) => kind(group, version, name),
                None => own.clone(),
            };
            json!({"subresource": sub.name(), "responseKind": shape, "verbs": sub.verbs()})
        })
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": own,
        "scope": if resource.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": VERBS,
    });
    if !resource.short.is_empty() {
        entry["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectExt;

    #[test]
    fn both_forms_of_discovery_list_the_same_resources() {
        let legacy = resources("", "v1").unwrap();
        let names: Vec<&str> = legacy
            .list("/resources")
            .iter()
            .map(|entry| entry.text("/name"))
            .filter(|name| !name.contains('/'))
            .collect();
        let core = aggregated(Half::Core);
        let aggregated: Vec<&str> = core
            .list("/items/0/versions/0/resources")
            .iter()
            .map(|entry| entry.text("/resource"))
            .collect();
        assert_eq!(names, aggregated);
        assert!(names.contains(&"pods") && !names.contains(&"replicationcontrollers"));
    }

    #[test]
    fn a_group_is_listed_once_with_all_its_versions() {
        let certificates = group("certificates.k8s.io").unwrap();
        assert_eq!(certificates["preferredVersion"]["version"], "v1");
        assert_eq!(certificates.list("/versions").len(), 2);
        let named = |half: &Value, pointer: &str| {
            half.to_string().matches(&format!("\"{pointer}\":\"certificates.k8s.io\"")).count()
        };
        assert_eq!(named(&groups(), "name"), 1);
        let beta = resources("certificates.k8s.io", "v1beta1").unwrap();
        assert_eq!(beta.list("/resources").len(), 1);
        assert_eq!(beta.text("/resources/0/name"), "clustertrustbundles");
    }

    #[test]
    fn groups_that_are_not_served_are_not_listed() {
        assert!(resources("apps", "v1").is_none());
        assert!(group("apps").is_none());
        assert!(!groups().to_string().contains("apps"));
    }
}
