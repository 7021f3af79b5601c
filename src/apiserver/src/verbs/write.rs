//! create, update and patch. What is decided about an object (defaults, rules, allocations) is in
//! `admit`; here is the order in which it happens, inside one transaction.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, Body, Decoded, Validation};
use crate::admit::{self, Change};
use crate::api::{Api, Settings};
use crate::failure::{Cause, Failure};
use crate::http::access::Identity;
use crate::http::answer::{self, Answer};
use crate::http::handle::{Call, rendered};
use crate::http::route::Target;
use crate::object::{ObjectExt, new_uid, random_suffix, stamp};
use crate::patch::{self, Format};
use crate::rbac;
use crate::resource::{Kind, Resource, Subresource, key, of};
use crate::schema::Shape;
use crate::store::Tx;

/// How often a generated name is tried.
const NAME_TRIES: usize = 8;

/// Creates an object.
///
/// # Errors
/// 400, 403, 404 (namespace), 409, 422.
pub(crate) async fn create(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let dry = body::dry_run(&call.query)?;
    let validation = Validation::of(&call.query)?;
    let Decoded { object, warnings } =
        body::decode(target.resource, body::parse(body)?, validation)?;
    let creation = Creation {
        target: target.clone(),
        settings: Arc::clone(&api.settings),
        identity: Some(call.identity.clone()),
        dry,
    };
    let created = api.store.write(move |tx| creation.run(tx, object)).await?;
    let mut answer = rendered(call, target, (StatusCode::CREATED, &created));
    answer::warn(&mut answer, &warnings);
    Ok(answer)
}

/// A creation, ready to run in a transaction.
pub(crate) struct Creation {
    /// The collection to create in.
    pub target: Target,
    /// What was configured.
    pub settings: Arc<Settings>,
    /// Who creates; none for the server itself.
    pub identity: Option<Identity>,
    /// Whether nothing is to be stored.
    pub dry: bool,
}

impl Creation {
    /// Creates `object`, which has passed decoding.
    ///
    /// # Errors
    /// See [`create`].
    pub(crate) fn run(&self, tx: &mut Tx<'_>, mut object: Value) -> Result<Arc<Value>, Failure> {
        let resource = self.target.resource;
        self.place(tx, &mut object)?;
        for internal in
            ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
        {
            object.take_out(&format!("/metadata/{internal}"));
        }
        object.put("/metadata/uid", new_uid());
        object.put("/metadata/creationTimestamp", stamp(Timestamp::now()));
        admit::prepare_create(resource.kind, &mut object);
        admit::defaults(resource.kind, &mut object);
        if let Some(identity) = &self.identity {
            admit::check_creator(identity, resource, &object)?;
        }
        match resource.kind {
            Kind::Service => {
                admit::service::allocate(tx, &self.settings, (&mut object, None))?;
            }
            Kind::Pod => {
                admit_pod(tx, &mut object)
                    .map_err(|why| Failure::forbidden(resource, object.name(), &why))?;
                use_account(tx, &mut object)?;
            }
            Kind::CertificateSigningRequest => {
                admit::signing::stamp_asker(self.identity.as_ref(), &mut object);
            }
            _ => {}
        }
        let causes = admit::check_create(resource, &object);
        if !causes.is_empty() {
            return Err(Failure::invalid(resource, object.name(), &causes));
        }
        check_others(tx, (resource, &object))?;
        if let Some(identity) = &self.identity {
            check_grant(tx, identity, (resource, &object))?;
        }
        let key = resource.key(object.namespace(), object.name());
        if tx.get(&key).is_some() {
            return Err(Failure::already_exists(resource, object.name()));
        }
        Ok(if self.dry { Arc::new(object) } else { tx.put(&key, object) })
    }

    /// Gives the object its namespace and name.
    fn place(&self, tx: &Tx<'_>, object: &mut Value) -> Result<(), Failure> {
        let resource = self.target.resource;
        if !object.text("/metadata/resourceVersion").is_empty() {
            return Err(Failure::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if resource.is_namespaced() {
            let namespace = self.target.namespace.as_str();
            if namespace.is_empty() {
                return Err(Failure::bad_request(
                    "an empty namespace may not be set during creation",
                ));
            }
            if !matches!(object.namespace(), "") && object.namespace() != namespace {
                return Err(Failure::bad_request(
                    "the namespace of the provided object does not match the namespace sent on \
                     the request",
                ));
            }
            check_namespace(tx, (resource, object.name()), namespace)?;
            object.put("/metadata/namespace", namespace);
        } else {
            object.take_out("/metadata/namespace");
        }
        let base = object.text("/metadata/generateName").to_owned();
        if object.name().is_empty() && !base.is_empty() {
            let base: String = base.chars().take(58).collect();
            let free = (0..NAME_TRIES)
                .map(|_| format!("{base}{}", random_suffix()))
                .find(|name| tx.get(&resource.key(object.namespace(), name)).is_none())
                .ok_or_else(|| Failure::already_exists(resource, &base))?;
            object.put("/metadata/name", free);
        }
        Ok(())
    }
}

/// Nobody gives rights that they have not got.
fn check_grant(
    tx: &Tx<'_>,
    identity: &Identity,
    (resource, object): (&'static Resource, &Value),
) -> Result<(), Failure> {
    if rbac::may_grant(tx, identity, (resource.kind, object)) {
        return Ok(());
    }
    let user = &identity.user;
    let why = format!("user {user:?} is attempting to grant RBAC permissions not currently held");
    Err(Failure::forbidden(resource, object.name(), &why))
}

/// What a new pod gets from its classes and from the limit ranges of its namespace.
fn admit_pod(tx: &Tx<'_>, pod: &mut Value) -> Result<(), String> {
    let namespace = pod.namespace().to_owned();
    admit::use_priority_class(tx, pod)?;
    admit::use_runtime_class(tx, pod)?;
    admit::limit_range::admit_pod(tx, &namespace, pod)?;
    let class = admit::qos_class(pod);
    pod.put("/status/qosClass", class);
    Ok(())
}

/// Checks what other objects have to say.
fn check_others(
    tx: &Tx<'_>,
    (resource, object): (&'static Resource, &Value),
) -> Result<(), Failure> {
    let checked = match resource.kind {
        Kind::PriorityClass => admit::priority::check_default(tx, object),
        Kind::PersistentVolumeClaim if !object.is_terminating() => {
            admit::limit_range::admit_claim(tx, object.namespace(), object)
        }
        _ => Ok(()),
    };
    checked.map_err(|why| Failure::forbidden(resource, object.name(), &why))
}

/// The pod's service account must exist, and lends its pull secrets and a token. A mirror shows a pod
/// that runs from a file: it uses no object of the API, and nothing is added to it.
fn use_account(tx: &Tx<'_>, pod: &mut Value) -> Result<(), Failure> {
    if admit::is_mirror(pod) {
        return admit::check_mirror(pod)
            .map_err(|why| Failure::forbidden(of(Kind::Pod), pod.name(), why));
    }
    let name = pod.text("/spec/serviceAccountName");
    let Some(account) = tx.get(&key(Kind::ServiceAccount, pod.namespace(), name)) else {
        // The default one is made a moment after its namespace.
        return match name == "default" {
            true => Ok(()),
            false => Err(Failure::forbidden(
                of(Kind::Pod),
                pod.name(),
                &format!(
                    "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                    pod.namespace()
                ),
            )),
        };
    };
    admit::mount_token(&account, pod);
    let secrets = account.list("/imagePullSecrets");
    if pod.list("/spec/imagePullSecrets").is_empty() && !secrets.is_empty() {
        pod.put("/spec/imagePullSecrets", secrets.to_vec());
    }
    Ok(())
}

fn check_namespace(
    tx: &Tx<'_>,
    (resource, name): (&'static Resource, &str),
    namespace: &str,
) -> Result<(), Failure> {
    let found = tx
        .get(&key(Kind::Namespace, "", namespace))
        .ok_or_else(|| Failure::not_found(of(Kind::Namespace), namespace))?;
    match found.is_terminating() {
        true => Err(Failure::forbidden(
            resource,
            name,
            &format!(
                "unable to create new content in namespace {namespace} because it is being \
                 terminated"
            ),
        )),
        false => Ok(()),
    }
}

/// Replaces an object, or a subresource of it.
///
/// # Errors
/// 400, 403, 404, 409, 422.
pub(crate) async fn update(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let validation = Validation::of(&call.query)?;
    let Decoded { object, warnings } =
        body::decode(target.resource, body::parse(body)?, validation)?;
    let edit: Edit = Box::new(move |_| Ok((object, warnings)));
    edited(api, target, (call, edit)).await
}

/// Patches an object, or a subresource of it.
///
/// # Errors
/// Those of [`update`], and 415 for formats that are not served.
pub(crate) async fn patch(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let format = Format::of(&body.media_type).ok_or_else(|| match body.media_type.as_str() {
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            Failure::unsupported_media(format!(
                "server-side apply is not supported by this server; accepted media types are: {}",
                patch::MEDIA_TYPES
            ))
        }
        other => Failure::unsupported_media(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types \
             include: {}",
            patch::MEDIA_TYPES
        )),
    })?;
    let validation = Validation::of(&call.query)?;
    let mut patch = body::parse_text(&body.bytes)?;
    crate::codec::quantities_to_text(&mut patch.value);
    let resource = target.resource;
    let edit: Edit = Box::new(move |current| {
        let before = crate::http::form::in_group(resource, current);
        let applied = match format {
            Format::Json => patch::json::apply(&before, &patch.value),
            Format::Merge => Ok(patch::merge::apply(&before, &patch.value)),
            Format::Strategic => {
                patch::strategic::apply(&before, &patch.value, Shape::of(resource))
            }
        };
        let value = applied.map_err(|error| match error {
            patch::Error::Malformed(_) => Failure::bad_request(error.to_string()),
            patch::Error::Inapplicable(_) => Failure::unprocessable(error.to_string()),
        })?;
        let duplicates = patch.duplicates;
        let decoded = body::decode(resource, body::Parsed { value, duplicates }, validation)?;
        Ok((decoded.object, decoded.warnings))
    });
    edited(api, target, (call, edit)).await
}

type Edit = Box<dyn FnOnce(&Value) -> Result<(Value, Vec<String>), Failure> + Send>;

async fn edited(
    api: &Api,
    target: &Target,
    (call, edit): (&Call, Edit),
) -> Result<Answer, Failure> {
    let dry = body::dry_run(&call.query)?;
    let update = Update {
        target: target.clone(),
        settings: Arc::clone(&api.settings),
        identity: call.identity.clone(),
        dry,
    };
    let (object, warnings) = api
        .store
        .write(move |tx| {
            let current = update.current(tx)?;
            let (wanted, warnings) = edit(&current)?;
            Ok((update.run(tx, (&current, wanted))?, warnings))
        })
        .await?;
    let mut answer = rendered(call, target, (StatusCode::OK, &object));
    answer::warn(&mut answer, &warnings);
    Ok(answer)
}

/// A replacement, ready to run in a transaction.
struct Update {
    target: Target,
    settings: Arc<Settings>,
    identity: Identity,
    dry: bool,
}

impl Update {
    fn current(&self, tx: &Tx<'_>) -> Result<Arc<Value>, Failure> {
        let missing = || Failure::not_found(self.target.resource, &self.target.name);
        tx.get(&self.target.key()).ok_or_else(missing)
    }

    fn run(
        &self,
        tx: &mut Tx<'_>,
        (current, mut wanted): (&Value, Value),
    ) -> Result<Arc<Value>, Failure> {
        let resource = self.target.resource;
        self.check_identity(current, &wanted)?;
        admit::check_writer(&self.identity, resource, current)?;
        let change = match self.target.subresource {
            Some(Subresource::Status) => Change::Status,
            Some(Subresource::Finalize) => Change::Finalize,
            Some(Subresource::EphemeralContainers) => Change::EphemeralContainers,
            Some(Subresource::Approval) => Change::Approval,
            Some(Subresource::Resize) => Change::Resize,
            _ => Change::Main,
        };
        if change == Change::Resize && !current.is_terminating() {
            admit::limit_range::admit_pod(tx, &self.target.namespace, &mut wanted)
                .map_err(|why| Failure::forbidden(resource, current.name(), &why))?;
        }
        keep_metadata(current, &mut wanted);
        admit::prepare_update((resource, change), current, &mut wanted);
        admit::defaults(resource.kind, &mut wanted);
        if resource.kind == Kind::Service && change == Change::Main {
            admit::service::allocate(tx, &self.settings, (&mut wanted, Some(current)))?;
        }
        admit::bump_generation(resource.kind, current, &mut wanted);
        let causes = admit::check_update((resource, change), current, &wanted);
        if !causes.is_empty() {
            return Err(Failure::invalid(resource, &self.target.name, &causes));
        }
        if change == Change::Resize {
            check_room(tx, (resource, current), &wanted)?;
        }
        if change == Change::Main {
            check_others(tx, (resource, &wanted))?;
        }
        check_grant(tx, &self.identity, (resource, &wanted))?;
        if resource.kind == Kind::CertificateSigningRequest {
            admit::signing::check_right(tx, &self.identity, (change, current, &wanted))?;
        }
        wanted.put("/metadata/resourceVersion", current.text("/metadata/resourceVersion"));
        if self.dry || wanted == *current {
            return Ok(Arc::new(wanted));
        }
        let key = self.target.key();
        match admit::is_finished(resource.kind, &wanted) {
            true => {
                // The last form that watchers see has the finalizers gone.
                tx.put(&key, wanted);
                let missing = || Failure::not_found(resource, &self.target.name);
                tx.remove(&key).ok_or_else(missing)
            }
            false => Ok(tx.put(&key, wanted)),
        }
    }

    /// The object in the body must be the one at the path, in the form that was read.
    fn check_identity(&self, current: &Value, wanted: &Value) -> Result<(), Failure> {
        let Target { resource, name, namespace, .. } = &self.target;
        if wanted.name() != name {
            return Err(Failure::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                wanted.name()
            )));
        }
        if !matches!(wanted.namespace(), "") && wanted.namespace() != namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the \
                 request",
            ));
        }
        if !matches!(wanted.uid(), "") && wanted.uid() != current.uid() {
            return Err(Failure::conflict(
                resource,
                name,
                &format!(
                    "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                    wanted.uid(),
                    current.uid()
                ),
            ));
        }
        let revision = wanted.text("/metadata/resourceVersion");
        if matches!(revision, "" | "0") && admit::needs_revision(resource.kind) {
            let detail = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &json!(0), detail);
            return Err(Failure::invalid(resource, name, &[cause]));
        }
        if !matches!(revision, "" | "0") && revision != current.text("/metadata/resourceVersion") {
            return Err(Failure::modified(resource, name));
        }
        Ok(())
    }
}

/// A pod that has a node cannot become larger than it.
fn check_room(
    tx: &Tx<'_>,
    (resource, current): (&'static Resource, &Value),
    wanted: &Value,
) -> Result<(), Failure> {
    let name = wanted.text("/spec/nodeName");
    if name.is_empty() || wanted.get("spec") == current.get("spec") {
        return Ok(());
    }
    let why = match tx.get(&key(Kind::Node, "", name)) {
        Some(node) => admit::beyond_node(wanted, &node),
        None => Some(format!("node {name:?} not found")),
    };
    why.map_or(Ok(()), |why| Err(Failure::forbidden(resource, wanted.name(), &why)))
}

/// Metadata that only the server writes stays what it is.
fn keep_metadata(current: &Value, wanted: &mut Value) {
    for field in [
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        let pointer = format!("/metadata/{field}");
        match current.pointer(&pointer) {
            Some(value) => wanted.put(&pointer, value.clone()),
            None => {
                wanted.take_out(&pointer);
            }
        }
    }
}
