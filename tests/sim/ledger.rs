//! Where a node records what it knows of the cell: a file on the disk of its state directory, which takes a record or
//! hangs with it. A record that it hangs with is lost with its process; the node has not said "protected" meanwhile.

use ftd::role::{Event, Micros, NodeRecord};
use rand::Rng;

use crate::model::{Input, NAMES};
use crate::mutant::Mutant;
use crate::schedule::Act;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// How long the executor waits for a record at most.
const WAIT_US: Micros = 20_000;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The record that outlives the node's processes.
    pub record: Option<NodeRecord>,
    /// It takes nothing until then.
    hangs_until: Micros,
    /// What it hangs with.
    taking: Option<NodeRecord>,
    /// What is to be recorded after that.
    next: Option<NodeRecord>,
}

impl Ledger {
    /// Whether it has not taken all that it was given.
    pub fn is_behind(&self) -> bool {
        self.taking.is_some()
    }
}

impl World {
    /// From now on a node's disk hangs.
    pub fn hang_disk(&mut self, n: usize, us: Micros) {
        let until = self.now + us;
        let ledger = &mut self.nodes[n].ledger;
        ledger.hangs_until = ledger.hangs_until.max(until);
        self.stats.add(Count::FaultDiskHangs);
    }

    /// A record is given to a node's disk. False: it hangs.
    pub fn give_record(&mut self, n: usize, record: NodeRecord) -> bool {
        let node = &mut self.nodes[n];
        node.acted = node.acted.max(record.generation);
        if self.mutant == Some(Mutant::RecordsNothing) {
            return true;
        }
        if node.ledger.taking.is_some() {
            node.ledger.next = Some(record);
            return false;
        }
        // A node without a record would found whatever it finds: such a start waits for the disk.
        if self.now >= node.ledger.hangs_until || node.ledger.record.is_none() {
            node.ledger.record = Some(record);
            return true;
        }
        node.ledger.taking = Some(record);
        let (inc, until) = (node.inc, node.ledger.hangs_until);
        node.held_up_us = self.rng.random_range(1..WAIT_US);
        self.stats.add(Count::RecordedLate);
        self.at(until, Act::Recorded { n, inc });
        false
    }

    /// A node's disk takes what it hung with.
    pub fn take_record(&mut self, n: usize) {
        let ledger = &mut self.nodes[n].ledger;
        let Some(record) = ledger.taking.take() else { return };
        trace!(self, "the disk of {} takes {record:?}", NAMES[n]);
        ledger.record = Some(record);
        ledger.taking = ledger.next.take();
        let newest = ledger.taking;
        if newest.is_some() {
            let inc = self.nodes[n].inc;
            let delay = self.rng.random_range(1..WAIT_US);
            self.later(delay, Act::Recorded { n, inc });
        }
        // The older one was told before the newer one was asked for, or it is not told at all.
        let told = match self.mutant {
            Some(Mutant::AnyRecordCounts) => newest.unwrap_or(record),
            _ => record,
        };
        self.incoming(n, Input::Event(Event::Recorded(told)));
    }

    /// A node's process ends: what its disk hung with is lost.
    pub fn lose_record(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.ledger.next = None;
        node.held_up_us = 0;
        if node.ledger.taking.take().is_some() {
            node.acted = node.ledger.record.map_or(0, |record| record.generation);
        }
    }
}
