//! `$(NAME)` references in environment values, commands and sub-paths.
//!
//! The rules are Kubernetes': `$(NAME)` becomes the variable's value, `$$` is one dollar sign, a
//! reference to an unknown variable stays as it is written, and so does any other use of `$`. What
//! was substituted is not looked at again.

/// Replaces the references of `input` by what `lookup` knows.
pub fn expand<'v>(input: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    expand_reporting(input, lookup).0
}

/// Like [`expand`], and also lists the references that stayed unresolved.
pub fn expand_reporting<'v>(
    input: &str,
    lookup: impl Fn(&str) -> Option<&'v str>,
) -> (String, Vec<String>) {
    let mut output = String::with_capacity(input.len());
    let mut unresolved = Vec::new();
    let mut rest = input;
    while let Some(dollar) = rest.find('$') {
        output.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            output.push('$');
            rest = after;
        } else if let Some((name, after)) = reference(rest) {
            match lookup(name) {
                Some(value) => output.push_str(value),
                None => {
                    output.push_str(&format!("$({name})"));
                    unresolved.push(name.to_owned());
                }
            }
            rest = after;
        } else {
            output.push('$');
        }
    }
    output.push_str(rest);
    (output, unresolved)
}

/// Splits `(NAME)rest`.
fn reference(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('(')?.split_once(')')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            "EMPTY" => Some(""),
            "" => None,
            "x y" => Some("spaced"),
            _ => None,
        }
    }

    #[test]
    fn references_follow_the_table() {
        for (input, expected) in [
            ("$(A)", "1"),
            ("a$(A)b$(A)c", "a1b1c"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$(MISSING)", "$(MISSING)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$", "$"),
            ("$$", "$"),
            ("a$", "a$"),
            ("$A", "$A"),
            ("${A}", "${A}"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$(x y)", "spaced"),
            ("$($(A))", "$($(A))"),
            ("ü$(A)ü", "ü1ü"),
            ("\n$(A)\n", "\n1\n"),
            ("$(A)$", "1$"),
            ("$-$(A)", "$-1"),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }

    #[test]
    fn unresolved_references_are_listed() {
        let (_, unresolved) = expand_reporting("$(A)/$(NO)/$$(ESC)/$(NO2)", lookup);
        assert_eq!(unresolved, ["NO", "NO2"]);
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_untouched(input in "[^$]*") {
            prop_assert_eq!(expand(&input, lookup), input);
        }

        #[test]
        fn doubled_dollars_quote_everything(input in ".*") {
            prop_assert_eq!(expand(&input.replace('$', "$$"), lookup), input);
        }
    }
}
