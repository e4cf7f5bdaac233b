//! A node's keeper, as far as the protocol can see it: the VM is a counter that runs, is copied, captured and frozen.

use ft_netbuf::{BootTime, Gate, Permit, Transmitted};
use ftd::role::{ConnId, Event};
use rand::Rng;

use crate::model::{Checkpoint, Frame, Msg, NAMES, Replication, Vm};
use crate::mutant::Mutant;
use crate::schedule::Act;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

impl World {
    pub fn begin_run(&mut self, n: usize, counter: u64) {
        // Whatever the operator gave up for it is given up now, and nothing after that.
        self.nodes[n].fresh = false;
        self.run_from(n, counter, self.truth.newest_run().unwrap_or(0));
    }

    /// A VM runs here of which nothing may ever leave.
    pub fn begin_vain_run(&mut self, n: usize, counter: u64) {
        self.run_from(n, counter, u32::MAX);
    }

    fn run_from(&mut self, n: usize, counter: u64, run: u32) {
        let inc = self.nodes[n].inc;
        self.nodes[n].exec.vm = Some(Vm { run, counter, ended: false });
        self.nodes[n].exec.broken_at = None;
        self.later(1_000, Act::Vm { n, inc, run });
    }

    /// A VM that stood still for a switchover goes on, although it was resumed elsewhere in the meantime: by the cell.
    pub fn take_back(&mut self, n: usize) {
        let newest = self.truth.newest_run();
        let Some(vm) = self.nodes[n].exec.vm.as_ref().filter(|vm| Some(vm.run) != newest && !vm.ended) else {
            return;
        };
        if self.owner() != Some(n) {
            return;
        }
        self.stats.add(Count::TakenBack);
        let counter = vm.counter;
        self.check_taken_back(n, counter);
        self.begin_run(n, counter);
    }

    /// The VM goes on a little: its counter advances, and most times it sends a frame.
    pub fn run_vm(&mut self, n: usize, inc: u32, run: u32) {
        let depth = self.knobs.depth;
        let epoch_us = self.knobs.epoch_us;
        let sends = self.rng.random_bool(0.7);
        let born = self.now;
        let exec = &mut self.nodes[n].exec;
        let Some(vm) = exec.vm.as_mut().filter(|vm| vm.run == run && !vm.ended) else { return };
        let holding = exec.card.gate() == Gate::Holding;
        let waits = exec
            .repl
            .as_ref()
            .is_some_and(|repl| repl.last.is_some() || !repl.copying && repl.owed.len() >= depth && holding);
        if !waits {
            vm.counter += 1;
            if sends {
                let frame = Frame { run, counter: vm.counter, born };
                let output = exec.card.output.clone();
                self.begin_output(n, None);
                let taken = output.transmit(0, &frame.to_bytes());
                if taken == Transmitted::Full {
                    self.stats.add(Count::FramesRefused);
                }
                self.end_output(n);
            }
        }
        let delay = self.rng.random_range(epoch_us / 3..epoch_us);
        self.later(delay, Act::Vm { n, inc, run });
    }

    /// A full copy begins.
    pub fn begin_copy(&mut self, n: usize, conn: ConnId, pairing: u64) {
        self.repls += 1;
        let (id, inc) = (self.repls, self.nodes[n].inc);
        self.nodes[n].exec.repl = Some(Replication {
            id,
            conn: self.is_open(n, conn).then_some(conn),
            pairing,
            copying: true,
            next_epoch: 1,
            owed: Default::default(),
            last: None,
            broken: false,
            known_broken: false,
            images_differ: false,
        });
        let left = self.rng.random_range(0..6);
        self.later(3_000, Act::Copy { n, inc, repl: id, left });
    }

    pub fn copy_on(&mut self, n: usize, inc: u32, id: u32, left: u32) {
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| repl.id == id && repl.copying) else {
            return;
        };
        let (Some(conn), pairing) = (repl.conn, repl.pairing) else { return };
        if left > 0 {
            self.send(n, conn, Msg::Progress);
            let delay = self.rng.random_range(2_000..20_000);
            return self.later(delay, Act::Copy { n, inc, repl: id, left: left - 1 });
        }
        if self.nodes[n].exec.vm.is_none() {
            return;
        }
        if let Some(repl) = &mut self.nodes[n].exec.repl {
            repl.copying = false;
        }
        if self.mutant != Some(Mutant::HoldTooLate) {
            self.nodes[n].exec.card.output.hold();
        }
        self.tell(n, Event::FirstCaptured { pairing });
        self.capture(n);
        let epoch = self.knobs.epoch_us;
        self.later(epoch, Act::Capture { n, inc, repl: id });
    }

    pub fn capture_tick(&mut self, n: usize, inc: u32, id: u32) {
        let depth = self.knobs.depth;
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| repl.id == id) else { return };
        let stands_still = repl.last.is_some() && self.mutant != Some(Mutant::EpochsWhileFrozen);
        if !stands_still && repl.owed.len() < depth {
            self.capture(n);
        }
        let epoch = self.knobs.epoch_us;
        self.later(epoch, Act::Capture { n, inc, repl: id });
    }

    fn capture(&mut self, n: usize) {
        let at_capture = self.mutant == Some(Mutant::ReleaseAtCapture);
        let exec = &mut self.nodes[n].exec;
        let (Some(repl), Some(vm)) = (&mut exec.repl, &exec.vm) else { return };
        let checkpoint = Checkpoint { epoch: repl.next_epoch, counter: vm.counter };
        repl.next_epoch += 1;
        repl.owed.push_back(checkpoint);
        let output = exec.card.output.clone();
        output.close_epoch(checkpoint.epoch);
        trace!(self, "{} captured {checkpoint:?}", NAMES[n]);
        if at_capture {
            self.begin_output(n, None);
            let _ =
                output.release_through(checkpoint.epoch, Permit { valid_until: BootTime::from_us(u64::MAX) });
            self.end_output(n);
        }
        self.send_checkpoint(n, checkpoint);
        self.drive(n);
    }

    fn send_checkpoint(&mut self, n: usize, checkpoint: Checkpoint) {
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| !repl.broken) else { return };
        let (Some(conn), pairing) = (repl.conn, repl.pairing) else { return };
        let Checkpoint { epoch, counter } = checkpoint;
        if self.mutant == Some(Mutant::SealAtFirstPiece) || self.rng.random_bool(0.1) {
            self.send(n, conn, Msg::Part { pairing, epoch, counter });
        }
        let stamp = self.nodes[n].clock(self.now);
        self.send(n, conn, Msg::End { pairing, epoch, counter, stamp });
    }

    /// The backup is back, and holds this epoch: what it lacks is sent again.
    pub fn send_again(&mut self, n: usize, conn: ConnId, held: u64) {
        self.stats.add(Count::Resumed);
        let open = self.is_open(n, conn).then_some(conn);
        let Some(repl) = &mut self.nodes[n].exec.repl else {
            return self.fail(format!("{} resumes a pairing that it has not", NAMES[n]));
        };
        if repl.known_broken {
            return self.fail(format!("{} resumes a pairing that ships nothing", NAMES[n]));
        }
        repl.conn = open;
        repl.owed.retain(|owed| owed.epoch > held);
        let owed: Vec<_> = repl.owed.iter().copied().collect();
        let first = owed.first().map_or(repl.next_epoch, |owed| owed.epoch);
        if first != held + 1 {
            return self.fail(format!("I4: {} resumes after {held}, but owes from {first}", NAMES[n]));
        }
        for checkpoint in owed {
            self.send_checkpoint(n, checkpoint);
        }
    }

    pub fn begin_last(&mut self, n: usize) {
        self.repls += 1;
        let request = self.repls;
        let inc = self.nodes[n].inc;
        match &mut self.nodes[n].exec.repl {
            Some(repl) => repl.last = Some(request),
            None => return self.fail(format!("{} is to capture a last checkpoint of no pairing", NAMES[n])),
        }
        let delay = self.rng.random_range(0..5_000);
        self.later(delay, Act::Last { n, inc, request });
    }

    pub fn capture_last(&mut self, n: usize, request: u32) {
        let repl = self.nodes[n].exec.repl.as_ref();
        let Some(repl) = repl.filter(|repl| repl.last == Some(request)) else { return };
        let epoch = repl.next_epoch;
        self.capture(n);
        self.tell(n, Event::FinalCaptured { epoch });
    }
}
