//! Names of objects of Kubernetes as people write them in filters, `namespace/` and `kind/` optional.

use crate::error::FilterError;
use crate::view::EndView;

/// A prefix of pods' names, in one namespace or in all.
#[derive(Clone, Debug)]
pub(crate) struct PodPrefix {
    namespace: Option<String>,
    prefix: String,
}

impl PodPrefix {
    pub(crate) fn parse(text: &str) -> Result<Self, FilterError> {
        match text.split_once('/') {
            None => Ok(Self { namespace: None, prefix: text.to_owned() }),
            Some((namespace, prefix)) if !namespace.is_empty() && !prefix.contains('/') => {
                Ok(Self { namespace: Some(namespace.to_owned()), prefix: prefix.to_owned() })
            }
            Some(_) => Err(bad("pod", text, "[namespace/]prefix of its name")),
        }
    }

    /// An end without a pod has an empty name, which no prefix matches.
    pub(crate) fn matches(&self, namespace: &str, pod: &str) -> bool {
        !pod.is_empty()
            && pod.starts_with(&self.prefix)
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }
}

/// A Service, in one namespace or in all.
#[derive(Clone, Debug)]
pub(crate) struct ServiceName {
    namespace: Option<String>,
    name: String,
}

impl ServiceName {
    pub(crate) fn parse(text: &str) -> Result<Self, FilterError> {
        let (namespace, name) = match text.split_once('/') {
            None => (None, text),
            Some((namespace, name)) => (Some(namespace), name),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err(bad("service", text, "[namespace/]name"));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }

    pub(crate) fn matches(&self, namespace: &str, name: &str) -> bool {
        name == self.name && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }
}

/// A top owner.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadName {
    /// What stands before the name: at most a namespace and a kind.
    before: Vec<String>,
    name: String,
}

impl WorkloadName {
    pub(crate) fn parse(text: &str) -> Result<Self, FilterError> {
        let mut parts: Vec<String> = text.split('/').map(str::to_owned).collect();
        if parts.len() > 3 || parts.iter().any(String::is_empty) {
            return Err(bad("workload", text, "[namespace/][kind/]name"));
        }
        let name = parts.pop().unwrap_or_default();
        Ok(Self { before: parts, name })
    }

    pub(crate) fn matches(&self, end: &impl EndView) -> bool {
        end.workload(|kind, name| {
            let is_kind = |word: &String| word.eq_ignore_ascii_case(kind);
            let is_namespace = |word: &String| *word == end.namespace();
            name == self.name
                && match self.before.as_slice() {
                    [word] => is_kind(word) || is_namespace(word),
                    [namespace, kind] => is_namespace(namespace) && is_kind(kind),
                    _ => true,
                }
        })
    }
}

/// Characters of a container's id that are enough to name it, as the runtimes' tools show it.
const SHORT_ID: usize = 12;

/// True if a container has this name, or an id that begins so.
pub(crate) fn is_container(wanted: &str, end: &impl EndView) -> bool {
    let by_id = wanted.len() >= SHORT_ID && end.container_id().starts_with(wanted);
    by_id || end.container(|name| name == wanted)
}

/// A whole name; an empty one would name what is not known.
pub(crate) fn whole(field: &'static str, text: &str) -> Result<String, FilterError> {
    match text {
        "" => Err(bad(field, text, "its whole name")),
        name => Ok(name.to_owned()),
    }
}

fn bad(field: &'static str, value: &str, form: &'static str) -> FilterError {
    FilterError::Name { field, value: value.to_owned(), form }
}
