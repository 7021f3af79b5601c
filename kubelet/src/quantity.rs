//! Kubernetes quantities (`500m`, `1.5Gi`, `12e6`): parsing, arithmetic and the canonical text.
//!
//! Values are exact to a billionth; finer ones round away from zero, and magnitudes stop at 2^63−1,
//! as in `k8s.io/apimachinery/pkg/api/resource`. What a quantity *means* (cores, bytes) is not known
//! here.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

const NANO: i128 = 1_000_000_000;
const MAX_UNITS: i128 = i64::MAX as i128;
const MAX_NANOS: i128 = MAX_UNITS * NANO;
/// Fraction digits that can reach a billionth after the largest binary suffix (2^60 < 10^19).
const FRACTION_DIGITS: usize = 27;

/// Which family of suffixes a quantity was written with, and is written back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Notation {
    /// `Ki`, `Mi`, `Gi`, …
    BinarySi,
    /// `n`, `u`, `m`, none, `k`, `M`, `G`, …
    #[default]
    DecimalSi,
    /// `e3`, `E6`, …
    DecimalExponent,
}

/// An amount of a resource.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity")]
pub struct InvalidQuantity {
    text: String,
}

impl Quantity {
    /// Zero, written without a suffix.
    pub const ZERO: Self = Self { nanos: 0, notation: Notation::DecimalSi };

    /// A whole number of units, written with decimal suffixes.
    pub fn units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANO, notation: Notation::DecimalSi }
    }

    /// A whole number of bytes, written with binary suffixes.
    pub fn bytes(bytes: u64) -> Self {
        Self { nanos: i128::from(bytes).min(MAX_UNITS) * NANO, notation: Notation::BinarySi }
    }

    /// Thousandths of a unit.
    pub fn millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANO / 1000), notation: Notation::DecimalSi }
    }

    /// The value in whole units, rounded up.
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANO / 1000))
    }

    /// The value in whole units, rounded up, with negative values read as zero.
    pub fn unsigned_value(&self) -> u64 {
        self.value().max(0).unsigned_abs()
    }

    /// Whether the value is exactly zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the value is above zero.
    pub fn is_positive(&self) -> bool {
        self.nanos > 0
    }

    /// `self - other`, stopping at the bounds.
    pub fn minus(self, other: Self) -> Self {
        Self {
            nanos: (self.nanos - other.nanos).clamp(-MAX_NANOS, MAX_NANOS),
            notation: self.notation,
        }
    }

    /// How many of `divisor` fit into this value, rounded up: the number that `resourceFieldRef`
    /// shows. A zero divisor counts as one unit.
    pub fn in_multiples_of(&self, divisor: &Self) -> i64 {
        let divisor = if divisor.is_zero() { NANO } else { divisor.nanos };
        saturate(divide_up(self.nanos, divisor))
    }
}

/// Division with the quotient's fraction rounded away from zero.
fn divide_up(value: i128, divisor: i128) -> i128 {
    let quotient = value / divisor;
    match value % divisor {
        0 => quotient,
        _ if (value < 0) == (divisor < 0) => quotient + 1,
        _ => quotient - 1,
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// Adds, stopping at the bounds; the left side's notation stays unless it is zero.
    fn add(self, other: Self) -> Self {
        Self {
            nanos: (self.nanos + other.nanos).clamp(-MAX_NANOS, MAX_NANOS),
            notation: if self.is_zero() { other.notation } else { self.notation },
        }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl TryFrom<&ApiQuantity> for Quantity {
    type Error = InvalidQuantity;

    fn try_from(quantity: &ApiQuantity) -> Result<Self, InvalidQuantity> {
        quantity.0.parse()
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> Self {
        ApiQuantity(quantity.to_string())
    }
}

/// What a suffix does to the number before it.
enum Scale {
    /// Times 2^n.
    Binary(u32),
    /// Times 10^n.
    Decimal(i64),
}

fn parse_suffix(suffix: &str) -> Option<(Scale, Notation)> {
    let binary = |n| Some((Scale::Binary(n), Notation::BinarySi));
    let decimal = |n| Some((Scale::Decimal(n), Notation::DecimalSi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let exponent: i64 = exponent.parse().ok().filter(|e| i32::try_from(*e).is_ok())?;
            Some((Scale::Decimal(exponent), Notation::DecimalExponent))
        }
    }
}

impl FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        parse(text).ok_or_else(|| InvalidQuantity { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (scale, notation) = parse_suffix(suffix)?;
    let digits = [whole.as_bytes(), fraction.as_bytes()].concat();
    let magnitude = match scale {
        Scale::Decimal(exponent) => scaled(&digits, whole.len() as i64 + exponent, 0),
        Scale::Binary(shift) => scaled(&digits, whole.len() as i64, shift),
    };
    Some(Quantity { nanos: if negative { -magnitude } else { magnitude }, notation })
}

/// The billionths in `0.<digits> · 10^point · 2^shift`, rounded up and capped.
fn scaled(digits: &[u8], point: i64, shift: u32) -> i128 {
    let leading_zeros = digits.iter().take_while(|d| **d == b'0').count();
    let digits = &digits[leading_zeros..];
    let point = point - leading_zeros as i64;
    if digits.is_empty() {
        return 0;
    }
    if point > 20 {
        return MAX_NANOS;
    }
    if point < -(FRACTION_DIGITS as i64) {
        return 1;
    }
    let digit_at = |index: i64| -> i128 {
        usize::try_from(index).ok().and_then(|i| digits.get(i)).map_or(0, |d| i128::from(d - b'0'))
    };
    let collect = |from: i64, to: i64| (from..to).fold(0, |sum, i| sum * 10 + digit_at(i));
    let whole = collect(0, point.max(0));
    let mut nanos = collect(point, point + 9);
    let mut rest = collect(point + 9, point + FRACTION_DIGITS as i64);
    let tail = usize::try_from(point + FRACTION_DIGITS as i64).unwrap_or(0);
    let sticky = digits.iter().skip(tail).any(|d| *d != b'0');
    const REST_ONE: i128 = NANO * NANO;
    for _ in 0..shift {
        rest *= 2;
        nanos = nanos * 2 + rest / REST_ONE;
        rest %= REST_ONE;
    }
    if rest != 0 || sticky {
        nanos += 1;
    }
    whole
        .checked_mul(1 << shift)
        .and_then(|whole| whole.checked_mul(NANO))
        .and_then(|whole| whole.checked_add(nanos))
        .map_or(MAX_NANOS, |sum| sum.min(MAX_NANOS))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.notation == Notation::BinarySi && !small {
            let (value, power) = strip(divide_up(self.nanos, NANO), 1024);
            const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            return write!(f, "{value}{}", SUFFIXES[power]);
        }
        let (value, power) = strip(self.nanos, 1000);
        if self.notation == Notation::DecimalExponent {
            return match power as i64 * 3 - 9 {
                0 => write!(f, "{value}"),
                exponent => write!(f, "{value}e{exponent}"),
            };
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        write!(f, "{value}{}", SUFFIXES[power])
    }
}

/// Divides by `base` while nothing is lost; the second is how often (at most 9: magnitudes are
/// below 2^63·10^9).
fn strip(mut value: i128, base: i128) -> (i128, usize) {
    let mut power = 0;
    while value % base == 0 {
        value /= base;
        power += 1;
    }
    (value, power)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn every_suffix_has_its_value() {
        for (text, value, milli) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1500m", 2, 1500),
            ("0.1", 1, 100),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("1n", 1, 1),
            ("1u", 1, 1),
            ("-1500m", -2, -1500),
            ("+2", 2, 2000),
            ("1k", 1000, 1_000_000),
            ("1Ki", 1024, 1_024_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("1M", 1_000_000, 1_000_000_000),
            ("12e6", 12_000_000, 12_000_000_000),
            ("12E6", 12_000_000, 12_000_000_000),
            ("1e-3", 1, 1),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("1Ei", 1 << 60, i64::MAX),
            ("8Ei", i64::MAX, i64::MAX),
            ("1e99", i64::MAX, i64::MAX),
            ("1e-99", 1, 1),
            ("0e99", 0, 0),
        ] {
            assert_eq!(quantity(text).value(), value, "{text}");
            assert_eq!(quantity(text).milli_value(), milli, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "-",
            "+",
            ".",
            "1.2.3",
            "Ki",
            "1ki",
            "1K",
            "1 Gi",
            " 1",
            "1e",
            "1e+",
            "1ee3",
            "0x10",
            "1Gib",
            "--1",
            "1e99999999999999",
            "１",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_canonical_text_keeps_the_family_of_the_suffix() {
        for (text, canonical) in [
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1000k", "1M"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("0.1n", "1n"),
            ("-2000m", "-2"),
            ("0Gi", "0"),
            ("1023", "1023"),
            ("8Ei", "9223372036854775807"),
        ] {
            assert_eq!(quantity(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn a_fraction_of_a_binary_unit_is_exact() {
        assert_eq!(quantity("0.000000000000000001Ei").value(), 2, "2^60 / 10^18 is 1.15");
        assert_eq!(quantity("0.5Ei").value(), 1 << 59);
        assert_eq!(quantity("3.999999999999999999999999999999Ki").value(), 4096);
    }

    #[test]
    fn multiples_round_up_and_a_zero_divisor_is_one() {
        let memory = quantity("100Mi");
        assert_eq!(memory.in_multiples_of(&quantity("1Mi")), 100);
        assert_eq!(memory.in_multiples_of(&quantity("0")), 100 << 20);
        assert_eq!(quantity("1250m").in_multiples_of(&quantity("1")), 2);
        assert_eq!(quantity("1250m").in_multiples_of(&quantity("1m")), 1250);
    }

    proptest! {
        #[test]
        fn text_and_value_agree(nanos in -MAX_NANOS..=MAX_NANOS, family in 0..3usize) {
            let notation = [Notation::BinarySi, Notation::DecimalSi, Notation::DecimalExponent][family];
            let written = Quantity { nanos, notation };
            let read: Quantity = written.to_string().parse().unwrap();
            if notation == Notation::BinarySi && nanos.abs() >= 1024 * NANO {
                prop_assert_eq!(read.value(), written.value());
            } else {
                prop_assert_eq!(read, written);
            }
            if notation != Notation::BinarySi {
                prop_assert_eq!(read.to_string(), written.to_string());
            }
        }

        #[test]
        fn parsing_never_panics(text in "[-+]?[0-9.]{0,60}[a-zA-Z]{0,2}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn whole_bytes_survive(bytes in 0..u64::MAX / 2) {
            let read: Quantity = Quantity::bytes(bytes).to_string().parse().unwrap();
            prop_assert_eq!(read.unsigned_value(), bytes);
        }
    }
}
