//! Image references: Docker's grammar and its familiar short forms, normalized.
//!
//! `busybox` is `docker.io/library/busybox:latest`. The first part is a registry where it holds a
//! dot, a colon or an upper-case letter, or is `localhost`. The grammar is that of the distribution
//! project's `reference` package, which the kubelet uses to name `InvalidImageName`.

use std::fmt;
use std::net::Ipv4Addr;

use super::digest::Digest;
use crate::interface::ImageError;

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME_BYTES: usize = 255;

/// `registry[:port]`, as written in the reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(String);

/// `path/components` below a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Registry {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host and port that serve its API: Docker Hub's are not at its name.
    pub fn api_authority(&self) -> &str {
        match self.0.as_str() {
            DEFAULT_REGISTRY => "registry-1.docker.io",
            other => other,
        }
    }

    /// Whether it is on this machine's loopback, where plain HTTP is spoken.
    pub fn is_loopback(&self) -> bool {
        let host = match self.0.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.0.split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host == "::1"
            || host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
    }
}

impl Repository {
    /// As it stands in a URL's path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A normalized reference: a repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Where the image is served.
    pub registry: Registry,
    /// The repository there.
    pub repository: Repository,
    /// The tag; `latest` where neither tag nor digest was given.
    pub tag: Option<Tag>,
    /// The manifest's digest; it wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalizes.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`].
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|message| ImageError::InvalidName {
            reference: text.chars().take(1024).collect(),
            message: message.to_owned(),
        })
    }

    /// `registry/repository:tag`, when there is a tag.
    pub fn tagged(&self) -> Option<String> {
        let tag = self.tag.as_ref()?;
        Some(format!("{}:{}", self.name(), tag.as_str()))
    }

    /// `registry/repository@digest` for a manifest.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry.as_str(), self.repository.as_str())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{}", tag.as_str())?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

const FORMAT: &str = "invalid reference format";
const LOWERCASE: &str = "invalid reference format: repository name must be lowercase";

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() || text.len() > 4096 || !text.is_ascii() {
        return Err(FORMAT);
    }
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("invalid repository name: 64 hexadecimal digits are an image id");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = Digest::try_from(digest)
                .map_err(|_| "invalid reference format: not a sha256 digest")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last_component..].split_once(':') {
        Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
        None => (rest, None),
    };
    let tag = tag.map(parse_tag).transpose()?;
    let (registry, path) = split_registry(name);
    validate_registry(registry)?;
    validate_repository(&path)?;
    if registry.len() + 1 + path.len() > MAX_NAME_BYTES {
        return Err("repository name must not be more than 255 characters");
    }
    let tag = match (&tag, &digest) {
        (None, None) => Some(Tag("latest".to_owned())),
        _ => tag,
    };
    Ok(Reference {
        registry: Registry(registry.to_owned()),
        repository: Repository(path),
        tag,
        digest,
    })
}

fn split_registry(name: &str) -> (&str, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if registry == DEFAULT_REGISTRY && !path.contains('/') {
        (registry, format!("library/{path}"))
    } else {
        (registry, path.to_owned())
    }
}

fn validate_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(FORMAT)?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(FORMAT);
            }
            (None, after.strip_prefix(':').or((!after.is_empty()).then_some("")))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let host_is_valid = host.is_none_or(|host| host.split('.').all(label));
    let port_is_valid = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
    });
    if host_is_valid && port_is_valid { Ok(()) } else { Err(FORMAT) }
}

fn validate_repository(path: &str) -> Result<(), &'static str> {
    if path.split('/').all(is_path_component) {
        Ok(())
    } else if path.bytes().any(|b| b.is_ascii_uppercase())
        && path.to_ascii_lowercase().split('/').all(is_path_component)
    {
        Err(LOWERCASE)
    } else {
        Err(FORMAT)
    }
}

/// Runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|b| alphanumeric(*b))
        || !bytes.last().is_some_and(|b| alphanumeric(*b))
    {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn parse_tag(tag: &str) -> Result<Tag, &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid { Ok(Tag(tag.to_owned())) } else { Err(FORMAT) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_normalized_as_docker_does() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/app", "docker.io/library/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("Registry/app", "Registry/app:latest"),
            ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full, "{short}");
        }
    }

    #[test]
    fn a_digest_needs_no_tag_and_may_stand_beside_one() {
        let by_digest = Reference::parse(&format!("app@sha256:{HEX}")).unwrap();
        assert!(by_digest.tag.is_none() && by_digest.digest.is_some());
        let both = Reference::parse(&format!("app:v1@sha256:{HEX}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/app:v1@sha256:{HEX}"));
    }

    #[test]
    fn malformed_names_are_refused_with_upstreams_words() {
        let long = "a".repeat(300);
        let digest_traversal = "app@sha256:../../x";
        for bad in [
            "",
            ":tag",
            "app:",
            "app:.tag",
            "a..b",
            "a_-b",
            "-a",
            "a/",
            "/a",
            "a//b",
            "app@",
            "app@sha512:00",
            digest_traversal,
            "host:port/app",
            "host:0/app",
            "host:99999/app",
            "ho_st.x/app",
            "[::1/app",
            "[::1]5000/app",
            "app tag",
            "\u{e4}pp",
            "../etc/passwd",
            "http://host/app",
            HEX,
            &long,
        ] {
            let error = Reference::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("couldn't parse image name"), "{bad}: {error}");
        }
        let error = Reference::parse("BusyBox").unwrap_err().to_string();
        assert!(error.contains("must be lowercase"), "{error}");
    }

    #[test]
    fn only_loopback_registries_speak_plain_http() {
        for (name, loopback) in [
            ("localhost:5000/a", true),
            ("127.1.2.3:5000/a", true),
            ("[::1]:5000/a", true),
            ("127.0.0.1.example.com/a", false),
            ("localhost.example.com/a", false),
            ("10.0.0.1:5000/a", false),
        ] {
            assert_eq!(Reference::parse(name).unwrap().registry.is_loopback(), loopback);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let shown = reference.to_string();
                prop_assert_eq!(Reference::parse(&shown).unwrap(), reference);
            }
        }

        #[test]
        fn what_looks_like_a_reference_parses_to_itself(
            text in "[a-z]{1,5}(\\.[a-z]{2}(:[1-9][0-9]{0,3})?)(/[a-z0-9]{1,5}){1,3}:[a-zA-Z0-9_]{1,9}"
        ) {
            prop_assert_eq!(Reference::parse(&text).unwrap().to_string(), text);
        }
    }
}
