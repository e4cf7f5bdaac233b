//! A guest that resets its disk again and again with requests in flight, on storage that is slow: what was forgotten is
//! bounded, while it is recorded and while it is replayed, and neither sees a difference.

use super::*;
use crate::devices::Disk;
use crate::engine::soft::vcpu::Mode;
use crate::replay::log::LogReader;
use ft_disk::{Completion, Io, IoDone, IoOrder, IoQueue, Store, StoreError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

const DISK_BYTES: u64 = 8 << 20;
const RESETS: u64 = 100;
/// With so much it is crowded (`Block::is_crowded`); and what one reset can add.
const CROWDED_BYTES: u64 = 32 << 20;
const HELD_BYTES_MAX: u64 = 52 << 20;
const QUEUE: u64 = 0x20_8000;
const REQUEST: u64 = 0x22_0000;
const SEGMENT: u64 = 0x23_0000;
const SEGMENT_BYTES: u64 = 32 << 10;

/// Reads zeroes: all that it has, when that is as much as makes the disk crowded and nothing more has come for so
/// long.
struct Slow {
    patience: Duration,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    bytes: AtomicU64,
    most: AtomicU64,
}

fn bytes(order: &IoOrder) -> u64 {
    match &order.io {
        Io::Read { into, .. } => into.len() as u64,
        _ => 0,
    }
}

impl Store for Slow {
    fn bytes(&self) -> u64 {
        DISK_BYTES
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn start(self: Box<Self>, _: &str, completion: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        let Completion::By(finish) = completion else { panic!("a writable disk answers later") };
        let (orders, asked) = mpsc::channel::<IoOrder>();
        let held = Arc::clone(&self.held);
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            loop {
                match asked.recv_timeout(self.patience) {
                    Ok(order) => waiting.push(order),
                    Err(RecvTimeoutError::Timeout)
                        if self.held.bytes.load(Ordering::Relaxed) < CROWDED_BYTES => {}
                    Err(RecvTimeoutError::Timeout) => {
                        self.held.bytes.store(0, Ordering::Relaxed);
                        let done = |IoOrder { tag, io }| IoDone { tag, io, result: Ok(()) };
                        finish.finish(&mut waiting.drain(..).map(done).collect());
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Ok(Box::new(SlowQueue { orders, held }))
    }
}

struct SlowQueue {
    orders: mpsc::Sender<IoOrder>,
    held: Arc<Held>,
}

impl IoQueue for SlowQueue {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        let now = self.held.bytes.fetch_add(bytes(&order), Ordering::Relaxed) + bytes(&order);
        self.held.most.fetch_max(now, Ordering::Relaxed);
        // The thread takes them until this is dropped.
        let _ = self.orders.send(order);
        None
    }

    fn nudge(&self) -> bool {
        false
    }
}

/// Sets its disk up, asks for nearly 4 MiB, and begins again.
fn hostile(patience: Duration) -> (Rig, Arc<Held>) {
    let held = Arc::<Held>::default();
    let disk = Disk::new(Slow { patience, held: Arc::clone(&held) });
    let code = assemble!(
        "mov ebx, 100",
        "2: lea rdi, [r13 + 0x1000]",
        "mov dword ptr [rdi + 0x70], 0",
        "mov dword ptr [rdi + 0x70], 1",
        "mov dword ptr [rdi + 0x70], 3",
        "mov dword ptr [rdi + 0x24], 1",
        "mov dword ptr [rdi + 0x20], 1",
        "mov dword ptr [rdi + 0x70], 11",
        "mov dword ptr [rdi + 0x30], 0",
        "mov dword ptr [rdi + 0x38], 128",
        "mov dword ptr [rdi + 0x80], r8d",
        "mov dword ptr [rdi + 0x90], r9d",
        "mov dword ptr [rdi + 0xa0], r10d",
        "mov dword ptr [rdi + 0x44], 1",
        "mov dword ptr [rdi + 0x70], 15",
        "mov dword ptr [rdi + 0x50], 0",
        "inc qword ptr [r12]",
        "dec ebx",
        "jnz 2b",
        "3: jmp 3b"
    );
    let rig = Rig::on(Rig::with_disk(Some(disk)), &code, &[], |state| {
        state.cpu.regs[8..11].copy_from_slice(&[QUEUE, QUEUE + 0x1000, QUEUE + 0x2000]);
    });
    let descriptor = |at: u64, address: u64, bytes: u64, flags: u64| {
        rig.put(QUEUE + at * 16, address);
        rig.put(QUEUE + at * 16 + 8, bytes | flags << 32 | (at + 1) << 48);
    };
    descriptor(0, REQUEST, 16, 1);
    (1..127).for_each(|at| descriptor(at, SEGMENT, SEGMENT_BYTES, 1 | 2));
    descriptor(127, REQUEST + 16, 1, 2);
    // One chain is available, that of descriptor 0.
    rig.put(QUEUE + 0x1000, 1 << 16);
    (rig, held)
}

#[test]
fn a_guest_that_resets_its_disk_in_a_loop_waits_for_the_storage_and_nobody_sees_it() {
    let (mut recorded, held) = hostile(Duration::from_millis(50));
    recorded.worker.start_recording().unwrap();
    recorded.worker.resume();
    while recorded.get(DATA) < RESETS {
        recorded.worker.reach.bell.take();
        recorded.worker.turn();
        assert!(recorded.worker.stuck.is_none());
    }
    recorded.worker.stop();
    let most = held.most.load(Ordering::Relaxed);
    assert!((CROWDED_BYTES..HELD_BYTES_MAX).contains(&most), "{most} bytes");
    let mut log = Vec::new();
    recorded.worker.cut(&mut log, || ()).unwrap();
    recorded.worker.stop_recording();
    let expected = recorded.whole();

    let (mut again, held) = hostile(Duration::from_millis(30));
    let start = again.worker.start_replaying().unwrap();
    again.worker.feed(LogReader::new(start).read_all(&log).unwrap());
    again.worker.resume();
    let is_done =
        |rig: &Rig| matches!(&rig.worker.mode, Mode::Replaying(log) if log.is_done(rig.worker.cpu.count));
    while !is_done(&again) {
        again.worker.reach.bell.take();
        again.worker.turn();
        assert!(again.events.try_recv().is_err(), "diverged at {}", again.worker.cpu.count);
    }
    let most = held.most.load(Ordering::Relaxed);
    assert!((CROWDED_BYTES..HELD_BYTES_MAX).contains(&most), "{most} bytes");
    assert_same(&again.whole(), &expected);
}
