//! Quantities (`100m`, `1.5Gi`, `2e3`): parsing to thousandths, for sums and comparisons
//! (apimachinery `resource.Quantity`; rounding is up, as there).

/// The value of a quantity in thousandths; none when it is not one or does not fit.
pub(crate) fn millis(text: &str) -> Option<i128> {
    let (sign, body) = match text.strip_prefix('-') {
        Some(body) => (-1, body),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, suffix) = body.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor) = scale(suffix)?;
    let divisor = divisor.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.checked_mul(factor)?.checked_mul(1000)?;
    let rounded = scaled.checked_add(divisor - 1)? / divisor;
    Some(sign * rounded)
}

/// A suffix as factor and divisor.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, factor) } else { (factor, 1) })
        }
    }
}

/// The one text that stands for a quantity: a whole number with the largest suffix that leaves it
/// whole, in the family of suffixes it was written in. None when it is no quantity, or too large.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let nanos = nanos(number, suffix)?;
    const NANO: i128 = 1_000_000_000;
    if nanos == 0 {
        return Some("0".into());
    }
    if suffix.ends_with('i') && nanos.abs() >= 1024 * NANO {
        // Bytes have no fractions.
        let sign = nanos.signum();
        let mut whole = (nanos.abs() + NANO - 1) / NANO;
        let mut power = 0;
        while whole % 1024 == 0 && power < 6 {
            whole /= 1024;
            power += 1;
        }
        return Some(format!("{}{}", sign * whole, BINARY[power]));
    }
    let mut mantissa = nanos;
    let mut step = 0;
    while mantissa % 1000 == 0 && step < 9 {
        mantissa /= 1000;
        step += 1;
    }
    let exponent = suffix.starts_with(['e', 'E']) && suffix.len() > 1;
    Some(match (exponent, step) {
        (true, 3) => mantissa.to_string(),
        (true, step) => format!("{mantissa}e{}", (step - 3) * 3),
        (false, step) => {
            let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][step as usize];
            format!("{mantissa}{suffix}")
        }
    })
}

/// The text of an amount in thousandths, in the family of suffixes of another text.
pub(crate) fn like(millis: i128, other: &str) -> String {
    let plain = canonical(&format!("{millis}m")).unwrap_or_default();
    if !other.ends_with('i') || millis % 1000 != 0 {
        return plain;
    }
    let (mut whole, mut power) = (millis / 1000, 0);
    while whole != 0 && whole % 1024 == 0 && power < 6 {
        whole /= 1024;
        power += 1;
    }
    format!("{whole}{}", BINARY[power])
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The value in billionths, rounded up in size.
fn nanos(number: &str, suffix: &str) -> Option<i128> {
    let (sign, body) = match number.strip_prefix('-') {
        Some(body) => (-1, body),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 24 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (factor, divisor) = scale(suffix)?;
    let divisor = divisor.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.parse::<i128>().ok()?.checked_mul(factor)?.checked_mul(1_000_000_000)?;
    Some(sign * (scaled.checked_add(divisor - 1)? / divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes_scale() {
        for (text, expected) in [
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            ("2Ki", 2_048_000),
            ("1e3", 1_000_000),
            ("0.5Gi", 536_870_912_000),
            ("-1", -1000),
            ("1n", 1),
            (".5", 500),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "--1", "1e99", "9999999999999999999999999", "e3", "."] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_quantity_has_one_text() {
        for (text, expected) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100Mi", "100Mi"),
            ("1e3", "1e3"),
            ("1000", "1k"),
            ("0", "0"),
            ("0Mi", "0"),
            ("1500", "1500"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("-2000m", "-2"),
            ("2E", "2E"),
            ("10M", "10M"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "m", "- 1"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sum_is_written_as_its_first_part() {
        for (millis, other, text) in [
            (1_500, "500m", "1500m"),
            (3_000, "1", "3"),
            (192 * 1_048_576_000, "64Mi", "192Mi"),
            (1_536_000, "1Ki", "1536"),
            (0, "1Gi", "0"),
            (500, "1Gi", "500m"),
        ] {
            assert_eq!(like(millis, other), text);
        }
    }

    proptest! {
        #[test]
        fn the_one_text_is_stable_and_keeps_the_value(
            number in "[1-9][0-9]{0,6}(\\.[0-9]{1,3})?",
            suffix in prop::sample::select(vec!["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e3"]),
        ) {
            let text = format!("{number}{suffix}");
            let once = canonical(&text).unwrap();
            let twice = canonical(&once).unwrap();
            prop_assert_eq!(millis(&twice), millis(&once));
            prop_assert_eq!(canonical(&twice), Some(twice.clone()));
            // A binary quantity that is no multiple of 1024 has no suffix, and is a decimal one when it
            // is read again, as upstream.
            prop_assert!(once == twice || suffix.ends_with('i') && !once.ends_with('i'));
            if !suffix.is_empty() && !suffix.ends_with('i') && suffix != "m" {
                prop_assert_eq!(millis(&once), millis(&text));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.eEkMGTPiKnum]{0,40}") {
            let _ = millis(&text);
            let _ = canonical(&text);
        }
    }
}
