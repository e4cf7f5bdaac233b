//! What a case is, and what is checked after each: nothing hangs or panics, the device is reset and serves plain
//! requests again, and so does the device of another machine that takes over the state in which the case has left this
//! one.

use crate::driver::{Device, NEXT, Piece, Stage, WRITE};
use crate::vm::{BUFFERS, PATIENCE, TargetVm};
use ft_vm::devices::{Delivered, DeviceCounters, plain_packet};
use ft_vm::spec::{BusKind, EngineKind};
use ft_vm::testing::engines;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What a driver does, and what comes of it.
pub struct Case {
    pub name: &'static str,
    pub on: &'static [Device],
    pub driver: Driver,
    pub expected: Expected,
}

pub enum Driver {
    /// With all queues started and these features beside VERSION_1.
    Started(u64, fn(&mut Stage<'_>)),
    /// From a device in whatever state it is.
    Raw(fn(&mut Stage<'_>)),
    /// The same, on this bus only.
    On(BusKind, fn(&mut Stage<'_>)),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// All chains come back, and nothing is counted as refused.
    Served,
    /// All chains come back, at least one of them refused, which is counted; the device goes on.
    Refused,
    /// The device counts one breach of the rules and stops until it is reset.
    NeedsReset,
    /// It makes no difference: nothing comes back, nothing is counted.
    Ignored,
    /// Whatever it is, the machine and the device live.
    Survived,
}

pub const ALL: &[Device] = &[Device::Net, Device::Block, Device::Rng];
pub const NET: &[Device] = &[Device::Net];
pub const BLOCK: &[Device] = &[Device::Block];
pub const RNG: &[Device] = &[Device::Rng];
pub const NET_AND_RNG: &[Device] = &[Device::Net, Device::Rng];

/// A case with started queues and nothing negotiated beside VERSION_1.
pub const fn started(
    name: &'static str,
    on: &'static [Device],
    expected: Expected,
    steps: fn(&mut Stage<'_>),
) -> Case {
    negotiated(name, on, 0, expected, steps)
}

/// A case with started queues and these features.
pub const fn negotiated(
    name: &'static str,
    on: &'static [Device],
    features: u64,
    expected: Expected,
    steps: fn(&mut Stage<'_>),
) -> Case {
    Case { name, on, driver: Driver::Started(features, steps), expected }
}

/// A case that begins with the registers.
pub const fn raw(
    name: &'static str,
    on: &'static [Device],
    expected: Expected,
    steps: fn(&mut Stage<'_>),
) -> Case {
    Case { name, on, driver: Driver::Raw(steps), expected }
}

/// The same where the device is on this bus.
pub const fn on_bus(
    name: &'static str,
    on: &'static [Device],
    bus: BusKind,
    expected: Expected,
    steps: fn(&mut Stage<'_>),
) -> Case {
    Case { name, on, driver: Driver::On(bus, steps), expected }
}

/// Chains that were refused, but for those that stop their device.
fn refusals(counters: &DeviceCounters) -> u64 {
    counters.block_errors + counters.tx_dropped + counters.rx_dropped
}

impl Case {
    /// Each case is run with each device on both engines, on one bus there and on the other here, to save time.
    fn is_due(&self, device: Device, engine: EngineKind, bus: BusKind) -> bool {
        match self.driver {
            Driver::On(wanted, _) => bus == wanted,
            _ => (self.name.len() + device as usize + engine as usize + bus as usize).is_multiple_of(2),
        }
    }

    /// Runs it on a device; in what machine the next one is run.
    fn run(&self, mut vm: TargetVm, device: Device) -> TargetVm {
        let before = vm.machine.counters();
        let mut stage = Stage::new(&vm, device);
        (0..stage.queues.len()).for_each(|queue| stage.clear(queue));
        match &self.driver {
            Driver::Started(features, steps) => {
                stage.start(*features);
                steps(&mut stage);
            }
            Driver::Raw(steps) | Driver::On(_, steps) => steps(&mut stage),
        }
        let offered: Vec<_> = stage.queues.iter().map(|queue| (queue.used, queue.next_avail)).collect();
        // The receive queue keeps its buffers.
        let all_back = || {
            let mut queues = offered.iter().skip(usize::from(device == Device::Net));
            queues.all(|&(used, next_avail)| vm.peek_u16(used + 2) == next_avail)
        };
        let name = self.name;
        match self.expected {
            Expected::Served | Expected::Refused => vm.until(&format!("{name}: chains come back"), all_back),
            Expected::NeedsReset => {
                vm.until(&format!("{name}: a reset is asked for"), || stage.needs_reset())
            }
            Expected::Ignored | Expected::Survived => {}
        }
        let after = vm.machine.counters();
        let stopped = after.malformed - before.malformed;
        let refused = refusals(&after) - refusals(&before);
        match self.expected {
            Expected::Survived => {}
            Expected::NeedsReset => assert_eq!(stopped, 1, "{name} on {device:?}"),
            expected => {
                assert!(!stage.needs_reset() && stopped == 0, "{name} on {device:?}: the device has stopped");
                assert_eq!(refused != 0, expected == Expected::Refused, "{name} on {device:?}: {refused}");
                let untouched = offered.iter().all(|&(used, _)| vm.peek_u16(used + 2) == 0);
                assert!(expected != Expected::Ignored || untouched, "{name} on {device:?}: chains come back");
            }
        }
        let mut twin = vm.twin();
        serves(&vm, device);
        drop(vm);
        twin.machine.resume().unwrap();
        serves(&twin, device);
        twin
    }
}

/// The buffers of a plain request, which are prepared.
pub fn plain(stage: &Stage<'_>) -> Vec<Piece> {
    match stage.device {
        Device::Net => {
            stage.vm.poke(BUFFERS, &[0; 12 + 60]);
            vec![(BUFFERS, 12 + 60, 0)]
        }
        Device::Block => {
            stage.vm.poke(BUFFERS, &[0; 16]);
            vec![(BUFFERS, 16, 0), (BUFFERS + 0x1000, 512, WRITE), (BUFFERS + 0x2000, 1, WRITE)]
        }
        Device::Rng => vec![(BUFFERS, 64, WRITE)],
    }
}

/// The queue that plain requests go to.
pub fn work(device: Device) -> usize {
    usize::from(device == Device::Net)
}

/// The device serves plain requests after a reset, rightly.
fn serves(vm: &TargetVm, device: Device) {
    let mut stage = Stage::new(vm, device);
    stage.start(0);
    match device {
        Device::Net => exchanges_frames(&mut stage),
        Device::Block => keeps_a_sector(&mut stage),
        Device::Rng => {
            vm.poke(BUFFERS, &[0; 64]);
            stage.serve(0, &[(BUFFERS, 64, WRITE)]);
            assert_eq!(stage.wait_used(0, 1), [(0, 64)]);
            assert_ne!(vm.peek(BUFFERS, 64), [0; 64]);
        }
    }
    assert!(!stage.needs_reset());
    vm.is_well("plain requests");
}

fn exchanges_frames(stage: &mut Stage<'_>) {
    let vm = stage.vm;
    // What a case has sent may be on its way.
    let frame = [0xa5; 77];
    vm.poke(BUFFERS, &plain_packet(&frame));
    stage.serve(1, &[(BUFFERS, 12 + 77, 0)]);
    assert_eq!(stage.wait_used(1, 1), [(0, 0)]);
    let sent = std::cell::RefCell::new(Vec::new());
    vm.until("the frame leaves", || {
        sent.borrow_mut().extend(vm.frames.take());
        sent.borrow().last().is_some_and(|packet| packet[12..] == frame)
    });
    receives(stage, &[0x5a; 99]);
}

/// Offers a buffer, and a frame that fits it.
pub fn receives(stage: &mut Stage<'_>, frame: &[u8]) {
    let vm = stage.vm;
    let at = BUFFERS + 0x8000;
    vm.poke(at, &[0; 2048]);
    stage.serve(0, &[(at, 2048, WRITE)]);
    let _ = deliver(stage, frame);
    let used = stage.wait_used(0, 1);
    assert_eq!(used.last().map(|used| used.1), Some(12 + frame.len() as u32));
    assert_eq!(vm.peek(at + 12, frame.len()), frame);
}

/// A frame comes from outside.
pub fn deliver(stage: &Stage<'_>, frame: &[u8]) -> Delivered {
    let net = stage.vm.machine.net(0).unwrap();
    net.deliver(&plain_packet(frame))
}

fn keeps_a_sector(stage: &mut Stage<'_>) {
    let vm = stage.vm;
    let words: Vec<u8> = (0..512).map(|i| (i * 7 + usize::from(stage.queues[0].next_desc)) as u8).collect();
    let (header, data, status) = (BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x2000);
    for (kind, sector, buffer) in [(1u32, 5u64, Some(0)), (4, 0, None), (0, 5, Some(WRITE))] {
        vm.poke(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        vm.poke(data, if kind == 1 { &words } else { &[0; 512] });
        vm.poke(status, &[0xff]);
        let mut chain = vec![(header, 16, 0)];
        chain.extend(buffer.map(|flags| (data, 512, flags)));
        chain.push((status, 1, WRITE));
        stage.serve(0, &chain);
        let written = if kind == 0 { 513 } else { 1 };
        assert_eq!(stage.wait_used(0, 1)[0].1, written);
        assert_eq!(vm.peek(status, 1), [0], "request {kind}");
    }
    assert_eq!(vm.peek(data, 512), words);
}

/// A table of descriptors, chained one after the other.
pub fn table(stage: &Stage<'_>, at: u64, buffers: &[Piece]) -> u32 {
    for (index, &(address, bytes, flags)) in (0u16..).zip(buffers) {
        let more = if usize::from(index) + 1 < buffers.len() { NEXT } else { 0 };
        stage.descriptor(at, index, (address, bytes, flags | more), index + 1);
    }
    16 * buffers.len() as u32
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The same, once a machine that was dropped has closed what its disk's thread had.
fn open_files_at_rest() -> usize {
    let mut open = open_files();
    loop {
        std::thread::sleep(Duration::from_millis(30));
        match open_files() {
            now if now == open => return open,
            now => open = now,
        }
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// What this process may hold more of after a subject's cases than before: allocators keep some.
const KEPT_BYTES_MAX: u64 = 96 << 20;

/// One subject at a time: each looks at what this process holds.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs the cases of a subject, on each engine and bus.
pub fn run(subject: &str, cases: &[Case]) {
    let _alone = ALONE.lock();
    for engine in engines(subject) {
        for bus in [BusKind::Mmio, BusKind::Pci] {
            // What is opened once and for all is open then.
            drop(TargetVm::boot(engine, bus));
            let (files, bytes, begun) = (open_files_at_rest(), resident(), Instant::now());
            let mut vm = TargetVm::boot(engine, bus);
            for case in cases {
                for &device in case.on.iter().filter(|device| case.is_due(**device, engine, bus)) {
                    eprintln!("{engine} {bus:?} {subject}: {} on {device:?}", case.name);
                    vm = case.run(vm, device);
                }
            }
            drop(vm);
            eprintln!("{engine} {bus:?} {subject}: all in {:?}", begun.elapsed());
            while open_files() > files {
                assert!(begun.elapsed() < PATIENCE * 10, "descriptors are left open");
                std::thread::sleep(Duration::from_millis(30));
            }
            let kept = resident().saturating_sub(bytes);
            assert!(kept < KEPT_BYTES_MAX, "{kept} bytes are kept");
        }
    }
}
