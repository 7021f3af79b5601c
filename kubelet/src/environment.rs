//! A container's environment: `envFrom`, `env`, and the variables that announce Services.
//!
//! Pure: objects were fetched and files read before ([`crate::objects`]). Order is kept: `envFrom` in order of
//! declaration and key, then `env`, then what Services add. A later definition of a name replaces the
//! value and keeps the place.
//!
//! Differs: upstream's order is that of a Go map, thus random; ours is fixed, so that a restarted
//! container sees the same environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource, FileKeySelector};

use crate::downward::{self, DownwardError, Facts, Place};
use crate::expansion;
use crate::objects::{EnvFile, Fetched, Kind, ObjectError, allow_missing};

mod env_file;
mod service_links;

pub(crate) use service_links::ServiceObject;
pub use service_links::{Service, ServicePort, service_variables};

/// Why a container cannot have its environment: its waiting reason is `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A ConfigMap or Secret is missing.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The object has no such key.
    #[error("couldn't find key {key} in {} {namespace}/{name}", kind_title(*.kind))]
    MissingKey {
        /// The object's kind.
        kind: Kind,
        /// The pod's namespace.
        namespace: String,
        /// The object.
        name: String,
        /// The key.
        key: String,
    },
    /// The API server has not told of them yet.
    #[error("services have not yet been read at least once, cannot construct envvars")]
    ServicesUnknown,
    /// A field or resource cannot be read.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A file of variables is in a volume that is not there, or not the pod's own.
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    /// A file of variables cannot be read, or is none.
    #[error("couldn't parse env file")]
    BadFile,
    /// A file of variables has no such key, or is missing.
    #[error("environment variable key {key:?} not found in file {path:?} of volume {volume:?}")]
    MissingFileKey {
        /// The volume.
        volume: String,
        /// The path in it.
        path: String,
        /// The key.
        key: String,
    },
    /// A value source that is not supported.
    #[error("environment variable {0:?} has a source that is not supported")]
    UnsupportedSource(String),
    /// The kernel's environment cannot hold this.
    #[error("environment variable {0:?} contains a NUL byte, or its name an equals sign")]
    Unrepresentable(String),
    /// A value that is not text.
    #[error("environment variable {0:?} is not valid UTF-8")]
    NotText(String),
}

fn kind_title(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => "ConfigMap",
        Kind::Secret => "Secret",
        Kind::Claim => "PersistentVolumeClaim",
        Kind::TrustBundles => "ClusterTrustBundle",
    }
}

/// Variables in their final order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Environment {
    /// One that was resolved before.
    fn known(variables: Vec<(String, String)>) -> Self {
        let index = variables.iter().enumerate().map(|(at, (name, _))| (name.clone(), at));
        Self { index: index.collect(), variables }
    }

    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let position = self.index.get(name)?;
        self.variables.get(*position).map(|(_, value)| value.as_str())
    }

    /// All variables in order.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), EnvironmentError> {
        let unrepresentable = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
        if unrepresentable {
            return Err(EnvironmentError::Unrepresentable(name.to_owned()));
        }
        match self.index.get(name) {
            Some(position) => self.variables[*position].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.variables.len());
                self.variables.push((name.to_owned(), value));
            }
        }
        Ok(())
    }
}

/// Resolves a container's environment. `services` are those of the whole cluster or of the pod's
/// namespace and `default`.
pub fn resolve(
    container: &Container,
    facts: &Facts<'_>,
    fetched: &Fetched,
    services: &[Service],
) -> Result<Environment, EnvironmentError> {
    let links = link_variables(facts, services);
    let mut environment = Environment::default();
    for source in container.env_from.iter().flatten() {
        take_all(&mut environment, source, fetched)?;
    }
    for variable in container.env.iter().flatten() {
        let value = match (variable.value.as_deref(), &variable.value_from) {
            (Some(text), _) if !text.is_empty() => Some(expansion::expand(text, |name| {
                environment.get(name).or_else(|| links.get(name).map(String::as_str))
            })),
            (_, Some(source)) => {
                let place = Variable { name: &variable.name, container: &container.name };
                from_source(place, source, facts, fetched)?
            }
            (_, None) => Some(String::new()),
        };
        if let Some(value) = value {
            environment.set(&variable.name, value)?;
        }
    }
    for (name, value) in links {
        if environment.get(&name).is_none() {
            environment.set(&name, value)?;
        }
    }
    Ok(environment)
}

/// The same where Services may be unknown: a container keeps what it had in its run before, so that an
/// API server that is away keeps none from running again, and a new one has to wait.
pub fn resolve_or_keep(
    container: &Container,
    facts: &Facts<'_>,
    fetched: &Fetched,
    services: Option<&[Service]>,
    before: Option<Vec<(String, String)>>,
) -> Result<Environment, EnvironmentError> {
    match (services, before) {
        (Some(services), _) => resolve(container, facts, fetched, services),
        (None, Some(before)) => Ok(Environment::known(before)),
        (None, None) => Err(EnvironmentError::ServicesUnknown),
    }
}

fn link_variables(facts: &Facts<'_>, services: &[Service]) -> BTreeMap<String, String> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or("default");
    let spec = facts.pod.spec.as_ref();
    let linked = spec.and_then(|spec| spec.enable_service_links) != Some(false);
    let visible = service_links::visible_to(namespace, services, linked);
    visible.flat_map(service_variables).collect()
}

fn take_all(
    environment: &mut Environment,
    source: &EnvFromSource,
    fetched: &Fetched,
) -> Result<(), EnvironmentError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    if let Some(reference) = &source.config_map_ref {
        let found = allow_missing(fetched.config_map(&reference.name), reference.optional)?;
        for (key, value) in found.and_then(|c| c.data.as_ref()).into_iter().flatten() {
            environment.set(&format!("{prefix}{key}"), value.clone())?;
        }
    } else if let Some(reference) = &source.secret_ref {
        let found = allow_missing(fetched.secret(&reference.name), reference.optional)?;
        for (key, value) in found.and_then(|s| s.data.as_ref()).into_iter().flatten() {
            let name = format!("{prefix}{key}");
            let value = text(&name, &value.0)?;
            environment.set(&name, value)?;
        }
    }
    Ok(())
}

/// The variable being resolved.
#[derive(Clone, Copy)]
struct Variable<'a> {
    name: &'a str,
    container: &'a str,
}

/// The value of a source; `None` is an optional one that is not there, which leaves the variable out.
fn from_source(
    variable: Variable<'_>,
    source: &EnvVarSource,
    facts: &Facts<'_>,
    fetched: &Fetched,
) -> Result<Option<String>, EnvironmentError> {
    let missing_key = |kind, name: &str, key: &str| EnvironmentError::MissingKey {
        kind,
        namespace: facts.pod.metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(selector) = &source.field_ref {
        return Ok(Some(downward::field(facts, selector, Place::Environment)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        let value = downward::resource_field(facts, selector, variable.container)?;
        return Ok(Some(value));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let found = allow_missing(fetched.config_map(&selector.name), selector.optional)?;
        let Some(config_map) = found else { return Ok(None) };
        let value = config_map.data.as_ref().and_then(|data| data.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if selector.optional == Some(true) => Ok(None),
            None => Err(missing_key(Kind::ConfigMap, &selector.name, &selector.key)),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let found = allow_missing(fetched.secret(&selector.name), selector.optional)?;
        let Some(secret) = found else { return Ok(None) };
        let value = secret.data.as_ref().and_then(|data| data.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(text(variable.name, &value.0)?)),
            None if selector.optional == Some(true) => Ok(None),
            None => Err(missing_key(Kind::Secret, &selector.name, &selector.key)),
        };
    }
    if let Some(selector) = &source.file_key_ref {
        return from_file(selector, fetched);
    }
    Err(EnvironmentError::UnsupportedSource(variable.name.to_owned()))
}

/// Differs: as the API says, an optional file may be missing, and an empty value is one; the kubelet
/// fails the first and takes the second for missing.
fn from_file(
    selector: &FileKeySelector,
    fetched: &Fetched,
) -> Result<Option<String>, EnvironmentError> {
    let FileKeySelector { key, optional, path, volume_name } = selector;
    let found = match fetched.file(volume_name, path) {
        EnvFile::Text(text) => env_file::find(text, key).map_err(|error| {
            tracing::warn!(volume = volume_name, path, %error, "not a file of variables");
            EnvironmentError::BadFile
        })?,
        EnvFile::Missing => None,
        EnvFile::NoVolume => return Err(EnvironmentError::NoVolume(volume_name.clone())),
        EnvFile::Unreadable => return Err(EnvironmentError::BadFile),
    };
    match found {
        None if *optional != Some(true) => Err(EnvironmentError::MissingFileKey {
            volume: volume_name.clone(),
            path: path.clone(),
            key: key.clone(),
        }),
        found => Ok(found),
    }
}

fn text(name: &str, bytes: &[u8]) -> Result<String, EnvironmentError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(EnvironmentError::NotText(name.to_owned())),
    }
}

#[cfg(test)]
mod tests;
