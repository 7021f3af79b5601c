//! Files of variables that a pod writes for itself (KEP-3721): a strict part of the shell's syntax.
//!
//! ```text
//!   # a comment
//!   NAME='anything but a quote, over several lines if need be'   # a comment
//!   NAME= whatever      the empty text, as in a shell
//! ```

/// Why a file is none, and the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid environment variable format at line {line}: {what}")]
pub(super) struct Malformed {
    line: usize,
    what: &'static str,
}

/// The value of the first variable of this name, or `None` where there is none. What comes after it is
/// not looked at.
///
/// # Errors
/// [`Malformed`]
pub(super) fn find(text: &str, name: &str) -> Result<Option<String>, Malformed> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let malformed = |what| Malformed { line: index + 1, what };
        let line = line.trim_start_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, rest) = line.split_once('=').ok_or_else(|| malformed("missing '='"))?;
        if key.is_empty() {
            return Err(malformed("empty variable name"));
        }
        if key.ends_with(BLANK) {
            return Err(malformed("whitespace before '=' is not allowed"));
        }
        let value = if rest.starts_with(BLANK) {
            String::new()
        } else {
            let quoted = rest.strip_prefix('\'');
            let first =
                quoted.ok_or_else(|| malformed("value must be enclosed in single quotes"))?;
            let following = lines.by_ref().map(|(_, line)| line);
            unquote(first, following).map_err(malformed)?
        };
        if key == name {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

const BLANK: [char; 2] = [' ', '\t'];

/// Reads up to the closing quote, over as many lines as it takes.
fn unquote<'a>(
    first: &'a str,
    mut following: impl Iterator<Item = &'a str>,
) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut line = first;
    loop {
        if let Some((end, rest)) = line.split_once('\'') {
            value.push_str(end);
            let rest = rest.trim_start_matches(BLANK);
            return match rest.is_empty() || rest.starts_with('#') {
                true => Ok(value),
                false => Err("unexpected content after closing quote"),
            };
        }
        value.push_str(line);
        value.push('\n');
        line = following.next().ok_or("unclosed single quote")?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_found_among_comments_blank_lines_and_long_values() {
        let text =
            "# head\n\n  A='one'\nB='two\n three' # tail\nC= 'x'\nD='$(A) \"\\n'\nA='late'\n";
        for (name, value) in [
            ("A", Some("one")),
            ("B", Some("two\n three")),
            ("C", Some("")),
            ("D", Some("$(A) \"\\n")),
            ("E", None),
        ] {
            assert_eq!(find(text, name), Ok(value.map(str::to_owned)), "{name}");
        }
    }

    #[test]
    fn what_is_not_quoted_is_refused_with_its_line() {
        for (text, message) in [
            ("A", "at line 1: missing '='"),
            ("='x'", "at line 1: empty variable name"),
            ("A ='x'", "at line 1: whitespace before '=' is not allowed"),
            ("\nA=x", "at line 2: value must be enclosed in single quotes"),
            ("A='x' y", "at line 1: unexpected content after closing quote"),
            ("B='1'\nA='x\ny\n", "at line 2: unclosed single quote"),
        ] {
            let error = find(text, "Z").unwrap_err().to_string();
            assert!(error.ends_with(message), "{text:?}: {error}");
        }
        assert_eq!(find("A='1'\nnonsense", "A"), Ok(Some("1".to_owned())));
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_is_read_back(value in "[^'\r]{0,40}", before in "[a-z \n]{0,20}") {
            let text = format!("X='{before}'\nA='{value}'\n");
            prop_assert_eq!(find(&text, "A"), Ok(Some(value)));
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = find(&text, "A");
        }
    }
}
