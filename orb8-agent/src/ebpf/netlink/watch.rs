//! Tells when interfaces, addresses, routes or neighbours have changed. Never says how.

use std::io;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::runtime::{Builder, Runtime};

use super::routes::host_route;

/// What may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Interfaces, addresses or default routes.
    Links,
    /// Routes to single addresses or neighbours: who is behind an interface.
    Neighbours,
}

/// Starts a thread that calls `changed` whenever something may have changed, also when the kernel
/// had to drop messages; until it returns false.
///
/// # Errors
/// What opening the socket or starting the thread says.
pub fn watch(changed: impl Fn(Changed) -> bool + Send + 'static) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut messages = subscribe(&runtime)?;
    std::thread::Builder::new().name("interfaces".to_owned()).stack_size(256 * 1024).spawn(
        move || {
            while runtime.block_on(forward(&mut messages, &changed)) {
                // The socket broke: whatever happened meanwhile is found by a new listing.
                messages = loop {
                    std::thread::sleep(REOPEN);
                    match subscribe(&runtime) {
                        Ok(messages) => break messages,
                        Err(error) => tracing::warn!(%error, "interfaces cannot be watched"),
                    }
                };
                if !changed(Changed::Links) {
                    return;
                }
            }
        },
    )?;
    Ok(())
}

/// Time until a broken socket is opened anew.
const REOPEN: std::time::Duration = std::time::Duration::from_secs(1);

type Messages = Pin<Box<dyn Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Send>>;

fn subscribe(runtime: &Runtime) -> io::Result<Messages> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let _guard = runtime.enter();
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    runtime.spawn(connection);
    Ok(Box::pin(messages.map(|(message, _)| message.payload)))
}

/// Tells changes until the messages end (true) or nobody wants to know (false).
async fn forward(messages: &mut Messages, changed: &impl Fn(Changed) -> bool) -> bool {
    while let Some(payload) = messages.next().await {
        if concerns(&payload).is_some_and(|what| !changed(what)) {
            return false;
        }
    }
    true
}

/// What a message may change.
fn concerns(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Changed> {
    use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewNeighbour, NewRoute};
    match payload {
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            if route.header.destination_prefix_length == 0 {
                Some(Changed::Links)
            } else {
                host_route(route).map(|_| Changed::Neighbours)
            }
        }
        NetlinkPayload::InnerMessage(NewNeighbour(_) | DelNeighbour(_)) => {
            Some(Changed::Neighbours)
        }
        _ => Some(Changed::Links),
    }
}
