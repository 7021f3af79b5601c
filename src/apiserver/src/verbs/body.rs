//! Request bodies: JSON text to values, field validation, options.

use bytes::Bytes;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::admit;
use crate::codec;
use crate::failure::Failure;
use crate::http::query::Query;
use crate::object::ObjectExt;
use crate::proto;
use crate::resource::{Kind, Resource};

/// A request body as it came.
#[derive(Debug)]
pub(crate) struct Body {
    /// The media type, lower case, without parameters.
    pub media_type: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// What to do about fields that do not exist, or exist twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    /// Drop them.
    Ignore,
    /// Drop them and tell the client.
    Warn,
    /// Refuse the object.
    Strict,
}

impl Validation {
    /// Reads `fieldValidation`.
    ///
    /// # Errors
    /// When it has another value.
    pub(crate) fn of(query: &Query) -> Result<Self, Failure> {
        match query.text("fieldValidation") {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(Failure::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \
                 \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Whether `dryRun=All` is asked for.
///
/// # Errors
/// When it has another value.
pub(crate) fn dry_run(query: &Query) -> Result<bool, Failure> {
    match query.text("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(Failure::bad_request(format!(
            "dryRun: Unsupported value: {other:?}: supported values: \"All\""
        ))),
    }
}

/// An object that was decoded, and what the client should be told about it.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The object in its canonical, stored form.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// JSON text, with the fields that it has twice.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The value; of a field that is there twice, the last one.
    pub value: Value,
    /// The paths of fields that are there twice.
    pub duplicates: Vec<String>,
}

/// Parses the body as JSON.
///
/// # Errors
/// 415 for other media types, 400 for text that is not JSON.
pub(crate) fn parse(body: &Body) -> Result<Parsed, Failure> {
    if body.media_type == proto::MEDIA_TYPE {
        let value = proto::decode(&body.bytes).map_err(|error| {
            Failure::bad_request(format!("couldn't decode the request body: {error}"))
        })?;
        return Ok(Parsed { value, duplicates: Vec::new() });
    }
    if !matches!(body.media_type.as_str(), "" | "application/json" | "text/json") {
        return Err(Failure::unsupported_media(format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/vnd.kubernetes.protobuf; got {}",
            body.media_type
        )));
    }
    parse_text(&body.bytes)
}

/// Parses JSON bytes of whatever media type.
///
/// # Errors
/// 400 for text that is not JSON.
pub(crate) fn parse_text(bytes: &[u8]) -> Result<Parsed, Failure> {
    let mut duplicates = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Collect { path: String::new(), duplicates: &mut duplicates };
    let value =
        seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)).map_err(
            |error| Failure::bad_request(format!("couldn't decode the request body: {error}")),
        )?;
    Ok(Parsed { value, duplicates })
}

/// Decodes an object of a resource: checks its type, finds unknown fields, makes it canonical.
///
/// # Errors
/// 400 for another type, mistyped fields, and with strict validation unknown ones.
pub(crate) fn decode(
    resource: &Resource,
    parsed: Parsed,
    validation: Validation,
) -> Result<Decoded, Failure> {
    let Parsed { mut value, duplicates } = parsed;
    check_type(resource, &value)?;
    let cannot = |why: String| {
        Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            resource.kind_name, resource.version, resource.kind_name
        ))
    };
    codec::quantities_to_text(&mut value);
    resource.stamp(&mut value);
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let mut kept = (resource.canonical)(&value).map_err(|error| cannot(error.to_string()))?;
    let mut warnings = Vec::new();
    if validation != Validation::Ignore {
        warnings.extend(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
        let unknown = codec::unknown_fields(&value, &kept);
        warnings.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
    }
    if validation == Validation::Strict && !warnings.is_empty() {
        return Err(cannot(format!("strict decoding error: {}", warnings.join(", "))));
    }
    if (resource.kind, resource.group) == (Kind::Event, "events.k8s.io") {
        kept = admit::events::to_core(&kept);
    }
    Ok(Decoded { object: kept, warnings })
}

fn check_type(resource: &Resource, value: &Value) -> Result<(), Failure> {
    let (kind, version) = (value.text("/kind"), value.text("/apiVersion"));
    if !value.is_object() {
        return Err(Failure::bad_request("the request body is not an object"));
    }
    if !kind.is_empty() && kind != resource.kind_name {
        return Err(Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): kind is {kind:?}",
            resource.kind_name
        )));
    }
    if !version.is_empty() && version != resource.api_version() {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            resource.api_version()
        )));
    }
    Ok(())
}

/// Builds a value and notes keys that occur twice in one object.
struct Collect<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Collect<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match seq.next_element_seed(Collect { path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = match self.path.as_str() {
                "" => key.clone(),
                path => format!("{path}.{key}"),
            };
            if members.contains_key(&key) {
                self.duplicates.push(path.clone());
            }
            let value = map.next_value_seed(Collect { path, duplicates: self.duplicates })?;
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::of;

    fn pod(text: &str, validation: Validation) -> Result<Decoded, Failure> {
        decode(of(Kind::Pod), parse_text(text.as_bytes()).unwrap(), validation)
    }

    #[test]
    fn unknown_and_duplicate_fields_are_refused_or_warned_about() {
        let text = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},
            "spec":{"foo":1,"containers":[],"nodeName":"a","nodeName":"b"}}"#;
        let error = pod(text, Validation::Strict).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate \
             field \"spec.nodeName\", unknown field \"spec.foo\""
        );
        let decoded = pod(text, Validation::Warn).unwrap();
        assert_eq!(decoded.warnings.len(), 2);
        assert!(!decoded.object.has("/spec/foo"));
        assert!(pod(text, Validation::Ignore).unwrap().warnings.is_empty());
    }

    #[test]
    fn another_type_or_broken_text_is_a_bad_request() {
        assert_eq!(pod(r#"{"kind":"Service"}"#, Validation::Warn).unwrap_err().code(), 400);
        assert_eq!(pod(r#"{"apiVersion":"v2"}"#, Validation::Warn).unwrap_err().code(), 400);
        assert_eq!(pod("[]", Validation::Warn).unwrap_err().code(), 400);
        assert!(parse_text(b"{\"a\":").is_err());
        assert!(parse_text("[".repeat(100_000).as_bytes()).is_err(), "deep nesting is refused");
    }
}
