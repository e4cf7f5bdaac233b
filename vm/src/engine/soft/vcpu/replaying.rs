//! A guest that replays a log, and the digests by which a replay is compared with its recording.

use super::input::Applied;
use super::{Mode, SLICE_COUNTS, Worker};
use crate::engine::soft::tape::Wrong;
use crate::replay::Registers;
use crate::replay::log::{DIGEST_PAGES_MAX, Digest, LogInput, REGISTERS, page_hash};
use ft_cpu::CpuExit;
use ft_cpu::Tracker;
use std::sync::atomic::Ordering;

impl Worker {
    pub(super) fn replay(&mut self) {
        let Mode::Replaying(replayer) = &mut self.mode else { return };
        let count = self.cpu.count;
        if self.reach.inbox.is_waiting() {
            self.reach.devices.take_finished(&self.reach.inbox);
        }
        if let Some(input) = replayer.take(count) {
            return self.replay_input(input);
        }
        let next = replayer.next();
        if next < count {
            return self.diverge(format!("it went past an input that was recorded at count {next}"));
        }
        if next == count {
            self.publish();
            return self.reach.bell.wait(None);
        }
        if self.idle_until_ns.is_some() {
            return self.diverge(format!("the guest idles, the recording went on to count {next}"));
        }
        if self.reach.devices.are_disks_crowded() {
            self.publish();
            return self.reach.bell.wait(None);
        }
        let exit = self.run(next.min(count.saturating_add(*SLICE_COUNTS.end())));
        if self.tape.check(self.cpu.count) == Err(Wrong) {
            return self.diverge("a device reads other random bytes than in the recording".into());
        }
        match exit {
            CpuExit::Limit | CpuExit::Attention => {}
            CpuExit::Halted => {
                self.diverge(format!("the guest has halted, the recording went on to count {next}"));
            }
            CpuExit::Event(event) => self.event(event),
            CpuExit::TripleFault => {
                // Where the log ends, it is the crash that ended the recording.
                let recorded = matches!(&self.mode, Mode::Replaying(log) if log.is_done(self.cpu.count));
                if recorded { self.crash() } else { self.diverge("triple fault".into()) }
            }
        }
    }

    fn replay_input(&mut self, input: LogInput) {
        if let LogInput::Digest(recorded) = &input {
            let digest = self.digest();
            if let Some(mismatch) = recorded.mismatch(&digest) {
                self.diverge(mismatch.to_string());
            }
            return;
        }
        match (self.apply(&input), &mut self.mode) {
            (Applied::Done, _) => return self.settle(),
            (Applied::NotYet, Mode::Replaying(replayer)) => {
                replayer.put_back(self.cpu.count, input);
                self.publish();
                return self.reach.bell.wait(None);
            }
            _ => {}
        }
        let what = match input {
            LogInput::Frame { .. } => "a frame that was received in the recording",
            LogInput::Console(_) => "console input that was taken in the recording",
            LogInput::Advance { .. } | LogInput::StoodStill { .. } | LogInput::Pace { .. } => {
                "a step of time"
            }
            LogInput::Disk { .. } => "a disk's request that was done in the recording",
            _ => "an input",
        };
        self.diverge(format!("{what} cannot be delivered"));
    }

    /// Registers, and the pages written since the last digest. Where there are more than a digest has room for, the
    /// rest is the next one's.
    pub(super) fn digest(&mut self) -> Digest {
        let registers = self.registers().values;
        let mut pages = std::mem::take(&mut self.pages);
        pages.clear();
        self.cpu.take_dirty(Tracker::Digest, &mut pages);
        let rest = pages.split_off(pages.len().min(DIGEST_PAGES_MAX));
        rest.into_iter().for_each(|page| self.cpu.mark_dirty(page));
        let mut content = [0; ft_ram::layout::PAGE_SIZE];
        let mut hash = |page| {
            self.view.read_page(page, &mut content);
            (page, page_hash(&content))
        };
        let digest = Digest { registers, pages: pages.iter().map(|&page| hash(page)).collect() };
        self.pages = pages;
        digest
    }

    pub(in crate::engine::soft) fn registers(&mut self) -> Registers {
        let now_ns = self.virtual_ns();
        self.reach.now_ns.store(now_ns, Ordering::Relaxed);
        let devices = hash(&self.reach.devices.capture());
        let chips = hash(&self.platform().chips);
        let cpu = &self.cpu;
        let system = &cpu.sys;
        let [es, cs, ss, ds, fs, gs] = system.segs;
        let mut values = [0; REGISTERS.len()];
        values[..16].copy_from_slice(&cpu.regs);
        values[16..].copy_from_slice(&[
            cpu.rip,
            cpu.rflags(),
            cs.selector.into(),
            ss.selector.into(),
            ds.selector.into(),
            es.selector.into(),
            fs.selector.into(),
            gs.selector.into(),
            fs.base,
            gs.base,
            system.kernel_gs_base,
            cpu.cpl.into(),
            system.cr0,
            system.cr2,
            system.cr3,
            system.cr4,
            cpu.bus.cr8().into(),
            system.efer,
            system.gdtr.0,
            system.idtr.0,
            system.tr.base,
            cpu.halted.into(),
            now_ns,
            hash(system),
            hash(&cpu.fpu),
            chips,
            devices,
        ]);
        Registers { count: cpu.count, values }
    }
}

fn hash(state: &impl serde::Serialize) -> u64 {
    // Into memory: it fails for no type of ours.
    postcard::to_allocvec(state).map_or(0, |bytes| crc32c::crc32c(&bytes).into())
}
