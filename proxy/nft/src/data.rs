//! Keys and data of sets and maps, in the kernel's layout.
//!
//! A concatenation pads each field to whole 4-byte registers; a single field stands alone, at
//! its own length. Numbers from packets are big-endian, marks are in host order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The type of one field. The numbers are those of the `nft` program, which needs them to print
/// a set; the kernel only looks at lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Ethernet address.
    Ether,
    /// Transport protocol number.
    Proto,
    /// Transport port.
    Service,
    /// 32-bit mark; stands in for any integer in host order.
    Mark,
    /// Interface name.
    Ifname,
}

impl DataType {
    /// The number that `nft` knows the type by.
    pub fn id(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Proto => 12,
            Self::Service => 13,
            Self::Mark => 19,
            Self::Ifname => 41,
        }
    }

    /// Bytes of a lone field.
    pub fn size(self) -> usize {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 | Self::Ifname => 16,
            Self::Ether => 6,
            Self::Proto => 1,
            Self::Service => 2,
        }
    }

    /// Bytes inside a concatenation.
    pub fn padded_size(self) -> usize {
        self.size().next_multiple_of(4)
    }

    /// Type number of a list of fields, as `nft` composes it.
    pub(crate) fn concat_id(types: &[Self]) -> u32 {
        types.iter().fold(0, |id, field| (id << 6) | field.id())
    }

    /// Length of a list of fields.
    pub(crate) fn concat_len(types: &[Self]) -> usize {
        match types {
            [one] => one.size(),
            many => many.iter().map(|field| field.padded_size()).sum(),
        }
    }

    /// Byte order as `nft` wants it noted: 1 host, 2 big endian.
    pub(crate) fn byte_order(types: &[Self]) -> u32 {
        match types {
            [Self::Mark | Self::Ifname] => 1,
            _ => 2,
        }
    }
}

/// One typed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// IPv4 address.
    Ipv4(Ipv4Addr),
    /// IPv6 address.
    Ipv6(Ipv6Addr),
    /// Ethernet address.
    Ether([u8; 6]),
    /// Transport protocol number.
    Proto(u8),
    /// Transport port.
    Port(u16),
    /// 32-bit value in host order.
    Mark(u32),
    /// Interface name, NUL-padded.
    Ifname([u8; 16]),
}

impl Field {
    /// An interface name; longer names are refused.
    pub fn ifname(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self::Ifname(bytes))
    }

    /// The field's type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Ipv4(_) => DataType::Ipv4,
            Self::Ipv6(_) => DataType::Ipv6,
            Self::Ether(_) => DataType::Ether,
            Self::Proto(_) => DataType::Proto,
            Self::Port(_) => DataType::Service,
            Self::Mark(_) => DataType::Mark,
            Self::Ifname(_) => DataType::Ifname,
        }
    }

    fn push(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ipv4(addr) => out.extend_from_slice(&addr.octets()),
            Self::Ipv6(addr) => out.extend_from_slice(&addr.octets()),
            Self::Ether(addr) => out.extend_from_slice(addr),
            Self::Proto(proto) => out.push(*proto),
            Self::Port(port) => out.extend_from_slice(&port.to_be_bytes()),
            Self::Mark(mark) => out.extend_from_slice(&mark.to_ne_bytes()),
            Self::Ifname(name) => out.extend_from_slice(name),
        }
    }

    fn read(data_type: DataType, bytes: &[u8]) -> Option<Self> {
        Some(match data_type {
            DataType::Ipv4 => Self::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            DataType::Ipv6 => Self::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            DataType::Ether => Self::Ether(bytes.try_into().ok()?),
            DataType::Proto => Self::Proto(*bytes.first()?),
            DataType::Service => Self::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            DataType::Mark => Self::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
            DataType::Ifname => Self::Ifname(bytes.try_into().ok()?),
        })
    }
}

impl From<IpAddr> for Field {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::Ipv4(addr),
            IpAddr::V6(addr) => Self::Ipv6(addr),
        }
    }
}

/// A key or a value in the kernel's layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Data(Box<[u8]>);

impl Data {
    /// Lays out one field, or a concatenation of several.
    pub fn new(fields: &[Field]) -> Self {
        let mut bytes = Vec::with_capacity(24);
        for field in fields {
            field.push(&mut bytes);
            if fields.len() > 1 {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        Self(bytes.into())
    }

    /// Takes bytes that already have the kernel's layout.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the fields back; `None` when the length does not fit the types.
    pub fn fields(&self, types: &[DataType]) -> Option<Vec<Field>> {
        if self.0.len() != DataType::concat_len(types) {
            return None;
        }
        let mut rest = &self.0[..];
        types
            .iter()
            .map(|&data_type| {
                let step = if types.len() > 1 { data_type.padded_size() } else { data_type.size() };
                let (head, tail) = rest.split_at_checked(step)?;
                rest = tail;
                Field::read(data_type, head.get(..data_type.size())?)
            })
            .collect()
    }

    /// The next higher value of the same length, `None` after the last one.
    pub(crate) fn successor(&self) -> Option<Self> {
        let mut bytes = self.0.clone();
        for byte in bytes.iter_mut().rev() {
            let (next, overflow) = byte.overflowing_add(1);
            *byte = next;
            if !overflow {
                return Some(Self(bytes));
            }
        }
        None
    }

    /// The next lower value of the same length, `None` before the first one.
    pub(crate) fn predecessor(&self) -> Option<Self> {
        let mut bytes = self.0.clone();
        for byte in bytes.iter_mut().rev() {
            let (next, overflow) = byte.overflowing_sub(1);
            *byte = next;
            if !overflow {
                return Some(Self(bytes));
            }
        }
        None
    }
}

impl From<Field> for Data {
    fn from(field: Field) -> Self {
        Self::new(&[field])
    }
}

impl<const N: usize> From<[Field; N]> for Data {
    fn from(fields: [Field; N]) -> Self {
        Self::new(&fields)
    }
}

impl From<&[Field]> for Data {
    fn from(fields: &[Field]) -> Self {
        Self::new(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_port_has_two_bytes_and_a_concatenated_one_four() {
        assert_eq!(Data::from(Field::Port(80)).as_bytes(), &[0, 80]);
        let key = Data::from([Field::Proto(6), Field::Port(80)]);
        assert_eq!(key.as_bytes(), &[6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn fields_read_back_what_was_laid_out() {
        let fields = [
            Field::Ipv6("fd00::1".parse().unwrap()),
            Field::Proto(17),
            Field::Port(53),
            Field::ifname("eth0").unwrap(),
            Field::Mark(7),
        ];
        let types: Vec<_> = fields.iter().map(Field::data_type).collect();
        assert_eq!(Data::new(&fields).fields(&types).unwrap(), fields);
        assert_eq!(Data::new(&fields).fields(&types[1..]), None);
    }

    #[test]
    fn the_successor_of_the_last_address_does_not_exist() {
        let last = Data::from(Field::Ipv4([255; 4].into()));
        assert_eq!(last.successor(), None);
        let next = Data::from(Field::Ipv4([10, 0, 0, 255].into())).successor().unwrap();
        assert_eq!(next, Data::from(Field::Ipv4([10, 0, 1, 0].into())));
        assert_eq!(next.predecessor().unwrap(), Data::from(Field::Ipv4([10, 0, 0, 255].into())));
    }
}
