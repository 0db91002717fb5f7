//! From the API's bytes to changes of the registry, one object at a time.
//!
//! An object that cannot be read is counted and left out; the others of its page or watch are not
//! lost with it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::k8s::client::{AskError, refusal_event};
use crate::k8s::registry::{Registry, Seen};
use crate::k8s::status::Resource;

/// The longest line of a watch that is read; etcd holds no object above 1.5 MB, JSON may escape.
const MAX_LINE: usize = 16 << 20;

/// A page of a list, its objects unread.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

impl<'a> Page<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, AskError> {
        serde_json::from_slice(bytes).map_err(|error| AskError::Unreadable(error.to_string()))
    }

    pub(super) fn objects(&self) -> &[&'a RawValue] {
        self.items.as_deref().unwrap_or_default()
    }

    /// Where the next page begins.
    pub(super) fn next(&self) -> Option<String> {
        self.metadata.continue_.clone().filter(|token| !token.is_empty())
    }

    /// The version from which on a watch tells what the list did not.
    pub(super) fn version(&self) -> Option<String> {
        self.metadata.resource_version.clone().filter(|version| !version.is_empty())
    }
}

/// An event of a watch, its object unread.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What all objects have.
#[derive(Debug, Deserialize)]
struct Object {
    metadata: ObjectMeta,
}

/// Of an object that cannot be read otherwise, how far the watch has come with it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    metadata: VersionMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct VersionMeta {
    resource_version: String,
}

/// Takes one line of a watch and gives back the version that it has come to.
pub(super) fn apply_event(
    registry: &Registry,
    resource: Resource,
    line: &[u8],
    seen: Seen,
) -> Result<String, AskError> {
    let unreadable = |error: serde_json::Error| AskError::Unreadable(error.to_string());
    let event: Event<'_> = serde_json::from_slice(line).map_err(unreadable)?;
    let done = match event.kind {
        "ERROR" => return Err(refusal_event(event.object.get())),
        "ADDED" | "MODIFIED" => apply(registry, resource, event.object, seen),
        "DELETED" => delete(registry, resource, event.object, seen),
        _bookmark => Ok(()),
    };
    if done.is_err() {
        registry.reject();
    }
    let version: Version = serde_json::from_str(event.object.get()).map_err(unreadable)?;
    Ok(version.metadata.resource_version)
}

/// Sets an object.
pub(super) fn apply(
    registry: &Registry,
    resource: Resource,
    object: &RawValue,
    seen: Seen,
) -> Result<(), serde_json::Error> {
    match resource {
        Resource::Pods => registry.apply_pod(&read(object)?, seen),
        Resource::Nodes => registry.apply_node(&read(object)?, seen),
        Resource::Services => registry.apply_service(&read(object)?, seen),
        Resource::EndpointSlices => registry.apply_slice(&read(object)?, seen),
        Resource::ReplicaSets | Resource::Jobs => {
            let object: Object = read(object)?;
            registry.apply_owner(resource, &object.metadata, seen);
        }
    }
    Ok(())
}

fn delete(
    registry: &Registry,
    resource: Resource,
    object: &RawValue,
    seen: Seen,
) -> Result<(), serde_json::Error> {
    let Object { metadata } = read(object)?;
    match resource {
        Resource::Pods => registry.delete_pod(&metadata, seen),
        Resource::Nodes => registry.delete_node(&metadata, seen),
        Resource::Services => registry.delete_service(&metadata, seen),
        Resource::EndpointSlices => registry.delete_slice(&metadata, seen),
        Resource::ReplicaSets | Resource::Jobs => registry.delete_owner(&metadata, seen),
    }
    Ok(())
}

fn read<T: DeserializeOwned>(object: &RawValue) -> Result<T, serde_json::Error> {
    serde_json::from_str(object.get())
}

/// Bytes of a watch, cut into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    /// Lines before this have been given out.
    taken: usize,
    /// Bytes before this have been searched for the end of a line.
    searched: usize,
}

impl Lines {
    /// Adds what came next.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), AskError> {
        self.held.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        if self.held.len() + bytes.len() > MAX_LINE {
            return Err(AskError::Unreadable(format!("an event is larger than {MAX_LINE} bytes")));
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole line that is not empty.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        loop {
            let end = self.held[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| self.searched + end) else {
                self.searched = self.held.len();
                return None;
            };
            let begin = std::mem::replace(&mut self.taken, end + 1);
            self.searched = end + 1;
            if begin < end {
                return Some(&self.held[begin..end]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_out_whole_however_the_bytes_arrive(
            lines in prop::collection::vec("[a-z{}\"]{0,30}", 0..20),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut rest, mut found, mut cut) = (text.as_bytes(), vec![], 0);
            let mut buffer = Lines::default();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts[cut % cuts.len()].min(rest.len()));
                buffer.add(now).expect("it is short");
                while let Some(line) = buffer.next() {
                    found.push(String::from_utf8(line.to_vec()).expect("it was text"));
                }
                (rest, cut) = (later, cut + 1);
            }
            let wanted: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_bound() {
        let mut buffer = Lines::default();
        let chunk = vec![b'a'; MAX_LINE / 2];
        assert!(buffer.add(&chunk).is_ok() && buffer.add(&chunk).is_ok());
        assert!(matches!(buffer.add(b"a"), Err(AskError::Unreadable(_))));
    }
}
