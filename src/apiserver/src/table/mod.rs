//! Tables, as `kubectl get` prints them (`meta.k8s.io/v1` Table): columns and cells of each kind
//! follow upstream's printers. The cells of pods, nodes and the rest are in modules of their own.

mod kinds;
mod pod;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::http::form::{self, Ride};
use crate::object::{ObjectExt, parse_stamp};
use crate::resource::{Kind, Resource};

/// When a column is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Always.
    Always,
    /// With `-o wide`.
    Wide,
}

type Column = (&'static str, &'static str, Width);

/// A table of objects of one resource.
pub(crate) fn of<'a>(
    resource: &Resource,
    items: impl Iterator<Item = &'a Value>,
    ride: Ride,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = items
        .map(|object| {
            let mut row = json!({ "cells": cells(resource.kind, object, now) });
            match ride {
                Ride::Nothing => {}
                Ride::Metadata => row["object"] = form::metadata_only(object),
                Ride::Object => row["object"] = form::in_group(resource, object),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns(resource.kind).iter().map(definition).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn definition((name, kind, width): &Column) -> Value {
    json!({
        "name": name,
        "type": kind,
        "format": if *name == "Name" { "name" } else { "" },
        "description": "",
        "priority": i32::from(*width == Width::Wide),
    })
}

fn columns(kind: Kind) -> &'static [Column] {
    use Width::{Always, Wide};
    match kind {
        Kind::Pod => &[
            ("Name", "string", Always),
            ("Ready", "string", Always),
            ("Status", "string", Always),
            ("Restarts", "string", Always),
            ("Age", "string", Always),
            ("IP", "string", Wide),
            ("Node", "string", Wide),
            ("Nominated Node", "string", Wide),
            ("Readiness Gates", "string", Wide),
        ],
        Kind::Service => &[
            ("Name", "string", Always),
            ("Type", "string", Always),
            ("Cluster-IP", "string", Always),
            ("External-IP", "string", Always),
            ("Port(s)", "string", Always),
            ("Age", "string", Always),
            ("Selector", "string", Wide),
        ],
        Kind::Node => &[
            ("Name", "string", Always),
            ("Status", "string", Always),
            ("Roles", "string", Always),
            ("Age", "string", Always),
            ("Version", "string", Always),
            ("Internal-IP", "string", Wide),
            ("External-IP", "string", Wide),
            ("OS-Image", "string", Wide),
            ("Kernel-Version", "string", Wide),
            ("Container-Runtime", "string", Wide),
        ],
        Kind::Endpoints => &[
            ("Name", "string", Always),
            ("Endpoints", "string", Always),
            ("Age", "string", Always),
        ],
        Kind::EndpointSlice => &[
            ("Name", "string", Always),
            ("AddressType", "string", Always),
            ("Ports", "string", Always),
            ("Endpoints", "string", Always),
            ("Age", "string", Always),
        ],
        Kind::ConfigMap => {
            &[("Name", "string", Always), ("Data", "integer", Always), ("Age", "string", Always)]
        }
        Kind::Secret => &[
            ("Name", "string", Always),
            ("Type", "string", Always),
            ("Data", "integer", Always),
            ("Age", "string", Always),
        ],
        Kind::ServiceAccount => {
            &[("Name", "string", Always), ("Secrets", "integer", Always), ("Age", "string", Always)]
        }
        Kind::PersistentVolume => &[
            ("Name", "string", Always),
            ("Capacity", "string", Always),
            ("Access Modes", "string", Always),
            ("Reclaim Policy", "string", Always),
            ("Status", "string", Always),
            ("Claim", "string", Always),
            ("StorageClass", "string", Always),
            ("Reason", "string", Always),
            ("Age", "string", Always),
            ("VolumeMode", "string", Wide),
        ],
        Kind::PersistentVolumeClaim => &[
            ("Name", "string", Always),
            ("Status", "string", Always),
            ("Volume", "string", Always),
            ("Capacity", "string", Always),
            ("Access Modes", "string", Always),
            ("StorageClass", "string", Always),
            ("Age", "string", Always),
            ("VolumeMode", "string", Wide),
        ],
        Kind::Role | Kind::ClusterRole | Kind::LimitRange => {
            &[("Name", "string", Always), ("Created At", "string", Always)]
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            &[("Name", "string", Always), ("Role", "string", Always), ("Age", "string", Always)]
        }
        Kind::Namespace => {
            &[("Name", "string", Always), ("Status", "string", Always), ("Age", "string", Always)]
        }
        Kind::Lease => {
            &[("Name", "string", Always), ("Holder", "string", Always), ("Age", "string", Always)]
        }
        Kind::CertificateSigningRequest => &[
            ("Name", "string", Always),
            ("Age", "string", Always),
            ("SignerName", "string", Always),
            ("Requestor", "string", Always),
            ("RequestedDuration", "string", Always),
            ("Condition", "string", Always),
        ],
        Kind::ClusterTrustBundle => &[("Name", "string", Always), ("SignerName", "string", Always)],
        Kind::PodTemplate => &[
            ("Name", "string", Always),
            ("Containers", "string", Always),
            ("Images", "string", Always),
            ("Pod Labels", "string", Always),
        ],
        Kind::PriorityClass => &[
            ("Name", "string", Always),
            ("Value", "integer", Always),
            ("Global-Default", "boolean", Always),
            ("Age", "string", Always),
            ("PreemptionPolicy", "string", Always),
        ],
        Kind::RuntimeClass => {
            &[("Name", "string", Always), ("Handler", "string", Always), ("Age", "string", Always)]
        }
        Kind::Event => &[
            ("Last Seen", "string", Always),
            ("Type", "string", Always),
            ("Reason", "string", Always),
            ("Object", "string", Always),
            ("Subobject", "string", Wide),
            ("Source", "string", Wide),
            ("Message", "string", Always),
            ("First Seen", "string", Wide),
            ("Count", "integer", Wide),
            ("Name", "string", Wide),
        ],
    }
}

fn cells(kind: Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let age = age(object.text("/metadata/creationTimestamp"), now);
    let entries = |pointer: &str| object.map(pointer).map_or(0, Map::len);
    match kind {
        Kind::Pod => pod::cells(object, now),
        Kind::Service => kinds::service(object, age),
        Kind::Node => kinds::node(object, age),
        Kind::Endpoints => kinds::endpoints(object, age),
        Kind::EndpointSlice => kinds::slice(object, age),
        Kind::Event => kinds::event(object, now),
        Kind::ConfigMap => {
            vec![
                object.name().into(),
                (entries("/data") + entries("/binaryData")).into(),
                age.into(),
            ]
        }
        Kind::Secret => vec![
            object.name().into(),
            object.text("/type").into(),
            entries("/data").into(),
            age.into(),
        ],
        Kind::ServiceAccount => {
            vec![object.name().into(), object.list("/secrets").len().into(), age.into()]
        }
        Kind::Namespace => {
            vec![object.name().into(), object.text("/status/phase").into(), age.into()]
        }
        Kind::PersistentVolume => kinds::volume(object, age),
        Kind::PersistentVolumeClaim => kinds::claim(object, age),
        Kind::Role | Kind::ClusterRole | Kind::LimitRange => {
            vec![object.name().into(), object.text("/metadata/creationTimestamp").into()]
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let role = |field: &str| object.text(&format!("/roleRef/{field}")).to_owned();
            let role = format!("{}/{}", role("kind"), role("name"));
            vec![object.name().into(), role.into(), age.into()]
        }
        Kind::CertificateSigningRequest => kinds::signing_request(object, age),
        Kind::ClusterTrustBundle => {
            let signer = Some(object.text("/spec/signerName")).filter(|name| !name.is_empty());
            vec![object.name().into(), signer.unwrap_or("<none>").into()]
        }
        Kind::Lease => {
            vec![object.name().into(), object.text("/spec/holderIdentity").into(), age.into()]
        }
        Kind::PodTemplate => kinds::pod_template(object),
        Kind::PriorityClass => vec![
            object.name().into(),
            object.int("/value").unwrap_or(0).into(),
            object.flag("/globalDefault").into(),
            age.into(),
            object.text("/preemptionPolicy").into(),
        ],
        Kind::RuntimeClass => {
            vec![object.name().into(), object.text("/handler").into(), age.into()]
        }
    }
}

/// How long ago a time was.
fn age(text: &str, now: Timestamp) -> String {
    match parse_stamp(text) {
        Some(then) => duration(now.as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

/// A duration as people read it: the two largest units at most, fewer as it grows.
fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |large: i64, unit: &str, (small, small_unit): (i64, &str)| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", (seconds % 60, "s")),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", (minutes % 60, "m")),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(hours / 24, "d", (hours % 24, "h")),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", (hours / 24 % 365, "d")),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// The text, or a placeholder for none.
fn or<'a>(text: &'a str, none: &'a str) -> &'a str {
    if text.is_empty() { none } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{RESOURCES, of as resource_of};

    #[test]
    fn every_kind_has_as_many_cells_as_columns() {
        for resource in RESOURCES {
            let row = cells(resource.kind, &json!({"metadata": {"name": "x"}}), Timestamp::now());
            assert_eq!(row.len(), columns(resource.kind).len(), "{}", resource.plural);
        }
    }

    #[test]
    fn durations_lose_precision_as_they_grow() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (9 * 86_400, "9d"),
            (3 * 365 * 86_400, "3y"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_table_carries_metadata_unless_told_otherwise() {
        let pod = json!({"metadata": {"name": "x"}});
        let table = of(resource_of(Kind::Pod), [&pod].into_iter(), Ride::Metadata);
        assert_eq!(table.text("/rows/0/object/kind"), "PartialObjectMetadata");
        let bare = of(resource_of(Kind::Pod), [&pod].into_iter(), Ride::Nothing);
        assert!(!bare.has("/rows/0/object"));
    }
}
