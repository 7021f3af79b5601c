//! Manifests and indexes: foreign JSON in, checked values out (OCI image specification, *Image
//! Manifest* and *Image Index*; Docker schema 2).
//!
//! One parser for every source, so that the network and the store cannot read one document in two
//! ways: the media type must be the `Content-Type`, and a document that could be both a manifest and
//! an index is neither (CVE-2021-41190).

use serde::Deserialize;

use super::digest::{Digest, InvalidDigest};

/// The largest manifest, index or configuration that is read.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// The most layers of an image; overlayfs takes 500.
const MAX_LAYERS: usize = 128;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What is asked for when a manifest is fetched.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// Not the JSON that was expected.
    #[error("malformed document: {0}")]
    Json(#[from] serde_json::Error),
    /// A digest that is none.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// The media type differs from what the registry declared.
    #[error("media type {inner:?} differs from the content type {outer:?}")]
    MediaTypeMismatch {
        /// In the document.
        inner: String,
        /// In the response or the descriptor.
        outer: String,
    },
    /// A media type that is not supported there.
    #[error("unsupported media type {0:?}")]
    MediaType(String),
    /// Both a manifest and an index.
    #[error("ambiguous document: it has the fields of a manifest and of an index")]
    Ambiguous,
    /// Something a manifest or configuration must have is missing or out of range.
    #[error("{0}")]
    Shape(String),
    /// An index without this host's platform.
    #[error("no match for platform {0} in the index")]
    Platform(Platform),
}

/// Points at content: what it is, how long, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type.
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's length.
    pub size_bytes: u64,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// Manifests by platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// What it lists.
    pub entries: Vec<IndexEntry>,
}

/// One line of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest, or a nested index.
    pub descriptor: Descriptor,
    /// For which platform, when said.
    pub platform: Option<Platform>,
    /// `io.containerd.image.name`, or else `org.opencontainers.image.ref.name`: foreign text.
    pub name: Option<String>,
}

/// An operating system and architecture in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …; empty where there is one only.
    #[serde(default)]
    pub variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: String::new(),
        }
    }

    fn runs(&self, image: &Platform) -> bool {
        self.os == image.os && self.architecture == image.architecture
    }
}

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize)]
struct RawAnnotations {
    #[serde(rename = "io.containerd.image.name")]
    image_name: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    reference_name: Option<String>,
}

impl RawDescriptor {
    fn checked(self) -> Result<Descriptor, Invalid> {
        Ok(Descriptor {
            media_type: self.media_type,
            digest: Digest::try_from(self.digest)?,
            size_bytes: self.size,
        })
    }
}

/// Parses a manifest or an index. `declared` is the `Content-Type`, or the descriptor's media type.
///
/// # Errors
/// [`Invalid`], whenever the document could be read in more than one way.
pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Document, Invalid> {
    let raw: RawDocument = serde_json::from_slice(bytes)?;
    let declared = declared.map(|t| t.split(';').next().unwrap_or_default().trim());
    let media_type = match (&raw.media_type, declared) {
        (Some(inner), Some(outer)) if inner != outer => {
            return Err(Invalid::MediaTypeMismatch {
                inner: inner.clone(),
                outer: outer.to_owned(),
            });
        }
        (Some(inner), _) => inner.as_str(),
        (None, Some(outer)) => outer,
        (None, None) if raw.manifests.is_some() => OCI_INDEX,
        (None, None) => OCI_MANIFEST,
    };
    if raw.schema_version != 2 || raw.fs_layers.is_some() {
        return Err(Invalid::Shape("only schema version 2 is supported".into()));
    }
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(Invalid::Ambiguous);
    }
    match media_type {
        OCI_INDEX | DOCKER_LIST => {
            let entries = raw.manifests.ok_or_else(|| missing("manifests"))?;
            index(entries).map(Document::Index)
        }
        OCI_MANIFEST | DOCKER_MANIFEST => {
            let config = raw.config.ok_or_else(|| missing("config"))?;
            let layers = raw.layers.ok_or_else(|| missing("layers"))?;
            manifest(config, layers).map(Document::Manifest)
        }
        other => Err(Invalid::MediaType(other.to_owned())),
    }
}

fn missing(field: &str) -> Invalid {
    Invalid::Shape(format!("the field {field:?} is missing"))
}

fn index(entries: Vec<RawDescriptor>) -> Result<Index, Invalid> {
    let entry = |mut raw: RawDescriptor| {
        let platform = raw.platform.take();
        let name = raw.annotations.take().and_then(|a| a.image_name.or(a.reference_name));
        Ok(IndexEntry { descriptor: raw.checked()?, platform, name })
    };
    let entries = entries.into_iter().map(entry).collect::<Result<_, Invalid>>()?;
    Ok(Index { entries })
}

fn manifest(config: RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Manifest, Invalid> {
    let config = config.checked()?;
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(Invalid::MediaType(config.media_type));
    }
    if layers.len() > MAX_LAYERS {
        let message = format!("{} layers; at most {MAX_LAYERS} are supported", layers.len());
        return Err(Invalid::Shape(message));
    }
    let layers = layers.into_iter().map(RawDescriptor::checked).collect::<Result<Vec<_>, _>>()?;
    match layers.iter().find(|l| !LAYER_TYPES.contains(&l.media_type.as_str())) {
        Some(layer) => Err(Invalid::MediaType(layer.media_type.clone())),
        None => Ok(Manifest { config, layers }),
    }
}

impl Index {
    /// The entry for a platform; entries of unknown platform are taken only where there is one
    /// entry.
    ///
    /// # Errors
    /// [`Invalid::Platform`].
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, Invalid> {
        let fitting = |e: &&IndexEntry| e.platform.as_ref().is_some_and(|p| platform.runs(p));
        let unnamed = || match self.entries.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        };
        self.entries
            .iter()
            .find(fitting)
            .or_else(unnamed)
            .map(|entry| &entry.descriptor)
            .ok_or_else(|| Invalid::Platform(platform.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{HEX}","size":2}}"#)
    }

    fn manifest_json() -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(CONFIG_TYPES[0]),
            descriptor(LAYER_TYPES[1])
        )
    }

    #[test]
    fn a_manifest_is_read_with_and_without_a_content_type() {
        for declared in [
            None,
            Some(OCI_MANIFEST),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        ] {
            let document = parse(manifest_json().as_bytes(), declared).unwrap();
            assert!(matches!(document, Document::Manifest(m) if m.layers.len() == 1));
        }
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let manifest = descriptor(OCI_MANIFEST);
        let config = descriptor(CONFIG_TYPES[0]);
        let layer = descriptor(LAYER_TYPES[0]);
        for (body, declared) in [
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{manifest}],"layers":[{layer}]}}"#),
                Some(OCI_INDEX),
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{manifest}],"config":{config}}}"#),
                Some(OCI_INDEX),
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[],"config":{config}}}"#),
                Some(OCI_MANIFEST),
            ),
            (manifest_json(), Some(OCI_INDEX)),
            (manifest_json(), Some(DOCKER_MANIFEST)),
            (manifest_json(), Some("application/json")),
            (format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#), Some(OCI_MANIFEST)),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#), Some(OCI_INDEX)),
            (
                format!(r#"{{"schemaVersion":2,"config":{config},"config":{config},"layers":[]}}"#),
                None,
            ),
            (format!(r#"{{"schemaVersion":1,"config":{config},"layers":[]}}"#), None),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"fsLayers":[]}}"#), None),
            (format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[]}}"#), None),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{config}]}}"#), None),
        ] {
            assert!(parse(body.as_bytes(), declared).is_err(), "{body} {declared:?}");
        }
    }

    #[test]
    fn a_digest_that_is_a_path_is_refused() {
        let body = manifest_json().replace(HEX, "sha256:../../x");
        assert!(matches!(parse(body.as_bytes(), None), Err(Invalid::Digest(_))));
    }

    #[test]
    fn an_index_gives_the_hosts_platform_or_says_which_is_missing() {
        let entry = |arch: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{HEX}","size":2,"platform":{{"os":"linux","architecture":"{arch}"}}}}"#
            )
        };
        let body = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entry("amd64"));
        let Document::Index(index) = parse(body.as_bytes(), Some(OCI_INDEX)).unwrap() else {
            panic!("not an index");
        };
        let platform = |architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        assert!(index.choose(&platform("amd64")).is_ok());
        let error = index.choose(&platform("arm64")).unwrap_err();
        assert_eq!(error.to_string(), "no match for platform linux/arm64 in the index");
    }
}
