//! What a request gets: lists in pages, single objects, errors as the real server words them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Response, StatusCode, header};
use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::request::{Query, Shape};
use super::store::{Object, Resource, Snapshot, Store};

/// What a request gets.
pub type Reply = Response<Content>;

/// The body of an answer.
#[derive(Debug)]
pub enum Content {
    /// All at once.
    Whole(Option<Bytes>),
    /// As it comes, in chunks.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(chunks) => {
                chunks.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }
}

/// An answer of a media type.
pub(super) fn reply(status: StatusCode, media: &str, content: Content) -> Reply {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, media)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(content)
        .expect("a status and two plain headers make a response")
}

/// A JSON text.
pub(super) fn text(status: StatusCode, text: String) -> Reply {
    reply(status, "application/json", Content::Whole(Some(Bytes::from(text))))
}

/// Plain text, as the server's outer layers answer.
pub(super) fn plain(status: StatusCode, text: &str) -> Reply {
    let bytes = Bytes::from(format!("{text}\n"));
    reply(status, "text/plain; charset=utf-8", Content::Whole(Some(bytes)))
}

/// A Status object that says what failed.
#[must_use]
pub fn status_object(code: u16, reason: &str, message: &str) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "code": code,
    });
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    status
}

/// The answer with a Status object.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Reply {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    text(status, status_object(code, reason, message).to_string())
}

/// 429 as the server's flow control words it.
pub(super) fn too_many(seconds: u32) -> Reply {
    let mut reply =
        plain(StatusCode::TOO_MANY_REQUESTS, "Too many requests, please try again later.");
    reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    reply
}

/// 403 of a verb on a resource.
pub(super) fn forbidden(user: &str, verb: &str, resource: &Resource) -> Reply {
    let (plural, group) = (resource.plural, resource.group);
    let message = format!(
        "{plural} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" \
         in API group \"{group}\" at the cluster scope"
    );
    let mut status = status_object(403, "Forbidden", &message);
    status["details"] = json!({ "kind": plural });
    text(StatusCode::FORBIDDEN, status.to_string())
}

/// An object as it stands in a watch or as an answer of its own.
pub(super) fn whole(resource: &Resource, object: &Object, shape: Shape) -> String {
    match shape {
        Shape::Full => join(resource.kind, &resource.api_version(), &object.text),
        Shape::Metadata => join("PartialObjectMetadata", "meta.k8s.io/v1", &object.metadata),
    }
}

fn join(kind: &str, version: &str, text: &str) -> String {
    let fields = text.strip_prefix('{').unwrap_or_default();
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",{fields}")
}

/// One object, or 404.
pub(super) fn single(
    store: &Store,
    resource: &'static Resource,
    place: (&str, &str),
    shape: Shape,
) -> Reply {
    let (namespace, name) = place;
    let found = store.list(resource).objects.iter().find_map(|object| {
        let same = object.namespace == namespace && object.name == name;
        same.then(|| whole(resource, object, shape))
    });
    found.map_or_else(
        || failure(404, "NotFound", &format!("{} \"{name}\" not found", resource.plural)),
        |object| text(StatusCode::OK, object),
    )
}

/// How long a server waits for a version that is yet to come.
const PATIENCE: Duration = Duration::from_secs(3);

/// A list, or one page of it.
pub(super) async fn list(
    store: &Store,
    resource: &'static Resource,
    namespace: Option<&str>,
    query: &Query,
    shape: Shape,
) -> Reply {
    let (snapshot, start) = match begin(store, resource, query).await {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let wanted = snapshot
        .objects
        .iter()
        .filter(|object| start.as_ref().is_none_or(|start| object.key() >= *start))
        .filter(|object| query.wants(namespace, object));
    // A list from the server's cache is never cut into pages.
    let cached = query.resource_version == "0" && query.resume.is_none();
    let limit = query.limit.filter(|_| !cached).unwrap_or(usize::MAX);
    let mut items = String::new();
    let (mut count, mut left, mut next) = (0, 0, None);
    for object in wanted {
        if count == limit {
            next.get_or_insert_with(|| object.key());
            left += 1;
            continue;
        }
        if count > 0 {
            items.push(',');
        }
        match shape {
            Shape::Full => items.push_str(&object.text),
            Shape::Metadata => items.push_str(&whole(resource, object, shape)),
        }
        count += 1;
    }
    let mut metadata = json!({ "resourceVersion": snapshot.version.to_string() });
    if let Some(next) = next {
        metadata["continue"] = json!(token(i128::from(snapshot.version), &next));
        if query.fields.is_empty() {
            metadata["remainingItemCount"] = json!(left);
        }
    }
    let (kind, version) = match shape {
        Shape::Full => (format!("{}List", resource.kind), resource.api_version()),
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
    };
    let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\"");
    text(StatusCode::OK, format!("{head},\"metadata\":{metadata},\"items\":[{items}]}}"))
}

/// The state that a list shows, and the key that it starts from.
async fn begin(
    store: &Store,
    resource: &'static Resource,
    query: &Query,
) -> Result<(Snapshot, Option<String>), Box<Reply>> {
    if let Some(resume) = &query.resume {
        let (version, start) = read_token(resume)
            .ok_or_else(|| Box::new(failure(400, "BadRequest", "continue key is not valid")))?;
        let Ok(version) = u64::try_from(version) else {
            return Ok((store.list(resource), Some(start)));
        };
        return match store.list_at(resource, version) {
            Some(snapshot) => Ok((snapshot, Some(start))),
            None => Err(Box::new(expired(&start))),
        };
    }
    let asked: u64 = match query.resource_version.as_str() {
        "" | "0" => return Ok((store.list(resource), None)),
        text => text.parse().map_err(|_not_a_number| Box::new(invalid_version(text)))?,
    };
    if asked > store.version() {
        tokio::time::sleep(PATIENCE).await;
        let current = store.version();
        if asked > current {
            let message = format!("Too large resource version: {asked}, current: {current}");
            return Err(Box::new(failure(504, "Timeout", &message)));
        }
    }
    if query.version_match != "Exact" {
        return Ok((store.list(resource), None));
    }
    store.list_at(resource, asked).map(|snapshot| (snapshot, None)).ok_or_else(|| {
        let message = format!("The resourceVersion for the provided list is too old: {asked}");
        Box::new(failure(410, "Expired", &message))
    })
}

/// What the server says of a version that is not a number.
pub(super) fn invalid_version(text: &str) -> Reply {
    let message = format!("strconv.ParseUint: parsing \"{text}\": invalid syntax");
    failure(500, "", &message)
}

/// 410 of a page whose list is gone, with a token that goes on inconsistently.
fn expired(start: &str) -> Reply {
    let message = "The provided continue parameter is too old to display a consistent list \
                   result. You can start a new list without the continue parameter, or use the \
                   continue token in this response to retrieve the remainder of the results.";
    let mut status = status_object(410, "Expired", message);
    status["metadata"] = json!({ "continue": token(-1, start) });
    text(StatusCode::GONE, status.to_string())
}

/// Clients do not look into it, so any reversible form will do.
fn token(version: i128, start: &str) -> String {
    format!("{version} {start}").bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_token(token: &str) -> Option<(i128, String)> {
    let digits: Vec<char> = token.chars().collect();
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok())
        .collect();
    let text = String::from_utf8(bytes?).ok()?;
    let (version, start) = text.split_once(' ')?;
    Some((version.parse().ok()?, start.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back() {
        let text = token(1266, "shop/bare");
        assert_eq!(read_token(&text), Some((1266, "shop/bare".to_owned())));
        assert_eq!(read_token("zz"), None);
    }
}
