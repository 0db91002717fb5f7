//! How an answer to who the ends are stands to the one before: the same, better known, or forgotten.

use std::sync::Arc;

use crate::conntrack::Translation;
use crate::event::{Attribution, End, Ends, FlowRecord, Reason};
use crate::k8s::identity::Answer;
use crate::k8s::services::Verdict;

/// What is known of a flow: its ends, and what the kernel made of their addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    ends: &'a Ends,
    translation: Option<&'a Arc<Translation>>,
}

impl<'a> Known<'a> {
    pub(super) fn of(flow: &'a FlowRecord) -> Self {
        Self { ends: &flow.ends, translation: flow.translation.as_ref() }
    }

    pub(super) const fn told(answer: &'a Answer) -> Self {
        Self { ends: &answer.ends, translation: answer.translation.as_ref() }
    }

    /// Whether the ends are the same parties, and the same one stands behind the Service.
    pub(super) fn is_same(self, other: Self) -> bool {
        self.ends.owner.is_same(&other.ends.owner)
            && self.ends.peer.is_same(&other.ends.peer)
            && self.goes_on_in(other)
    }

    /// Whether the kernel's translation is the same, or was only told late.
    fn goes_on_in(self, later: Self) -> bool {
        match (self.translation, later.translation) {
            (Some(one), Some(other)) => one.is_like(other),
            (Some(_), None) => false,
            // What was refused was not translated.
            (None, Some(_)) => {
                self.ends.asked.as_ref().is_none_or(|asked| asked.verdict != Verdict::NoEndpoints)
            }
            (None, None) => true,
        }
    }

    /// Whether an answer for a longer time names everybody, and nobody else than this one.
    pub(super) fn is_refined_by(self, longer: Self) -> bool {
        let refines = |known: &End, longer: &End| {
            !longer.is_unknown() && (known.is_unknown() || known.is_same(longer))
        };
        refines(&self.ends.owner, &longer.ends.owner)
            && refines(&self.ends.peer, &longer.ends.peer)
            && self.goes_on_in(longer)
    }

    /// Whether both are shown alike.
    pub(super) fn looks_like(self, other: Self) -> bool {
        let how = |known: Self| (known.ends.owner.how(), known.ends.peer.how());
        self.is_same(other)
            && how(self) == how(other)
            && self.ends.asked.as_ref().map(|asked| asked.verdict)
                == other.ends.asked.as_ref().map(|asked| asked.verdict)
            && self.translation.is_some() == other.translation.is_some()
    }
}

impl Answer {
    /// This answer, with what was known before where it has only been forgotten since.
    pub(super) fn or_kept(self, known: &FlowRecord) -> Self {
        let either = |now: End, known: &End| {
            let forgotten = match &now {
                End::Unknown(how) => how.reason != Reason::AddressAmbiguous,
                End::External(how) => match known {
                    End::Pod(..) => true,
                    // What was hidden behind it is no forgotten holder.
                    End::Node(..) | End::Service(..) => how.attribution != Attribution::Masqueraded,
                    End::External(_) | End::Unknown(_) | End::Process(_) => false,
                },
                End::Process(_) | End::Node(..) | End::Pod(..) | End::Service(..) => false,
            };
            if forgotten && !known.is_unknown() { known.clone() } else { now }
        };
        let kept = known.translation.as_ref().filter(|_| !self.doubtful);
        let ends = Ends {
            owner: either(self.ends.owner, &known.ends.owner),
            peer: either(self.ends.peer, &known.ends.peer),
            asked: self.ends.asked,
        };
        Self { ends, translation: self.translation.or_else(|| kept.cloned()), ..self }
    }
}
