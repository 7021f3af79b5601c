//! The form an answer takes: plain objects, tables for people, or metadata alone; and the
//! conversion of events to their second API group.

use serde_json::{Value, json};

use super::query::Query;
use crate::failure::Failure;
use crate::object::ObjectExt;
use crate::resource::{Kind, Resource};
use crate::{admit, table};

/// What a client wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects.
    Object,
    /// Rows with columns; which part of the objects rides along.
    Table(Ride),
    /// Metadata alone.
    Metadata,
}

/// What rides along in the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ride {
    /// Nothing.
    Nothing,
    /// The metadata.
    Metadata,
    /// The whole object.
    Object,
}

impl Form {
    /// Chooses the first form of an `Accept` header that can be produced.
    ///
    /// # Errors
    /// 406 when there is none.
    pub(crate) fn negotiate(accept: &str, query: &Query) -> Result<Self, Failure> {
        if accept.trim().is_empty() {
            return Ok(Self::Object);
        }
        for option in accept.split(',') {
            let mut parts = option.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            if !matches!(media_type, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let parameter = |name: &str| {
                option
                    .split(';')
                    .filter_map(|part| part.trim().split_once('='))
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value)
            };
            let known = parameter("v").is_none_or(|version| version == "v1")
                && parameter("g").is_none_or(|group| group == "meta.k8s.io");
            match parameter("as") {
                None => return Ok(Self::Object),
                Some("Table") if known => return Ok(Self::Table(Ride::of(query)?)),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known => {
                    return Ok(Self::Metadata);
                }
                Some(_) => {}
            }
        }
        Err(Failure::not_acceptable())
    }
}

impl Ride {
    fn of(query: &Query) -> Result<Self, Failure> {
        match query.text("includeObject") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::Nothing),
            "Object" => Ok(Self::Object),
            other => {
                Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}")))
            }
        }
    }
}

/// An object as its resource's API group has it.
pub(crate) fn in_group(resource: &Resource, object: &Value) -> Value {
    let mut object = match (resource.kind, resource.group) {
        (Kind::Event, "events.k8s.io") => admit::events::from_core(object),
        _ => object.clone(),
    };
    resource.stamp(&mut object);
    object
}

/// One object in a form.
pub(crate) fn one(form: Form, resource: &Resource, object: &Value) -> Value {
    match form {
        Form::Object => in_group(resource, object),
        Form::Metadata => metadata_only(object),
        Form::Table(ride) => {
            let revision = object.text("/metadata/resourceVersion");
            let mut table = table::of(resource, [object].into_iter(), ride);
            table["metadata"] = json!({"resourceVersion": revision});
            table
        }
    }
}

/// A list in a form. `metadata` is the list's own.
pub(crate) fn many<'a>(
    form: Form,
    resource: &Resource,
    (metadata, items): (Value, impl Iterator<Item = &'a Value>),
) -> Value {
    match form {
        Form::Table(ride) => {
            let mut table = table::of(resource, items, ride);
            table["metadata"] = metadata;
            table
        }
        Form::Object => json!({
            "kind": format!("{}List", resource.kind_name),
            "apiVersion": resource.api_version(),
            "metadata": metadata,
            "items": items.map(|item| in_group(resource, item)).collect::<Vec<_>>(),
        }),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": items.map(metadata_only).collect::<Vec<_>>(),
        }),
    }
}

/// The metadata of an object, as an object of its own.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_gets_a_table_and_clients_get_objects() {
        let query = Query::default();
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;\
                       v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(Form::negotiate(kubectl, &query), Ok(Form::Table(Ride::Metadata)));
        let go = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(Form::negotiate(go, &query), Ok(Form::Object));
        assert_eq!(Form::negotiate("", &query), Ok(Form::Object));
        assert_eq!(Form::negotiate("text/html", &query).unwrap_err().code(), 406);
    }
}
