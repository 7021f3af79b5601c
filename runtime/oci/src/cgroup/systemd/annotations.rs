//! `org.systemd.property.*` annotations: properties of the unit, as runc and crun have them. Pure.
//!
//! Only annotations of a `config.json` given on the command line are read here. Whoever writes that file
//! decides about the host anyway. The agent never passes one on: nothing of an image or a pod becomes a
//! property of a unit (CVE-2022-0811 and its like).

use std::collections::HashMap;

use super::Property;
use crate::container::{Error, Result};
use crate::dbus::Value;

const PREFIX: &str = "org.systemd.property.";

/// The properties among `annotations`, by name.
pub(in crate::cgroup) fn properties(
    annotations: &HashMap<String, String>,
) -> Result<Vec<Property>> {
    let mut keys: Vec<_> = annotations.keys().filter(|key| key.starts_with(PREFIX)).collect();
    keys.sort();
    keys.into_iter().map(|key| property(key, &annotations[key])).collect()
}

fn property(key: &str, text: &str) -> Result<Property> {
    let refuse = |reason: &str| Error::invalid(format!("annotations[{key}]"), reason);
    let name = key.strip_prefix(PREFIX).unwrap_or_default();
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(refuse("is no name of a property"));
    }
    let value = parse(text).ok_or_else(|| refuse("has no value of a known type"))?;
    // Files say seconds where D-Bus says microseconds.
    match name.strip_suffix("Sec") {
        Some(stem) if stem.ends_with(|last: char| last.is_ascii_lowercase()) => {
            let value = microseconds(&value).ok_or_else(|| refuse("is no number of seconds"))?;
            Ok((format!("{stem}USec"), Value::Uint64(value)))
        }
        _ => Ok((name.to_owned(), value)),
    }
}

fn microseconds(value: &Value) -> Option<u64> {
    const SECOND: u64 = 1_000_000;
    let whole = |seconds: i64| u64::try_from(seconds).ok()?.checked_mul(SECOND);
    match *value {
        Value::Byte(seconds) => whole(seconds.into()),
        Value::Int16(seconds) => whole(seconds.into()),
        Value::Uint16(seconds) => whole(seconds.into()),
        Value::Int32(seconds) => whole(seconds.into()),
        Value::Uint32(seconds) => whole(seconds.into()),
        Value::Int64(seconds) => whole(seconds),
        Value::Uint64(seconds) => seconds.checked_mul(SECOND),
        Value::Double(seconds) if (0.0..1e13).contains(&seconds) => {
            Some((seconds * SECOND as f64) as u64)
        }
        _ => None,
    }
}

/// A value in GVariant's text form: numbers, booleans, quoted texts, lists of one type, each perhaps
/// after the name or signature of its type.
fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    if let Some(typed) = text.strip_prefix("@a") {
        let (element, list) = typed.split_once(' ')?;
        let name = match element {
            "y" => "byte",
            "b" => "boolean",
            "n" => "int16",
            "q" => "uint16",
            "i" => "int32",
            "u" => "uint32",
            "x" => "int64",
            "t" => "uint64",
            "d" => "double",
            "s" => "string",
            "o" => "objectpath",
            _ => return None,
        };
        return parse_list(list.trim(), |item| parse_typed(name, item), Some(element));
    }
    if text.starts_with('[') {
        return parse_list(text, parse, None);
    }
    match text.split_once(' ') {
        Some((name, rest)) if name.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            parse_typed(name, rest.trim())
        }
        _ => parse_bare(text),
    }
}

fn parse_bare(text: &str) -> Option<Value> {
    match text {
        "true" => Some(Value::Boolean(true)),
        "false" => Some(Value::Boolean(false)),
        _ if text.starts_with(['\'', '"']) => unquote(text).map(Value::Text),
        _ => text
            .parse()
            .map(Value::Int32)
            .ok()
            .or_else(|| finite(text).filter(|_| text.contains(['.', 'e'])).map(Value::Double)),
    }
}

fn finite(text: &str) -> Option<f64> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.');
    text.parse().ok().filter(|number: &f64| digits && number.is_finite())
}

fn parse_typed(name: &str, text: &str) -> Option<Value> {
    fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
        text.parse().ok()
    }
    match name {
        "byte" => match text.strip_prefix("0x") {
            Some(digits) => u8::from_str_radix(digits, 16).ok(),
            None => number(text),
        }
        .map(Value::Byte),
        "boolean" => parse_bare(text).filter(|value| matches!(value, Value::Boolean(_))),
        "int16" => number(text).map(Value::Int16),
        "uint16" => number(text).map(Value::Uint16),
        "int32" => number(text).map(Value::Int32),
        "uint32" => number(text).map(Value::Uint32),
        "int64" => number(text).map(Value::Int64),
        "uint64" => number(text).map(Value::Uint64),
        "double" => finite(text).map(Value::Double),
        "string" => unquote(text).map(Value::Text),
        "objectpath" => unquote(text).filter(|path| path.starts_with('/')).map(Value::Path),
        _ => None,
    }
}

fn unquote(text: &str) -> Option<String> {
    let mut characters = text.chars();
    let quote = characters.next().filter(|c| *c == '\'' || *c == '"')?;
    let mut result = String::new();
    loop {
        match characters.next()? {
            '\\' => result.push(match characters.next()? {
                'n' => '\n',
                't' => '\t',
                other @ ('\\' | '\'' | '"') => other,
                _ => return None,
            }),
            '\0' => return None,
            end if end == quote => break,
            other => result.push(other),
        }
    }
    characters.next().is_none().then_some(result)
}

fn parse_list(
    text: &str,
    item: impl Fn(&str) -> Option<Value>,
    element: Option<&str>,
) -> Option<Value> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut values = Vec::new();
    if !inner.is_empty() {
        for part in split_outside_quotes(inner) {
            values.push(item(part.trim())?);
        }
    }
    let signature = match (element, values.first()) {
        (Some(element), _) => element.to_owned(),
        (None, Some(first)) if !matches!(first, Value::Array(..)) => first.signature(),
        _ => return None,
    };
    let same = values.iter().all(|value| value.signature() == signature);
    same.then_some(Value::Array(signature, values))
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quote, mut escaped) = (0, None, false);
    for (index, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ',') => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, text: &str) -> Result<Property> {
        property(&format!("{PREFIX}{name}"), text)
    }

    #[test]
    fn values_have_the_types_that_their_text_says() {
        let texts = |list: &[&str]| {
            Value::Array("s".to_owned(), list.iter().map(|one| (*one).into()).collect())
        };
        for (text, expected) in [
            ("true", Value::Boolean(true)),
            ("5", Value::Int32(5)),
            ("uint64 123456789", Value::Uint64(123_456_789)),
            ("byte 0x1f", Value::Byte(0x1f)),
            ("2.5", Value::Double(2.5)),
            ("'inactive-or-failed'", "inactive-or-failed".into()),
            (r#""it's \"x\"""#, r#"it's "x""#.into()),
            ("['a, b', 'c']", texts(&["a, b", "c"])),
            ("@as ['x.service']", texts(&["x.service"])),
            ("@as []", texts(&[])),
            (
                "[uint32 1, uint32 2]",
                Value::Array("u".to_owned(), vec![Value::Uint32(1), Value::Uint32(2)]),
            ),
            ("objectpath '/a'", Value::Path("/a".to_owned())),
        ] {
            assert_eq!(one("Name", text).unwrap(), ("Name".to_owned(), expected), "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        for (text, expected) in [
            ("456", 456_000_000),
            ("byte 234", 234_000_000),
            ("234.5", 234_500_000),
            ("uint64 1", 1_000_000),
        ] {
            let expected = ("TimeoutStopUSec".to_owned(), Value::Uint64(expected));
            assert_eq!(one("TimeoutStopSec", text).unwrap(), expected, "{text}");
        }
        assert_eq!(one("FOOSec", "1").unwrap(), ("FOOSec".to_owned(), Value::Int32(1)));
        for text in ["false", "'x'", "-1", "uint64 18446744073709551615"] {
            assert!(one("TimeoutStopSec", text).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_names_and_values_are_refused() {
        for name in ["Xo", "Number1", "", "A.B", "Näme"] {
            assert!(one(name, "1").is_err(), "{name}");
        }
        for text in [
            "",
            "word",
            "'open",
            "'a'b",
            "[1, 'a']",
            "[]",
            "uint8 3",
            "byte 256",
            "inf",
            "@ax x",
            "[[1]]",
            "uint32 -1",
            "'a\0'",
        ] {
            assert!(one("Name", text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_annotations_are_left_alone_and_the_order_is_by_name() {
        let annotations = [
            ("org.systemd.property.Zed", "1"),
            ("org.systemd.property.Abc", "2"),
            ("org.systemd.propertyX", "bad"),
            ("other", "bad"),
        ];
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let names: Vec<_> =
            properties(&annotations.collect()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Abc", "Zed"]);
    }
}
