//! D-Bus values and their bytes. Pure; little-endian only, which is what this end sends.
//!
//! D-Bus Specification, "Marshaling (Wire Format)".

use super::Error;

/// A value of one of the types that systemd's interface uses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Boolean(bool),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    Path(String),
    Signature(String),
    /// The elements' signature, for arrays may be empty.
    Array(String, Vec<Value>),
    Structure(Vec<Value>),
    Variant(Box<Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Value {
    /// A value inside of a variant.
    pub(crate) fn variant(value: Value) -> Self {
        Self::Variant(Box::new(value))
    }

    pub(crate) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Boolean(_) => "b".to_owned(),
            Self::Int16(_) => "n".to_owned(),
            Self::Uint16(_) => "q".to_owned(),
            Self::Int32(_) => "i".to_owned(),
            Self::Uint32(_) => "u".to_owned(),
            Self::Int64(_) => "x".to_owned(),
            Self::Uint64(_) => "t".to_owned(),
            Self::Double(_) => "d".to_owned(),
            Self::Text(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Variant(_) => "v".to_owned(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Structure(fields) => {
                let inner: String = fields.iter().map(Self::signature).collect();
                format!("({inner})")
            }
        }
    }
}

/// Bytes under construction; alignment counts from their start.
#[derive(Default)]
pub(super) struct Encoder(pub(super) Vec<u8>);

impl Encoder {
    pub(super) fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn fixed<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.0.extend_from_slice(&bytes);
    }

    fn text(&mut self, text: &str) {
        self.fixed((text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        // Signatures made here are a few characters long.
        self.0.push(text.len() as u8);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(value) => self.0.push(*value),
            Value::Boolean(value) => self.fixed(u32::from(*value).to_le_bytes()),
            Value::Int16(value) => self.fixed(value.to_le_bytes()),
            Value::Uint16(value) => self.fixed(value.to_le_bytes()),
            Value::Int32(value) => self.fixed(value.to_le_bytes()),
            Value::Uint32(value) => self.fixed(value.to_le_bytes()),
            Value::Int64(value) => self.fixed(value.to_le_bytes()),
            Value::Uint64(value) => self.fixed(value.to_le_bytes()),
            Value::Double(value) => self.fixed(value.to_bits().to_le_bytes()),
            Value::Text(text) | Value::Path(text) => self.text(text),
            Value::Signature(text) => self.signature(text),
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
            Value::Structure(fields) => {
                self.align(8);
                fields.iter().for_each(|field| self.value(field));
            }
            Value::Array(element, values) => self.array(element, values),
        }
    }

    fn array(&mut self, element: &str, values: &[Value]) {
        self.fixed([0; 4]);
        let length_at = self.0.len() - 4;
        // The padding before the first element is not counted, but there even if there is none.
        self.align(alignment(element.bytes().next().unwrap_or_default()));
        let start = self.0.len();
        values.iter().for_each(|value| self.value(value));
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

fn alignment(code: u8) -> usize {
    match code {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// Nested deeper than the specification lets messages be.
const MAX_DEPTH: usize = 64;

/// Received bytes, read by a signature.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Result<T> = std::result::Result<T, Error>;

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or(Error::Malformed("a length"))?;
        let bytes = self.bytes.get(self.at..end).ok_or(Error::Malformed("a length"))?;
        self.at = end;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.align(N);
        self.take(N)?.try_into().map_err(|_| Error::Malformed("a number"))
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let bytes = self.take(length)?;
        if self.take(1)? != [0] {
            return Err(Error::Malformed("a text's end"));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed("a text"))
    }

    fn length(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.fixed()?) as usize)
    }

    fn short_text(&mut self) -> Result<String> {
        let [length] = self.fixed()?;
        self.text(usize::from(length))
    }

    /// The values of a whole signature.
    pub(super) fn values(&mut self, signature: &str) -> Result<Vec<Value>> {
        let mut rest = signature;
        let mut values = Vec::new();
        while !rest.is_empty() {
            let (one, after) = split_type(rest)?;
            values.push(self.value(one, 0)?);
            rest = after;
        }
        Ok(values)
    }

    fn value(&mut self, signature: &str, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Error::Malformed("nesting"));
        }
        Ok(match signature.as_bytes() {
            b"y" => Value::Byte(self.fixed::<1>()?[0]),
            b"b" => Value::Boolean(u32::from_le_bytes(self.fixed()?) != 0),
            b"n" => Value::Int16(i16::from_le_bytes(self.fixed()?)),
            b"q" => Value::Uint16(u16::from_le_bytes(self.fixed()?)),
            b"i" => Value::Int32(i32::from_le_bytes(self.fixed()?)),
            b"u" | b"h" => Value::Uint32(u32::from_le_bytes(self.fixed()?)),
            b"x" => Value::Int64(i64::from_le_bytes(self.fixed()?)),
            b"t" => Value::Uint64(u64::from_le_bytes(self.fixed()?)),
            b"d" => Value::Double(f64::from_bits(u64::from_le_bytes(self.fixed()?))),
            b"s" => Value::Text(self.length().and_then(|length| self.text(length))?),
            b"o" => Value::Path(self.length().and_then(|length| self.text(length))?),
            b"g" => Value::Signature(self.short_text()?),
            b"v" => {
                let inner = self.short_text()?;
                let (one, after) = split_type(&inner)?;
                if !after.is_empty() {
                    return Err(Error::Malformed("a variant"));
                }
                Value::variant(self.value(one, depth + 1)?)
            }
            [b'a', ..] => self.array(&signature[1..], depth)?,
            [b'(' | b'{', inner @ .., b')' | b'}'] => {
                self.align(8);
                let mut fields = Vec::new();
                let mut rest = std::str::from_utf8(inner).unwrap_or_default();
                while !rest.is_empty() {
                    let (one, after) = split_type(rest)?;
                    fields.push(self.value(one, depth + 1)?);
                    rest = after;
                }
                Value::Structure(fields)
            }
            _ => return Err(Error::Malformed("a signature")),
        })
    }

    fn array(&mut self, element: &str, depth: usize) -> Result<Value> {
        let length = self.length()?;
        self.align(alignment(element.bytes().next().unwrap_or_default()));
        let end = self.at.saturating_add(length);
        if end > self.bytes.len() {
            return Err(Error::Malformed("an array's length"));
        }
        let mut values = Vec::new();
        while self.at < end {
            let before = self.at;
            values.push(self.value(element, depth + 1)?);
            // A structure of nothing would go on for ever.
            if self.at == before {
                return Err(Error::Malformed("an array's element"));
            }
        }
        Ok(Value::Array(element.to_owned(), values))
    }
}

/// The first complete type of a signature, and the rest.
fn split_type(signature: &str) -> Result<(&str, &str)> {
    let mut depth = 0usize;
    for (index, byte) in signature.bytes().enumerate() {
        match byte {
            b'a' => continue,
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.checked_sub(1).ok_or(Error::Malformed("a signature"))?,
            other if other.is_ascii_lowercase() => {}
            _ => return Err(Error::Malformed("a signature")),
        }
        if depth == 0 {
            return Ok(signature.split_at(index + 1));
        }
    }
    Err(Error::Malformed("a signature"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.value(value);
        encoder.0
    }

    #[test]
    fn values_have_the_bytes_of_the_specification() {
        assert_eq!(bytes(&Value::Boolean(true)), [1, 0, 0, 0]);
        assert_eq!(bytes(&"foo".into()), *b"\x03\0\0\0foo\0");
        assert_eq!(
            bytes(&Value::variant(Value::Uint64(5))),
            *b"\x01t\0\0\0\0\0\0\x05\0\0\0\0\0\0\0"
        );
        // Four bytes of length, then padding to eight that the length does not count.
        let pids = Value::Array("u".to_owned(), vec![Value::Uint32(7), Value::Uint32(8)]);
        assert_eq!(bytes(&pids), *b"\x08\0\0\0\x07\0\0\0\x08\0\0\0");
        let empty = Value::Array("(sv)".to_owned(), Vec::new());
        assert_eq!(bytes(&empty), [0; 8]);
        let property = Value::Structure(vec!["A".into(), Value::variant(Value::Boolean(false))]);
        let list = Value::Array("(sv)".to_owned(), vec![property]);
        assert_eq!(list.signature(), "a(sv)");
        let mut expected = b"\x10\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x01\0\0\0A\0\x01b\0\0\0\0\0\0\0\0");
        assert_eq!(bytes(&list), expected);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let value = Value::Structure(vec![
            Value::Byte(1),
            Value::Int16(-2),
            Value::Double(0.5),
            Value::Path("/a".to_owned()),
            Value::Array("as".to_owned(), vec![Value::Array("s".to_owned(), vec!["x".into()])]),
            Value::variant(Value::variant(Value::Int64(-1))),
            Value::Signature("a(sv)".to_owned()),
        ]);
        let bytes = bytes(&value);
        let decoded = Decoder::new(&bytes).values(&value.signature()).unwrap();
        assert_eq!(decoded, [value]);
    }

    #[test]
    fn malformed_bytes_are_refused_without_allocating_what_they_claim() {
        for (signature, bytes) in [
            ("s", b"\xff\xff\xff\xff".as_slice()),
            ("s", b"\x01\0\0\0ab"),
            ("s", b"\x01\0\0\0\xff\0"),
            ("ay", b"\xff\xff\xff\x7f"),
            ("a()", b"\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            ("v", b"\x02ss\0"),
            ("v", b"\x01(\0"),
            (")", b""),
            ("a", b"\0\0\0\0"),
            ("z", b""),
            ("u", b"\0"),
        ] {
            assert!(Decoder::new(bytes).values(signature).is_err(), "{signature} {bytes:?}");
        }
        let nested = b"\x01v\0".repeat(100);
        assert!(Decoder::new(&nested).values("v").is_err());
    }
}
