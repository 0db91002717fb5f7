//! What the kernel's connection tracking says of a packet: who really stands behind its addresses.

use std::net::{IpAddr, SocketAddr};

use super::{Began, Question};
use crate::conntrack::Translation;

/// A translation as it bears on one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    /// Who began, as the kernel noted it.
    pub(super) began: Began,
    /// The owner's own address.
    pub(super) owner: SocketAddr,
    /// The other end's own address.
    pub(super) peer: SocketAddr,
    /// The client's address before it was masked, if it was.
    masked: Option<(IpAddr, IpAddr)>,
}

impl Sides {
    /// Reads a translation from the owner's side.
    pub(super) fn of(question: &Question<'_>, translation: &Translation) -> Self {
        let tuple = question.tuple();
        let (client, server) = (translation.original.src, translation.reply.src);
        let forth = tuple == translation.original || tuple == translation.reply.reversed();
        let masked = translation
            .rewrites_source()
            .then(|| (translation.reply.dst.ip(), client.ip()))
            .filter(|(shown, real)| shown != real);
        if forth == question.egress {
            Self { began: Began::Owner, owner: client, peer: server, masked }
        } else {
            Self { began: Began::Peer, owner: server, peer: client, masked }
        }
    }

    /// The address that the owner's shown address hides.
    pub(super) fn hidden_owner(&self, shown: IpAddr) -> Option<IpAddr> {
        self.hidden(Began::Owner, shown)
    }

    /// The address that the other end's shown address hides.
    pub(super) fn hidden_peer(&self, shown: IpAddr) -> Option<IpAddr> {
        self.hidden(Began::Peer, shown)
    }

    fn hidden(&self, client: Began, shown: IpAddr) -> Option<IpAddr> {
        let (mask, real) = self.masked?;
        (self.began == client && mask == shown).then_some(real)
    }
}
