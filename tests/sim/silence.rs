//! Whether a node gives up a peer that has fallen silent: within the failure timeout that the operator has declared
//! last, by whatever is heard of the peer over any link.

use ftd::role::{Event, Micros, State, Times};

use crate::model::{Input, NAMES};
use crate::mutant::Mutant;
use crate::world::World;

/// A tick, a step that waits for a disk, and some more.
const SLACK_US: Micros = 50_000;

impl World {
    /// A node's process is about to take this in. False: a mutant does not.
    pub fn note_heard(&mut self, n: usize, input: &Input) -> bool {
        let now = self.now;
        let node = &mut self.nodes[n];
        // What was not heard while the process itself stood still says nothing about the peer.
        let stood = now - node.took_at > node.failure_timeout_us * 2 / 5;
        // A receiver that is ahead of the core has sealed what came in already.
        if stood || matches!(input, Input::Net(..) | Input::Event(Event::Sealed { .. })) {
            node.exec.heard_at = now;
        }
        node.took_at = now;
        if let Input::Event(Event::Retimed(Times { failure_timeout_us, .. })) = input {
            node.failure_timeout_us = *failure_timeout_us;
            return self.mutant != Some(Mutant::IgnoresRetimed);
        }
        true
    }

    /// Checked right after a node has been given the time.
    pub fn check_silence(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(executor) = node.executor.as_ref().filter(|executor| executor.is_at_rest()) else { return };
        let follows = matches!(executor.view().state, State::Protected | State::Degraded | State::Resyncing);
        let idle = node.up && node.inbox.is_empty() && node.frozen_until.is_none() && node.slow_us == 0;
        if !follows || !idle || node.exec.links.is_empty() {
            return;
        }
        // By how much clocks drift.
        let limit_us = node.failure_timeout_us + node.failure_timeout_us / 20 + SLACK_US;
        let silent_us = self.now - node.exec.heard_at;
        if silent_us > limit_us {
            let timeout_us = node.failure_timeout_us;
            self.fail(format!(
                "too late: {} has heard nothing for {silent_us} us, and shall give up after {timeout_us}",
                NAMES[n]
            ));
        }
    }
}
