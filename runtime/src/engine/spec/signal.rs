//! An image's `STOPSIGNAL`: a number or a name (signal(7)).

use std::str::FromStr;

use nix::sys::signal::Signal;

use crate::images::config::Untrusted;

const TERM: i32 = Signal::SIGTERM as i32;
/// As libc numbers them, the two it keeps for itself left out.
const FIRST_REALTIME: i32 = 34;
const LAST_REALTIME: i32 = 64;

/// The signal, or SIGTERM where the image names none that exists.
pub(super) fn stop_signal(text: Untrusted<String>) -> i32 {
    let read = |text: String| match text.as_str() {
        "" => Ok(TERM),
        other => parse(other).ok_or(()),
    };
    text.validate(read).unwrap_or_else(|()| {
        tracing::warn!("the image's stop signal is unknown; SIGTERM is used");
        TERM
    })
}

fn parse(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=LAST_REALTIME).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<i32>().ok(),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        FIRST_REALTIME.checked_add(offset(rest, '+')?)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        LAST_REALTIME.checked_sub(offset(rest, '-')?)?
    } else {
        return Signal::from_str(&format!("SIG{name}")).ok().map(|s| s as i32);
    };
    (FIRST_REALTIME..=LAST_REALTIME).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_realtime_signals_are_read() {
        for (text, number) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("", 15),
            ("SIGNOPE", 15),
            ("0", 15),
            ("99", 15),
            ("SIGRTMIN+99", 15),
            ("SIGRTMIN+-2147483648", 15),
        ] {
            assert_eq!(stop_signal(Untrusted::new(text.to_owned())), number, "{text}");
        }
    }
}
