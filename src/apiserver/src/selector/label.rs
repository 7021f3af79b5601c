//! The label selector grammar: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`,
//! `a>1`, `a<1`, separated by commas (Kubernetes docs, "Labels and Selectors").

use serde_json::Value;

use super::Malformed;
use crate::object::ObjectExt;

/// A conjunction of requirements; an empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

impl Selector {
    /// Parses a selector; an empty text selects everything.
    ///
    /// # Errors
    /// When the text breaks the grammar, or a key or value the rules of labels.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut parser = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            match parser.next() {
                Token::Comma if parser.rest.is_empty() => {
                    return Err(Malformed::Label(
                        "found '', expected: identifier after ','".into(),
                    ));
                }
                Token::Comma | Token::End => {}
                other => return Err(unexpected(&other, "',' or 'end of string'")),
            }
        }
        Ok(Self(requirements))
    }

    /// The selector of a plain map, as Services and node selectors have it.
    pub(crate) fn from_map(map: &serde_json::Map<String, Value>) -> Self {
        let equal = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            test: Test::In(vec![value.as_str().unwrap_or_default().to_owned()]),
        };
        Self(map.iter().map(equal).collect())
    }

    /// Whether every object is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's labels satisfy every requirement.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| requirement.holds(object.label(&requirement.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(allowed) => value.is_some_and(|v| allowed.iter().any(|one| one == v)),
            Test::NotIn(barred) => value.is_none_or(|v| barred.iter().all(|one| one != v)),
            Test::Above(limit) => number().is_some_and(|n| n > *limit),
            Test::Below(limit) => number().is_some_and(|n| n < *limit),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equal,
    NotEqual,
    Above,
    Below,
    End,
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Token<'a> {
        const SYMBOLS: [(&str, Token<'static>); 10] = [
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("=", Token::Equal),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Above),
            ("<", Token::Below),
            ("", Token::End),
        ];
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "=!,()<>".contains(c))
            .unwrap_or(self.rest.len());
        if end > 0 {
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest.trim_start();
            return Token::Word(word);
        }
        for (symbol, token) in SYMBOLS {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest.trim_start();
                return token;
            }
        }
        Token::End
    }

    fn at_end_of_requirement(&self) -> bool {
        self.rest.is_empty() || self.rest.starts_with(',')
    }

    fn requirement(&mut self) -> Result<Requirement, Malformed> {
        let (key, negated) = match self.next() {
            Token::Not => match self.next() {
                Token::Word(key) => (key, true),
                other => return Err(unexpected(&other, "identifier")),
            },
            Token::Word(key) => (key, false),
            other => return Err(unexpected(&other, "!, identifier, or 'end of string'")),
        };
        if !is_qualified_name(key) {
            return Err(Malformed::Label(format!("key: Invalid value: {key:?}: {NAME_RULE}")));
        }
        let test = match (negated, self.at_end_of_requirement()) {
            (true, true) => Test::Absent,
            (false, true) => Test::Exists,
            (true, false) => return Err(unexpected(&self.next(), "',' or 'end of string'")),
            (false, false) => self.test()?,
        };
        Ok(Requirement { key: key.to_owned(), test })
    }

    fn test(&mut self) -> Result<Test, Malformed> {
        match self.next() {
            Token::Equal => Ok(Test::In(vec![self.value()?])),
            Token::NotEqual => Ok(Test::NotIn(vec![self.value()?])),
            Token::Word("in") => Ok(Test::In(self.values()?)),
            Token::Word("notin") => Ok(Test::NotIn(self.values()?)),
            Token::Above => Ok(Test::Above(self.number()?)),
            Token::Below => Ok(Test::Below(self.number()?)),
            other => Err(unexpected(&other, "in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// One value; an empty one (`a=`) is allowed.
    fn value(&mut self) -> Result<String, Malformed> {
        if self.at_end_of_requirement() {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => checked_value(word),
            other => Err(unexpected(&other, "identifier")),
        }
    }

    fn number(&mut self) -> Result<i64, Malformed> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            Malformed::Label(format!(
                "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be \
                 an integer"
            ))
        })
    }

    fn values(&mut self) -> Result<Vec<String>, Malformed> {
        match self.next() {
            Token::Open => {}
            other => return Err(unexpected(&other, "'('")),
        }
        let mut values = Vec::new();
        loop {
            // An empty place between commas or brackets is the empty value.
            if self.rest.starts_with([',', ')']) {
                values.push(String::new());
            } else {
                match self.next() {
                    Token::Word(word) => values.push(checked_value(word)?),
                    other => return Err(unexpected(&other, "',', or ')'")),
                }
            }
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(unexpected(&other, "',' or ')'")),
            }
        }
    }
}

fn unexpected(token: &Token<'_>, expected: &str) -> Malformed {
    let found = match token {
        Token::Word(word) => word,
        Token::Comma => ",",
        Token::Open => "(",
        Token::Close => ")",
        Token::Not => "!",
        Token::Equal => "=",
        Token::NotEqual => "!=",
        Token::Above => ">",
        Token::Below => "<",
        Token::End => "",
    };
    Malformed::Label(format!("found '{found}', expected: {expected}"))
}

fn checked_value(word: &str) -> Result<String, Malformed> {
    match is_label_value(word) {
        true => Ok(word.to_owned()),
        false => {
            Err(Malformed::Label(format!("values[0][key]: Invalid value: {word:?}: {VALUE_RULE}")))
        }
    }
}

/// What a qualified name is, for messages.
pub(crate) const NAME_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', \
     and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
     '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// What a label value is, for messages.
pub(crate) const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric \
     characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
     'MyValue',  or 'my_value',  or '12345', regex used for validation is \
     '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Whether a text is a label or annotation key: an optional DNS prefix, a slash, a name.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(crate::admit::names::is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// Whether a text may be the value of a label.
pub(crate) fn is_label_value(text: &str) -> bool {
    let outer = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.chars().all(|c| outer(c) || matches!(c, '-' | '_' | '.'))
            && text.starts_with(outer)
            && text.ends_with(outer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn selects(selector: &str, labels: Value) -> bool {
        Selector::parse(selector).unwrap().matches(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn each_operator_selects_what_it_says() {
        let labels = || json!({"a": "1", "x/b": "two"});
        for yes in [
            "",
            "a",
            "a=1",
            "a==1",
            "a!=2",
            "c!=2",
            "!c",
            "a in (1,2)",
            "a notin (2, 3)",
            "c notin (1)",
            "a>0",
            "a<2",
            "x/b=two,a",
            " a = 1 , !c ",
        ] {
            assert!(selects(yes, labels()), "{yes}");
        }
        for no in ["c", "a=2", "a!=1", "!a", "a in (2)", "a notin (1,2)", "a>1", "x/b>0", "a="] {
            assert!(!selects(no, labels()), "{no}");
        }
        assert!(selects("a=", json!({"a": ""})));
        assert!(selects("a in (,b)", json!({"a": ""})));
    }

    #[test]
    fn broken_text_is_refused() {
        for bad in [
            "a,",
            ",a",
            "a in",
            "a in (",
            "a in (b",
            "a b",
            "=b",
            "!",
            "a=b=c",
            "a>x",
            "a in ((b))",
            "-a=b",
            "a=b!",
            "!a=b",
        ] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-c=!<>(), in]{0,24}") {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn in_and_notin_are_complements(value in "[a-c]", set in prop::collection::vec("[a-c]", 1..4)) {
            let list = set.join(",");
            let labels = json!({"k": value});
            let inside = selects(&format!("k in ({list})"), labels.clone());
            let outside = selects(&format!("k notin ({list})"), labels);
            prop_assert_eq!(inside, set.contains(&value));
            prop_assert_ne!(inside, outside);
        }
    }
}
