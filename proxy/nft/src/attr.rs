//! Netlink attributes: a reader that never trusts a length, and a small writer.
//!
//! Owns the TLV layout of `linux/netlink.h` only.

/// Set in the type of attributes that hold attributes.
const NESTED: u16 = 1 << 15;
/// Bits of the type field that are the type.
const TYPE_MASK: u16 = 0x3fff;
/// Length of an attribute's header.
const HEADER: usize = 4;

/// Iterates over the attributes of a buffer; stops at the first malformed one.
#[derive(Clone, Copy)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let payload = self.0.get(HEADER..length)?;
        let next = length.next_multiple_of(4).min(self.0.len());
        self.0 = self.0.get(next..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & TYPE_MASK, payload))
    }
}

impl<'a> Attrs<'a> {
    /// The payload of the first attribute of a type.
    pub(crate) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, payload)| (kind == wanted).then_some(payload))
    }

    /// The attributes nested in the first attribute of a type.
    pub(crate) fn nested(self, wanted: u16) -> Option<Attrs<'a>> {
        self.find(wanted).map(Attrs)
    }

    /// A big-endian number.
    pub(crate) fn be32(self, wanted: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }

    /// A big-endian number.
    pub(crate) fn be64(self, wanted: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }

    /// A big-endian number.
    pub(crate) fn be16(self, wanted: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }

    /// Text up to the first NUL.
    pub(crate) fn text(self, wanted: u16) -> Option<&'a str> {
        let bytes = self.find(wanted)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(bytes.get(..end)?).ok()
    }
}

/// Appends an attribute. Payloads longer than an attribute can hold are cut, which the kernel
/// then refuses; callers only write short ones.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let length = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&payload[..usize::from(length) - HEADER]);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds attributes.
pub(crate) fn put_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        put(&mut out, 1, b"abc\0");
        put_nested(&mut out, 2, |inner| put(inner, 3, &7u32.to_be_bytes()));
        let attrs = Attrs(&out);
        assert_eq!(attrs.text(1), Some("abc"));
        assert_eq!(attrs.nested(2).unwrap().be32(3), Some(7));
        assert_eq!(attrs.find(9), None);
    }

    #[test]
    fn lying_lengths_end_the_iteration_without_a_panic() {
        for bytes in [&[0u8, 0, 1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 9], &[8], &[]] {
            assert_eq!(Attrs(bytes).count(), 0);
        }
        let unpadded = [5u8, 0, 1, 0, 42];
        assert_eq!(Attrs(&unpadded).collect::<Vec<_>>(), [(1, &[42u8][..])]);
    }
}
