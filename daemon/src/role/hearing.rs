//! What is heard of the peer over a link. Its pulse says often that the peer lives. The stream beside it may stand
//! still although the pulse beats: so each node says something there now and then, and misses it when nothing comes.

use super::event::{ConnId, Micros};
use super::policy::Policy;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Hearing {
    /// The link.
    pub(super) conn: ConnId,
    /// Something came last, on either connection.
    pub(super) heard_at: Micros,
    /// Something came last on the stream.
    streamed_at: Micros,
    /// This node said something there last because it was time.
    told_at: Micros,
}

impl Hearing {
    /// The link has just come about.
    pub(super) fn begin(conn: ConnId, now: Micros) -> Self {
        Self { conn, heard_at: now, streamed_at: now, told_at: now }
    }

    /// The pulse beats.
    pub(super) fn pulse(&mut self, now: Micros) {
        self.heard_at = now;
    }

    /// Something came on the stream.
    pub(super) fn stream(&mut self, now: Micros) {
        (self.heard_at, self.streamed_at) = (now, now);
    }

    /// What was not heard until now says nothing about the peer.
    pub(super) fn excuse(&mut self, now: Micros) {
        self.stream(now);
    }

    /// Why the peer counts as lost, if it does.
    pub(super) fn verdict(&self, now: Micros, policy: &Policy) -> Option<String> {
        let silence = now.saturating_sub(self.heard_at);
        if silence > policy.failure_timeout_us {
            return Some(format!("silent for {} ms", silence / 1000));
        }
        let stall = now.saturating_sub(self.streamed_at);
        let stalls = stall > policy.stall_us();
        stalls.then(|| format!("it lives, but nothing else came from it for {} ms", stall / 1000))
    }

    /// Whether it is time to say something on the stream. Whoever asks says it.
    pub(super) fn is_to_tell(&mut self, now: Micros, policy: &Policy) -> bool {
        let due = now.saturating_sub(self.told_at) >= policy.failure_timeout_us;
        if due {
            self.told_at = now;
        }
        due
    }
}
