//! D-Bus messages: a header, and a body of values. Pure.
//!
//! D-Bus Specification, "Message Format".

use super::Error;
use super::wire::{Decoder, Encoder, Value};

const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SENDER: u8 = 7;
const FIELD_SIGNATURE: u8 = 8;

/// The part of a header whose size is fixed: up to and with the length of the field array.
pub(super) const FIXED_HEADER: usize = 16;

/// The specification allows 128 MiB; what systemd answers us is far below this.
const MAX_MESSAGE: usize = 1 << 20;

/// A method to be called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
}

/// The bytes of a call.
pub(super) fn encode_call(serial: u32, method: &Method<'_>, arguments: &[Value]) -> Vec<u8> {
    let signature: String = arguments.iter().map(Value::signature).collect();
    let mut body = Encoder::default();
    arguments.iter().for_each(|argument| body.value(argument));
    let field = |code, value| Value::Structure(vec![Value::Byte(code), Value::variant(value)]);
    let mut fields = vec![
        field(FIELD_PATH, Value::Path(method.path.to_owned())),
        field(FIELD_INTERFACE, method.interface.into()),
        field(FIELD_MEMBER, method.member.into()),
        field(FIELD_DESTINATION, method.destination.into()),
    ];
    if !signature.is_empty() {
        fields.push(field(FIELD_SIGNATURE, Value::Signature(signature)));
    }
    let mut message = Encoder(vec![b'l', CALL, 0, 1]);
    message.value(&Value::Uint32(body.0.len() as u32));
    message.value(&Value::Uint32(serial));
    message.value(&Value::Array("(yv)".to_owned(), fields));
    message.align(8);
    message.0.extend_from_slice(&body.0);
    message.0
}

/// A received message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Incoming {
    Reply {
        to: u32,
        body: Vec<Value>,
    },
    Error {
        to: u32,
        name: String,
        body: Vec<Value>,
    },
    Signal {
        sender: String,
        interface: String,
        member: String,
        body: Vec<Value>,
    },
    /// A call to us, which nobody should make.
    Other,
}

fn number(bytes: &[u8], at: usize) -> usize {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word) as usize
}

/// The whole size of a message that starts with these [`FIXED_HEADER`] bytes.
pub(super) fn size(header: &[u8; FIXED_HEADER]) -> Result<usize, Error> {
    if header[0] != b'l' || header[3] != 1 {
        return Err(Error::Malformed("a header"));
    }
    let (body, fields) = (number(header, 4), number(header, 12));
    if body > MAX_MESSAGE || fields > MAX_MESSAGE {
        return Err(Error::Malformed("a message's size"));
    }
    Ok((FIXED_HEADER + fields).next_multiple_of(8) + body)
}

#[derive(Default)]
struct Fields {
    interface: String,
    member: String,
    error: String,
    sender: String,
    signature: String,
    reply_to: u32,
}

/// Reads one whole message.
pub(super) fn decode(bytes: &[u8]) -> Result<Incoming, Error> {
    let mut decoder = Decoder::new(bytes);
    let header = decoder.values("yyyyuua(yv)")?;
    let [_, Value::Byte(kind), _, _, Value::Uint32(_), Value::Uint32(_), Value::Array(_, list)] =
        header.as_slice()
    else {
        return Err(Error::Malformed("a header"));
    };
    let fields = read_fields(list);
    decoder.align(8);
    let body = decoder.values(&fields.signature)?;
    Ok(match *kind {
        REPLY => Incoming::Reply { to: fields.reply_to, body },
        ERROR => Incoming::Error { to: fields.reply_to, name: fields.error, body },
        SIGNAL => Incoming::Signal {
            sender: fields.sender,
            interface: fields.interface,
            member: fields.member,
            body,
        },
        _ => Incoming::Other,
    })
}

fn read_fields(list: &[Value]) -> Fields {
    let mut fields = Fields::default();
    for field in list {
        let Value::Structure(pair) = field else { continue };
        let [Value::Byte(code), Value::Variant(value)] = pair.as_slice() else { continue };
        match (*code, value.as_ref()) {
            (FIELD_INTERFACE, Value::Text(text)) => fields.interface.clone_from(text),
            (FIELD_MEMBER, Value::Text(text)) => fields.member.clone_from(text),
            (FIELD_ERROR_NAME, Value::Text(text)) => fields.error.clone_from(text),
            (FIELD_SENDER, Value::Text(text)) => fields.sender.clone_from(text),
            (FIELD_SIGNATURE, Value::Signature(text)) => fields.signature.clone_from(text),
            (FIELD_REPLY_SERIAL, Value::Uint32(serial)) => fields.reply_to = *serial,
            _ => {}
        }
    }
    fields
}

/// The bytes of any message, for the other end in tests.
#[cfg(test)]
pub(super) fn encode(kind: u8, fields: Vec<(u8, Value)>, body: &[Value]) -> Vec<u8> {
    let signature: String = body.iter().map(Value::signature).collect();
    let mut encoded = Encoder::default();
    body.iter().for_each(|value| encoded.value(value));
    let mut list: Vec<Value> = fields
        .into_iter()
        .map(|(code, value)| Value::Structure(vec![Value::Byte(code), Value::variant(value)]))
        .collect();
    if !signature.is_empty() {
        let value = Value::variant(Value::Signature(signature));
        list.push(Value::Structure(vec![Value::Byte(FIELD_SIGNATURE), value]));
    }
    let mut message = Encoder(vec![b'l', kind, 0, 1]);
    message.value(&Value::Uint32(encoded.0.len() as u32));
    message.value(&Value::Uint32(1));
    message.value(&Value::Array("(yv)".to_owned(), list));
    message.align(8);
    message.0.extend_from_slice(&encoded.0);
    message.0
}

#[cfg(test)]
pub(super) mod fake {
    //! Messages as the other end sends them.

    use super::*;

    pub(in crate::dbus) fn reply(to: u32, body: &[Value]) -> Vec<u8> {
        encode(REPLY, vec![(FIELD_REPLY_SERIAL, Value::Uint32(to))], body)
    }

    pub(in crate::dbus) fn error(to: u32, name: &str, text: &str) -> Vec<u8> {
        let fields = vec![(FIELD_REPLY_SERIAL, Value::Uint32(to)), (FIELD_ERROR_NAME, name.into())];
        encode(ERROR, fields, &[text.into()])
    }

    pub(in crate::dbus) fn signal(sender: &str, member: &str, body: &[Value]) -> Vec<u8> {
        let fields = vec![
            (FIELD_PATH, Value::Path("/org/freedesktop/systemd1".to_owned())),
            (FIELD_INTERFACE, "org.freedesktop.systemd1.Manager".into()),
            (FIELD_MEMBER, member.into()),
            (FIELD_SENDER, sender.into()),
        ];
        encode(SIGNAL, fields, body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let method = Method { destination: "b.c", path: "/a", interface: "i.j", member: "M" };
        let bytes = encode_call(2, &method, &["x".into()]);
        let mut expected = b"l\x01\0\x01\x06\0\0\0\x02\0\0\0".to_vec();
        // 71 bytes of fields, each but the last padded to eight.
        expected.extend(b"\x47\0\0\0");
        expected.extend(b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0\x03\0\0\0i.j\0\0\0\0\0");
        expected.extend(b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0\x03\0\0\0b.c\0\0\0\0\0");
        expected.extend(b"\x08\x01g\0\x01s\0\0");
        expected.extend(b"\x01\0\0\0x\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn replies_errors_and_signals_are_told_apart() {
        let reply = decode(&fake::reply(7, &["ok".into()])).unwrap();
        assert_eq!(reply, Incoming::Reply { to: 7, body: vec!["ok".into()] });
        let error = decode(&fake::error(8, "e.E", "why")).unwrap();
        let expected = Incoming::Error { to: 8, name: "e.E".to_owned(), body: vec!["why".into()] };
        assert_eq!(error, expected);
        let signal = decode(&fake::signal(":1.1", "JobRemoved", &[])).unwrap();
        assert!(matches!(signal, Incoming::Signal { sender, .. } if sender == ":1.1"));
    }

    #[test]
    fn sizes_beyond_reason_are_refused_before_anything_is_read() {
        let mut header = [0; FIXED_HEADER];
        header[..4].copy_from_slice(b"l\x02\0\x01");
        assert_eq!(size(&header).unwrap(), 16);
        header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(size(&header).is_err());
        header[0] = b'B';
        assert!(size(&header).is_err());
    }
}
