//! Sets, maps and verdict maps, and their elements, as plain values.

use std::time::Duration;

use crate::{Data, DataType, Error, Expr, Field, Name, Table, Verdict};

/// What the elements of a set carry besides their key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Carries {
    Nothing,
    Data(Vec<DataType>),
    Verdict,
}

/// A set, a map or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    pub(crate) table: Table,
    pub(crate) name: Name,
    pub(crate) key: Vec<DataType>,
    pub(crate) carries: Carries,
    pub(crate) interval: bool,
    pub(crate) dynamic: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) size: Option<u32>,
    /// Number within its transaction of a nameless set that belongs to one rule.
    pub(crate) anonymous: Option<u32>,
}

impl Set {
    /// The nameless set that one instruction of one rule looks up, and its elements.
    pub(crate) fn of_instruction(
        table: &Table,
        instruction: &Expr,
        id: u32,
    ) -> Result<Option<(Self, Vec<Element>)>, Error> {
        let (set, elements) = match instruction {
            Expr::Choose(verdicts) => {
                let numbered = (0u32..).map(Field::Mark).zip(verdicts);
                let elements = numbered.map(|(n, to)| Element::verdict(n, to.clone())).collect();
                (Self::new(table, "__map%d", &[DataType::Mark], Carries::Verdict)?, elements)
            }
            Expr::OneOf { values, .. } => {
                let Some(first) = values.first() else { return Ok(None) };
                let elements = values.iter().map(|value| Element::key(*value)).collect();
                let key = [first.data_type()];
                (Self::new(table, "__set%d", &key, Carries::Nothing)?, elements)
            }
            _ => return Ok(None),
        };
        Ok(Some((Self { anonymous: Some(id), ..set }, elements)))
    }

    /// A set of keys. More than one type makes the key a concatenation.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn of_keys(table: &Table, name: &str, key: &[DataType]) -> Result<Self, Error> {
        Self::new(table, name, key, Carries::Nothing)
    }

    /// A map from keys to data.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn map(
        table: &Table,
        name: &str,
        key: &[DataType],
        data: &[DataType],
    ) -> Result<Self, Error> {
        Self::new(table, name, key, Carries::Data(data.to_vec()))
    }

    /// A map from keys to verdicts.
    ///
    /// # Errors
    /// [`Error::Name`] for a name the kernel would not take.
    pub fn vmap(table: &Table, name: &str, key: &[DataType]) -> Result<Self, Error> {
        Self::new(table, name, key, Carries::Verdict)
    }

    fn new(table: &Table, name: &str, key: &[DataType], carries: Carries) -> Result<Self, Error> {
        Ok(Self {
            table: table.clone(),
            name: Name::new(name)?,
            key: key.to_vec(),
            carries,
            interval: false,
            dynamic: false,
            timeout: None,
            size: None,
            anonymous: None,
        })
    }

    /// Lets elements be ranges and prefixes. Ranges of a single field must not overlap.
    /// Concatenations of ranges need Linux 5.6.
    pub fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    /// Lets rules add elements ([`crate::Expr::Dynset`]); such a set needs a size.
    pub fn dynamic(mut self, size: u32) -> Self {
        self.dynamic = true;
        self.size = Some(size);
        self
    }

    /// Lets elements expire, by default after `timeout`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Limits the number of elements.
    pub fn size(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The set's table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Types of the key.
    pub fn key_types(&self) -> &[DataType] {
        &self.key
    }

    /// Types of the data; empty for sets and verdict maps.
    pub fn data_types(&self) -> &[DataType] {
        match &self.carries {
            Carries::Data(types) => types,
            _ => &[],
        }
    }

    pub(crate) fn concat_intervals(&self) -> bool {
        self.interval && self.key.len() > 1
    }

    /// Whether `element` has the lengths and the value this set asks for.
    pub(crate) fn fits(&self, element: &Element) -> bool {
        let key_len = DataType::concat_len(&self.key);
        let key_fits = match &element.key {
            Key::One(key) => key.as_bytes().len() == key_len,
            Key::Range(from, to) => {
                self.interval
                    && from.as_bytes().len() == key_len
                    && to.as_bytes().len() == key_len
                    && (self.key.len() > 1 || from <= to)
            }
        };
        key_fits
            && match (&self.carries, &element.value) {
                (Carries::Nothing, Value::None) | (Carries::Verdict, Value::Verdict(_)) => true,
                (Carries::Data(types), Value::Data(data)) => {
                    data.as_bytes().len() == DataType::concat_len(types)
                }
                _ => false,
            }
    }
}

/// An element's key: one value, or a range with both ends included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// One value.
    One(Data),
    /// From the first to the second, both included. In a concatenation, per field.
    Range(Data, Data),
}

impl Key {
    /// All addresses of `prefix/length`; host bits of `prefix` are ignored.
    pub fn prefix(prefix: impl Into<std::net::IpAddr>, length: u8) -> Self {
        let (from, to) = prefix_bounds(prefix.into(), length);
        if from == to { Self::One(from.into()) } else { Self::Range(from.into(), to.into()) }
    }

    /// The lower end.
    pub fn start(&self) -> &Data {
        match self {
            Self::One(key) | Self::Range(key, _) => key,
        }
    }

    /// The upper end.
    pub fn end(&self) -> &Data {
        match self {
            Self::One(key) | Self::Range(_, key) => key,
        }
    }
}

/// First and last address of a prefix.
fn prefix_bounds(prefix: std::net::IpAddr, length: u8) -> (Field, Field) {
    match prefix {
        std::net::IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            let first = addr.to_bits() & mask;
            (Field::Ipv4(first.into()), Field::Ipv4((first | !mask).into()))
        }
        std::net::IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            let first = addr.to_bits() & mask;
            (Field::Ipv6(first.into()), Field::Ipv6((first | !mask).into()))
        }
    }
}

impl<T: Into<Data>> From<T> for Key {
    fn from(data: T) -> Self {
        Self::One(data.into())
    }
}

/// What an element maps its key to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing: the element of a set.
    None,
    /// Data: the element of a map.
    Data(Data),
    /// A verdict: the element of a verdict map.
    Verdict(Verdict),
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Key or range of keys.
    pub key: Key,
    /// What it maps to.
    pub value: Value,
    /// How long it lives, when not the set's default.
    pub timeout: Option<Duration>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: impl Into<Key>) -> Self {
        Self { key: key.into(), value: Value::None, timeout: None }
    }

    /// An element of a map.
    pub fn data(key: impl Into<Key>, data: impl Into<Data>) -> Self {
        Self { key: key.into(), value: Value::Data(data.into()), timeout: None }
    }

    /// An element of a verdict map.
    pub fn verdict(key: impl Into<Key>, verdict: Verdict) -> Self {
        Self { key: key.into(), value: Value::Verdict(verdict), timeout: None }
    }

    /// Lets the element expire.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::Family;

    #[test]
    fn a_prefix_covers_its_first_and_last_address() {
        let key = Key::prefix(Ipv4Addr::new(10, 1, 2, 3), 16);
        assert_eq!(key.start(), &Data::from(Field::Ipv4([10, 1, 0, 0].into())));
        assert_eq!(key.end(), &Data::from(Field::Ipv4([10, 1, 255, 255].into())));
        assert!(matches!(Key::prefix(Ipv4Addr::LOCALHOST, 32), Key::One(_)));
        assert_eq!(
            Key::prefix(Ipv4Addr::LOCALHOST, 0).end(),
            &Data::from(Field::Ipv4([255; 4].into()))
        );
    }

    #[test]
    fn an_element_of_the_wrong_length_or_kind_does_not_fit() {
        let table = Table::new(Family::Ip, "t").unwrap();
        let map = Set::map(&table, "m", &[DataType::Proto, DataType::Service], &[DataType::Ipv4])
            .unwrap();
        let key = [Field::Proto(6), Field::Port(1)];
        assert!(map.fits(&Element::data(key, Field::Ipv4([1; 4].into()))));
        assert!(!map.fits(&Element::key(key)));
        assert!(!map.fits(&Element::data(Field::Port(1), Field::Ipv4([1; 4].into()))));
        assert!(!map.fits(&Element::data(key, Field::Port(1))));
    }
}
