//! Paths and queries of the API, read into types.

use std::collections::BTreeMap;
use std::time::Duration;

use super::store::{Object, Resource};

/// What is asked for.
#[derive(Debug)]
pub enum Target {
    /// `/version`, `/readyz` and what else has no resource.
    Plain(String),
    /// All objects of a resource, of one namespace where that is named.
    Collection(&'static Resource, Option<String>),
    /// One object.
    Named(&'static Resource, String, String),
    /// A group that is known, a resource in it that is not.
    NoResource,
    /// Nothing of the kind.
    NoPath,
}

/// Reads a path.
#[must_use]
pub fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] if !rest.is_empty() => ("", rest),
        ["apis", group, "v1", rest @ ..] if !rest.is_empty() => (*group, rest),
        ["version" | "readyz" | "livez" | "healthz" | "api" | "apis", ..] => {
            return Target::Plain(parts[0].to_owned());
        }
        _ => return Target::NoPath,
    };
    let known = |plural: &str| Resource::find(plural).filter(|resource| resource.group == group);
    let found = match rest {
        ["namespaces", namespace, plural] => known(plural)
            .map(|resource| Target::Collection(resource, Some((*namespace).to_owned()))),
        ["namespaces", namespace, plural, name] => known(plural)
            .map(|resource| Target::Named(resource, (*namespace).to_owned(), (*name).to_owned())),
        [plural] => known(plural).map(|resource| Target::Collection(resource, None)),
        [plural, name] => {
            known(plural).map(|resource| Target::Named(resource, String::new(), (*name).to_owned()))
        }
        _ => None,
    };
    let group_is_known = super::store::RESOURCES.iter().any(|resource| resource.group == group);
    found.unwrap_or(if group_is_known { Target::NoResource } else { Target::NoPath })
}

/// The parameters that lists and watches take.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// A watch is wanted.
    pub watch: bool,
    /// As it was sent, possibly empty.
    pub resource_version: String,
    /// `NotOlderThan`, `Exact` or empty.
    pub version_match: String,
    /// Objects a page at most.
    pub limit: Option<usize>,
    /// The token of the page before.
    pub resume: Option<String>,
    /// When the watch is to end.
    pub timeout: Option<Duration>,
    /// Bookmarks are wanted.
    pub bookmarks: bool,
    /// All objects first, then a bookmark that says so.
    pub initial_events: bool,
    /// Which objects.
    pub fields: Vec<Field>,
}

/// One part of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    path: String,
    value: String,
    negate: bool,
}

impl Field {
    fn matches(&self, object: &Object) -> bool {
        let mut value = &object.value;
        for part in self.path.split('.') {
            value = &value[part];
        }
        (value.as_str().unwrap_or_default() == self.value) != self.negate
    }
}

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// What the real server says of a field selector that it does not take.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pairs: BTreeMap<String, String> = text
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (decode(key), decode(value)))
            .collect();
        let word = |key: &str| pairs.get(key).cloned().unwrap_or_default();
        let yes = |key: &str| matches!(word(key).as_str(), "true" | "1");
        Ok(Self {
            watch: yes("watch"),
            resource_version: word("resourceVersion"),
            version_match: word("resourceVersionMatch"),
            limit: word("limit").parse().ok().filter(|&limit| limit > 0),
            resume: pairs.get("continue").cloned().filter(|token| !token.is_empty()),
            timeout: word("timeoutSeconds").parse().ok().map(Duration::from_secs),
            bookmarks: yes("allowWatchBookmarks"),
            initial_events: yes("sendInitialEvents"),
            fields: selector(&word("fieldSelector"))?,
        })
    }

    /// Whether an object is asked for.
    #[must_use]
    pub fn wants(&self, namespace: Option<&str>, object: &Object) -> bool {
        namespace.is_none_or(|namespace| namespace == object.namespace)
            && self.fields.iter().all(|field| field.matches(object))
    }
}

fn selector(text: &str) -> Result<Vec<Field>, String> {
    const KNOWN: [&str; 5] =
        ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "spec.type"];
    let mut fields = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (path, value, negate) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, true)
        } else if let Some((path, value)) = part.split_once("==") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once('=') {
            (path, value, false)
        } else {
            return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
        };
        if !KNOWN.contains(&path) {
            return Err(format!("field label not supported: {path}"));
        }
        fields.push(Field { path: path.to_owned(), value: value.to_owned(), negate });
    }
    Ok(fields)
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Which objects an `Accept` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Whole ones.
    Full,
    /// Only their metadata.
    Metadata,
}

/// Reads an `Accept` header; `None` if nothing in it can be served.
#[must_use]
pub fn shape(accept: &str) -> Option<Shape> {
    if accept.is_empty() {
        return Some(Shape::Full);
    }
    accept.split(',').find_map(|one| {
        let mut parts = one.split(';').map(str::trim);
        let media = parts.next()?;
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            return None;
        }
        let view = parts.find_map(|part| part.strip_prefix("as="));
        match view {
            None => Some(Shape::Full),
            Some(view) if view.starts_with("PartialObjectMetadata") => Some(Shape::Metadata),
            Some(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let is = |path: &str, plural: &str, namespace: Option<&str>| match target(path) {
            Target::Collection(resource, of) => {
                assert_eq!((resource.plural, of.as_deref()), (plural, namespace), "{path}");
            }
            other => panic!("{path}: {other:?}"),
        };
        is("/api/v1/pods", "pods", None);
        is("/api/v1/namespaces/shop/pods", "pods", Some("shop"));
        is("/api/v1/namespaces", "namespaces", None);
        is("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices", None);
        is("/apis/apps/v1/namespaces/a/replicasets", "replicasets", Some("a"));
        assert!(matches!(target("/api/v1/namespaces/shop/pods/web"), Target::Named(..)));
        assert!(matches!(target("/api/v1/nodes/node1"), Target::Named(..)));
        assert!(matches!(target("/api/v1/things"), Target::NoResource));
        assert!(matches!(target("/apis/apps/v1/pods"), Target::NoResource));
        assert!(matches!(target("/apis/absent.example/v1/things"), Target::NoPath));
        assert!(matches!(target("/version"), Target::Plain(_)));
    }

    #[test]
    fn a_query_is_read_and_a_strange_selector_refused() {
        let text = "watch=1&allowWatchBookmarks=true&resourceVersion=12&timeoutSeconds=290\
                    &fieldSelector=spec.nodeName%3Dnode1,status.phase!%3DFailed";
        let query = Query::parse(text).expect("a query");
        assert!(query.watch && query.bookmarks && !query.initial_events);
        assert_eq!(query.timeout, Some(Duration::from_secs(290)));
        assert_eq!(query.fields.len(), 2);
        let refused = Query::parse("fieldSelector=spec.absent%3Dx").expect_err("no such field");
        assert_eq!(refused, "field label not supported: spec.absent");
    }

    #[test]
    fn accept_chooses_the_shape() {
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(shape(metadata), Some(Shape::Metadata));
        assert_eq!(shape("application/json"), Some(Shape::Full));
        assert_eq!(shape("application/xml"), None);
    }
}
