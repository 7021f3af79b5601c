//! OpenAPI v3 documents, one a group and version, as `kubectl explain`, client-side patching and
//! field validation look for them. Made on first use and kept.
//!
//! Differs: no v2 document (clients since 1.27 do not need one), and operations carry only the
//! parameters that clients look for.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::resource::{GROUPS, RESOURCES, Resource};
use crate::schema;

/// A document ready to be sent.
#[derive(Debug)]
pub(crate) struct Document {
    /// Path below `/openapi/v3/`.
    pub path: String,
    /// The JSON text.
    pub text: String,
    /// Changes when the text does.
    pub hash: String,
}

/// All documents.
pub(crate) fn documents() -> &'static [Document] {
    static DOCUMENTS: OnceLock<Vec<Document>> = OnceLock::new();
    DOCUMENTS
        .get_or_init(|| GROUPS.iter().map(|(group, version)| document(group, version)).collect())
}

/// The index that `/openapi/v3` answers with.
pub(crate) fn index() -> Value {
    let paths: Map<String, Value> = documents()
        .iter()
        .map(|d| {
            let url = format!("/openapi/v3/{}?hash={}", d.path, d.hash);
            (d.path.clone(), json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths })
}

fn root(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

fn document(group: &str, version: &str) -> Document {
    let path = root(group, version);
    let mut paths = Map::new();
    for resource in RESOURCES.iter().filter(|r| (r.group, r.version) == (group, version)) {
        add_paths(&mut paths, &path, resource);
    }
    let text = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::VERSION},
        "paths": paths,
        "components": {"schemas": schema::closure(group, version)},
    })
    .to_string();
    let digest = Sha256::digest(text.as_bytes());
    let hash = digest.iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    Document { path, text, hash }
}

fn add_paths(paths: &mut Map<String, Value>, root: &str, resource: &Resource) {
    let scope = if resource.is_namespaced() { "/namespaces/{namespace}" } else { "" };
    let collection = format!("/{root}{scope}/{}", resource.plural);
    let mut operations = json!({
        "get": operation(resource, "list"),
        "post": operation(resource, "post"),
        "delete": operation(resource, "deletecollection"),
    });
    operations["post"]["requestBody"] = body(resource, &["*/*"]);
    paths.insert(collection.clone(), operations);
    if resource.is_namespaced() {
        let everywhere = format!("/{root}/{}", resource.plural);
        paths.insert(everywhere, json!({"get": operation(resource, "list")}));
    }
    let mut operations = json!({
        "get": operation(resource, "get"),
        "put": operation(resource, "put"),
        "patch": operation(resource, "patch"),
        "delete": operation(resource, "delete"),
    });
    operations["put"]["requestBody"] = body(resource, &["*/*"]);
    operations["patch"]["requestBody"] = body(
        resource,
        &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ],
    );
    paths.insert(format!("{collection}/{{name}}"), operations);
}

fn operation(resource: &Resource, action: &str) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if matches!(action, "post" | "put" | "patch") {
        for name in ["dryRun", "fieldManager", "fieldValidation"] {
            parameters.push(json!({
                "name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true},
            }));
        }
    }
    let schema =
        json!({"$ref": format!("#/components/schemas/{}", schema::definition_of(resource))});
    let answer = match action {
        "list" | "deletecollection" => json!({"type": "object"}),
        _ => schema,
    };
    json!({
        "operationId": format!("{action}{}{}", resource.version, resource.kind_name),
        "tags": [resource.api_version()],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": resource.group, "kind": resource.kind_name, "version": resource.version,
        },
    })
}

fn body(resource: &Resource, media_types: &[&str]) -> Value {
    let content: Map<String, Value> = media_types
        .iter()
        .map(|media_type| {
            let schema = match *media_type {
                "*/*" => json!({
                    "$ref": format!("#/components/schemas/{}", schema::definition_of(resource)),
                }),
                _ => json!({"type": "object"}),
            };
            ((*media_type).to_owned(), json!({ "schema": schema }))
        })
        .collect();
    json!({"content": content, "required": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_a_document_with_its_paths_and_schemas() {
        assert_eq!(documents().len(), GROUPS.len());
        let core: Value = serde_json::from_str(&documents()[0].text).unwrap();
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"].is_object());
        assert!(index()["paths"]["api/v1"]["serverRelativeURL"].is_string());
    }
}
