//! Label selectors as `kubectl -l` reads them: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`,
//! `a`, `!a`, joined by commas, all of which must hold. Reads text, evaluates over labels, and asks
//! nobody for them.

use crate::error::FilterError;
use crate::view::LabelView;

/// Bytes of a key's name and of a value, as Kubernetes limits them.
const NAME_BYTES: usize = 63;
/// Bytes of the prefix of a key.
const PREFIX_BYTES: usize = 253;

/// A label selector that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    all: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Holds also where the label is absent.
    NotIn(Vec<String>),
}

impl Selector {
    /// Reads a selector; blanks around keys, operators and values do not matter.
    ///
    /// # Errors
    /// The text, what is wrong with it, and the accepted forms.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let bad = |reason| FilterError::Selector { value: text.to_owned(), reason };
        let all = requirements(text).map(|part| requirement(part.trim()));
        Ok(Self { all: all.collect::<Result<_, _>>().map_err(bad)? })
    }

    /// True if all its requirements hold for these labels.
    #[must_use]
    pub fn matches(&self, labels: &dyn LabelView) -> bool {
        self.all.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let among = |values: &[String]| {
                value.is_some_and(|value| values.iter().any(|wanted| wanted == value))
            };
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => among(values),
                Test::NotIn(values) => !among(values),
            }
        })
    }
}

/// Splits at commas that are not within parentheses.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
}

fn requirement(text: &str) -> Result<Requirement, String> {
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Requirement { key: key(name)?, test: Test::Absent });
    }
    if let Some((name, values)) = text.split_once('(') {
        return listed(name, values);
    }
    for (operator, make) in OPERATORS {
        if let Some((name, value)) = text.split_once(operator) {
            return Ok(Requirement { key: key(name)?, test: make(vec![self::value(value)?]) });
        }
    }
    Ok(Requirement { key: key(text)?, test: Test::Exists })
}

type Make = fn(Vec<String>) -> Test;

/// The longer ones first.
const OPERATORS: [(&str, Make); 3] = [("!=", Test::NotIn), ("==", Test::In), ("=", Test::In)];

/// `key in (values)` and `key notin (values)`, split at the parenthesis.
fn listed(before: &str, after: &str) -> Result<Requirement, String> {
    let values = after.strip_suffix(')').ok_or("a list of values does not end with )")?;
    let (name, operator) = before
        .trim_end()
        .rsplit_once(char::is_whitespace)
        .ok_or("a list of values needs a key and in or notin before it")?;
    let make = match operator {
        "in" => Test::In,
        "notin" => Test::NotIn,
        other => return Err(format!("{other:?} is neither in nor notin")),
    };
    let values = values.split(',').map(value).collect::<Result<_, _>>()?;
    Ok(Requirement { key: key(name)?, test: make(values) })
}

fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_is_fine = prefix.is_none_or(|prefix| {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        !prefix.is_empty() && prefix.len() <= PREFIX_BYTES && prefix.bytes().all(fine)
    });
    match name {
        "" if prefix.is_none() => Err("a key is missing".to_owned()),
        _ if !prefix_is_fine || !is_name(name) => Err(format!("{text:?} is not a label's key")),
        _ => Ok(text.to_owned()),
    }
}

fn value(text: &str) -> Result<String, String> {
    match text.trim() {
        text if text.is_empty() || is_name(text) => Ok(text.to_owned()),
        text => Err(format!("{text:?} is not a label's value")),
    }
}

/// Letters, digits, `-`, `_` and `.`, a letter or digit at either end, at most 63 bytes.
fn is_name(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= NAME_BYTES
        && text.bytes().all(fine)
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> HashMap<String, String> {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').expect("key=value");
            (key.to_owned(), value.to_owned())
        };
        text.split_whitespace().map(pair).collect()
    }

    #[test]
    fn selectors_mean_what_kubectl_means() {
        let pod = labels("app=web tier=front app.kubernetes.io/name=shop empty=");
        for (text, expected) in [
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app=we", false),
            ("app!=web", false),
            ("app!=db", true),
            ("other!=db", true),
            ("other=db", false),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,web)", false),
            ("app notin (db)", true),
            ("other notin (db)", true),
            ("app", true),
            ("other", false),
            ("!app", false),
            ("! other", true),
            ("empty=", true),
            ("empty", true),
            ("empty in (a,)", true),
            ("app=", false),
            ("app.kubernetes.io/name=shop", true),
            ("app=web,tier=front", true),
            ("app=web, tier=back", false),
            ("app in (web,db),tier notin (back),!other", true),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&pod), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "a key is missing"),
            ("app=web,", "a key is missing"),
            ("=web", "a key is missing"),
            ("!", "a key is missing"),
            ("app in (a", "a list of values does not end with )"),
            ("app within (a)", "\"within\" is neither in nor notin"),
            ("in (a)", "a list of values needs a key and in or notin before it"),
            ("a b=c", "\"a b\" is not a label's key"),
            ("-a=c", "\"-a\" is not a label's key"),
            ("/a=c", "\"/a\" is not a label's key"),
            ("a/=c", "\"a/\" is not a label's key"),
            ("app=a b", "\"a b\" is not a label's value"),
            ("app=a=b", "\"a=b\" is not a label's value"),
            ("app>3", "\"app>3\" is not a label's key"),
        ] {
            let error = Selector::parse(text).unwrap_err().to_string();
            assert!(error.ends_with(&format!(": {reason}")), "{text}: {error}");
            assert!(error.starts_with(&format!("{text:?} is not a label selector")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-c=!,() /.\\-ünot]{0,24}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&text).unwrap(), selector);
            }
        }

        #[test]
        fn in_and_notin_are_opposites(
            key in "[abc]", values in proptest::collection::vec("[xyz]", 1..4),
            held in proptest::collection::hash_map("[abc]", "[xyz]", 0..4),
        ) {
            let list = values.join(",");
            let within = Selector::parse(&format!("{key} in ({list})")).unwrap();
            let without = Selector::parse(&format!("{key} notin ({list})")).unwrap();
            prop_assert_ne!(within.matches(&held), without.matches(&held));
            let expected = held.get(&key).is_some_and(|value| values.contains(value));
            prop_assert_eq!(within.matches(&held), expected);
        }
    }
}
