//! The ConfigMaps, Secrets and volume claims that a pod refers to, and what fetching them gave.
//!
//! [`references`] lists what to fetch; environment, volumes and image credentials are then resolved
//! from a [`Fetched`] without any I/O. The texts are the API server's own, since users search for
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};

/// Which kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A PersistentVolumeClaim.
    Claim,
    /// All ClusterTrustBundles together, which have no namespace.
    TrustBundles,
}

impl Kind {
    /// As the API server writes it in messages: `configmap`, `secret`.
    pub fn noun(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Claim => "persistentvolumeclaim",
            Self::TrustBundles => "clustertrustbundle",
        }
    }

    /// The resource in API paths: `configmaps`, `secrets`.
    pub fn resource(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Claim => "persistentvolumeclaims",
            Self::TrustBundles => "clustertrustbundles",
        }
    }
}

/// Names an object of the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// Names a ConfigMap.
    pub fn config_map(name: impl Into<String>) -> Self {
        Self { kind: Kind::ConfigMap, name: name.into() }
    }

    /// Names a PersistentVolumeClaim.
    pub fn claim(name: impl Into<String>) -> Self {
        Self { kind: Kind::Claim, name: name.into() }
    }

    /// Names the ClusterTrustBundles.
    pub fn trust_bundles() -> Self {
        Self { kind: Kind::TrustBundles, name: "*".to_owned() }
    }

    /// Names a Secret.
    pub fn secret(name: impl Into<String>) -> Self {
        Self { kind: Kind::Secret, name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.noun(), self.name)
    }
}

/// What asking for one object gave.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// The Secret.
    Secret(Arc<Secret>),
    /// The PersistentVolumeClaim.
    Claim(Arc<PersistentVolumeClaim>),
    /// The ClusterTrustBundles.
    TrustBundles(Arc<TrustBundles>),
    /// The API server has no such object.
    NotFound,
    /// It could not be asked, or refused; the text says why.
    Failed(String),
}

/// All ClusterTrustBundles.
#[derive(Debug, Default)]
pub struct TrustBundles {
    /// Changes with any of them.
    pub version: String,
    /// In the order of their names.
    pub all: Vec<ClusterTrustBundle>,
}

impl FromIterator<ClusterTrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = ClusterTrustBundle>>(bundles: I) -> Self {
        let mut all: Vec<_> = bundles.into_iter().collect();
        all.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        let versions = all.iter().map(|bundle| {
            let version = bundle.metadata.resource_version.as_deref().unwrap_or_default();
            format!("{}@{version}", bundle.metadata.name.as_deref().unwrap_or_default())
        });
        let version = versions.collect::<Vec<_>>().join(",");
        Self { version, all }
    }
}

/// Why an object is not at hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The API server has no such object.
    #[error("{0} not found")]
    NotFound(ObjectRef),
    /// Nobody has asked for it yet.
    #[error("failed to sync {} cache: timed out waiting for the condition", .0.kind.noun())]
    NotFetched(ObjectRef),
    /// Asking failed.
    #[error("{message}")]
    Failed {
        /// The object.
        object: ObjectRef,
        /// What the API server or the network said.
        message: String,
    },
}

/// What looking for a file of variables gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvFile {
    /// What it holds.
    Text(String),
    /// The volume has no such file.
    Missing,
    /// The pod has no such volume of its own.
    NoVolume,
    /// It is no file that can be read; the log says why.
    Unreadable,
}

/// The objects of one pod's namespace, as far as they were fetched, and files of its volumes.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    lookups: BTreeMap<ObjectRef, Lookup>,
    /// Files of variables, by volume and path.
    files: BTreeMap<(String, String), EnvFile>,
    /// The volumes that claims are bound to, by their names, or why they cannot be had.
    bound: BTreeMap<String, Result<Arc<PersistentVolume>, String>>,
}

impl Fetched {
    /// Records what asking for an object gave.
    pub fn insert(&mut self, object: ObjectRef, lookup: Lookup) {
        self.lookups.insert(object, lookup);
    }

    /// The names of the volumes that claims are bound to.
    pub fn bound_names(&self) -> BTreeSet<String> {
        let claims = self.lookups.values().filter_map(|lookup| match lookup {
            Lookup::Claim(claim) => claim.spec.as_ref()?.volume_name.clone(),
            _ => None,
        });
        claims.filter(|name| !name.is_empty()).collect()
    }

    /// Records what asking for a PersistentVolume gave.
    pub fn insert_bound(&mut self, name: String, volume: Result<Arc<PersistentVolume>, String>) {
        self.bound.insert(name, volume);
    }

    /// A PersistentVolume.
    pub fn bound(&self, name: &str) -> Option<&Result<Arc<PersistentVolume>, String>> {
        self.bound.get(name)
    }

    /// Records what looking for files of variables gave.
    pub fn insert_files(&mut self, files: Vec<((String, String), EnvFile)>) {
        self.files.extend(files);
    }

    /// A file of variables.
    pub fn file(&self, volume: &str, path: &str) -> &EnvFile {
        let found = self.files.get(&(volume.to_owned(), path.to_owned()));
        found.unwrap_or(&EnvFile::NoVolume)
    }

    /// A PersistentVolumeClaim.
    pub fn claim(&self, name: &str) -> Result<&PersistentVolumeClaim, ObjectError> {
        let object = ObjectRef::claim(name);
        match self.lookups.get(&object) {
            Some(Lookup::Claim(claim)) => Ok(claim),
            other => Err(failure(object, other)),
        }
    }

    /// The ClusterTrustBundles; none where the API server does not serve them.
    pub fn trust_bundles(&self) -> Result<&[ClusterTrustBundle], ObjectError> {
        let object = ObjectRef::trust_bundles();
        match self.lookups.get(&object) {
            Some(Lookup::TrustBundles(bundles)) => Ok(&bundles.all),
            Some(Lookup::NotFound) => Ok(&[]),
            other => Err(failure(object, other)),
        }
    }

    /// A ConfigMap.
    pub fn config_map(&self, name: &str) -> Result<&ConfigMap, ObjectError> {
        let object = ObjectRef::config_map(name);
        match self.lookups.get(&object) {
            Some(Lookup::ConfigMap(config_map)) => Ok(config_map),
            other => Err(failure(object, other)),
        }
    }

    /// A Secret.
    pub fn secret(&self, name: &str) -> Result<&Secret, ObjectError> {
        let object = ObjectRef::secret(name);
        match self.lookups.get(&object) {
            Some(Lookup::Secret(secret)) => Ok(secret),
            other => Err(failure(object, other)),
        }
    }
}

impl FromIterator<(ObjectRef, Lookup)> for Fetched {
    fn from_iter<I: IntoIterator<Item = (ObjectRef, Lookup)>>(iter: I) -> Self {
        Self { lookups: iter.into_iter().collect(), ..Self::default() }
    }
}

fn failure(object: ObjectRef, lookup: Option<&Lookup>) -> ObjectError {
    match lookup {
        Some(Lookup::NotFound) => ObjectError::NotFound(object),
        Some(Lookup::Failed(message)) => ObjectError::Failed { object, message: message.clone() },
        None
        | Some(
            Lookup::ConfigMap(_) | Lookup::Secret(_) | Lookup::Claim(_) | Lookup::TrustBundles(_),
        ) => ObjectError::NotFetched(object),
    }
}

/// Takes an optional object's absence for what it is; other failures stay.
pub fn allow_missing<T>(
    lookup: Result<T, ObjectError>,
    optional: Option<bool>,
) -> Result<Option<T>, ObjectError> {
    match lookup {
        Ok(object) => Ok(Some(object)),
        Err(ObjectError::NotFound(_)) if optional == Some(true) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every object that a pod's environment, volumes and pull secrets name.
pub fn references(pod: &Pod) -> BTreeSet<ObjectRef> {
    let mut found = BTreeSet::new();
    let Some(spec) = &pod.spec else { return found };
    let init = spec.init_containers.iter().flatten();
    for container in init.chain(&spec.containers) {
        container_references(container, &mut found);
    }
    for volume in spec.volumes.iter().flatten() {
        references_of_volume(pod, volume, &mut found);
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.insert(ObjectRef::secret(&secret.name));
    }
    found.retain(|object| !object.name.is_empty());
    found
}

/// The objects that a pod's volumes are filled from.
pub fn volume_references(pod: &Pod) -> BTreeSet<ObjectRef> {
    let mut found = BTreeSet::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        references_of_volume(pod, volume, &mut found);
    }
    found.retain(|object| !object.name.is_empty());
    found
}

fn container_references(container: &Container, found: &mut BTreeSet<ObjectRef>) {
    for source in container.env_from.iter().flatten() {
        found.extend(source.config_map_ref.iter().map(|r| ObjectRef::config_map(&r.name)));
        found.extend(source.secret_ref.iter().map(|r| ObjectRef::secret(&r.name)));
    }
    let sources = container.env.iter().flatten().filter_map(|v| v.value_from.as_ref());
    for source in sources {
        found.extend(source.config_map_key_ref.iter().map(|r| ObjectRef::config_map(&r.name)));
        found.extend(source.secret_key_ref.iter().map(|r| ObjectRef::secret(&r.name)));
    }
}

/// The claim that a volume stands for: the one it names, or the pod's own for a generic ephemeral volume.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

fn references_of_volume(pod: &Pod, volume: &Volume, found: &mut BTreeSet<ObjectRef>) {
    found.extend(volume.config_map.iter().map(|v| ObjectRef::config_map(&v.name)));
    let secret = volume.secret.iter().filter_map(|v| v.secret_name.as_ref());
    found.extend(secret.map(ObjectRef::secret));
    found.extend(claim_name(pod, volume).map(|name| ObjectRef::claim(&name)));
    let projected = volume.projected.iter().flat_map(|v| v.sources.iter().flatten());
    for source in projected {
        found.extend(source.config_map.iter().map(|s| ObjectRef::config_map(&s.name)));
        found.extend(source.secret.iter().map(|s| ObjectRef::secret(&s.name)));
        found.extend(source.cluster_trust_bundle.iter().map(|_| ObjectRef::trust_bundles()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_names_an_object_is_found() {
        let pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "from-cm"}}, {"secretRef": {"name": "from-s"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key-cm", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "key-s", "key": "k"}}},
            ]}],
            "volumes": [
                {"name": "v1", "configMap": {"name": "vol-cm"}},
                {"name": "v2", "secret": {"secretName": "vol-s"}},
                {"name": "v3", "projected": {"sources": [{"configMap": {"name": "proj-cm"}}, {"secret": {"name": "proj-s"}}]}},
            ],
        }}))
        .unwrap();
        let found: Vec<_> = references(&pod).into_iter().map(|r| r.name).collect();
        let expected = [
            "from-cm", "key-cm", "proj-cm", "vol-cm", "from-s", "key-s", "proj-s", "pull", "vol-s",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn failures_read_as_upstream_writes_them() {
        let mut fetched = Fetched::default();
        assert_eq!(
            fetched.config_map("x").unwrap_err().to_string(),
            "failed to sync configmap cache: timed out waiting for the condition"
        );
        fetched.insert(ObjectRef::config_map("x"), Lookup::NotFound);
        let error = fetched.config_map("x").unwrap_err();
        assert_eq!(error.to_string(), "configmap \"x\" not found");
        assert!(allow_missing::<()>(Err(error.clone()), Some(true)).unwrap().is_none());
        assert!(allow_missing::<()>(Err(error), None).is_err());
        fetched.insert(ObjectRef::secret("y"), Lookup::Failed("forbidden".into()));
        let error = fetched.secret("y").unwrap_err();
        assert_eq!(error.to_string(), "forbidden");
        assert!(allow_missing::<()>(Err(error), Some(true)).is_err());
    }
}
