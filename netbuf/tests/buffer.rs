//! The output buffer's promises: nothing before its release, in order, nothing lost, nothing twice.

use ft_netbuf::{BootTime, Bounds, Emit, Gate, OutputBuffer, Permit, Stopped, Transmitted};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Told how many frames have left.
type AfterEach = Box<dyn FnMut(usize) + Send>;

/// A wire that records, takes `credit` frames and is blocked then.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<Vec<u8>>>,
    credit: Mutex<Option<usize>>,
    after_each: Mutex<Option<AfterEach>>,
}

impl Emit for Wire {
    fn emit(&self, frame: &[u8]) -> io::Result<()> {
        if let Some(credit) = &mut *self.credit.lock() {
            if *credit == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            *credit -= 1;
        }
        let count = {
            let mut sent = self.sent.lock();
            sent.push(frame.to_vec());
            sent.len()
        };
        if let Some(hook) = &mut *self.after_each.lock() {
            hook(count);
        }
        Ok(())
    }
}

const FRAME_BYTES_MAX: usize = 65_535;
const ROOMY: Bounds = Bounds { frames: 1 << 20, bytes: 1 << 30, frame_bytes: FRAME_BYTES_MAX };

fn buffer(bounds: Bounds) -> (OutputBuffer, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    (OutputBuffer::new(vec![Box::new(wire.clone())], bounds), wire)
}

fn long_permit() -> Permit {
    Permit { valid_until: BootTime::now() + Duration::from_secs(3600) }
}

fn take(out: &OutputBuffer, frame: &[u8]) {
    assert_eq!(out.transmit(0, frame), Transmitted::Taken);
}

#[test]
fn frames_leave_only_with_their_epoch_and_in_order() {
    let (out, wire) = buffer(ROOMY);
    out.hold();
    take(&out, b"a");
    out.close_epoch(1);
    take(&out, b"b");
    out.close_epoch(2);
    take(&out, b"c");
    assert!(wire.sent.lock().is_empty());
    let released = out.release_through(1, long_permit());
    assert_eq!((released.frames, released.bytes, released.left), (1, 1, 0));
    assert_eq!(*wire.sent.lock(), [b"a"]);
    assert_eq!(out.release_through(7, long_permit()).frames, 1);
    assert_eq!(*wire.sent.lock(), [b"a", b"b"], "the open epoch is not covered by any release");
    assert_eq!(out.stats().held_frames, 1);
    assert_eq!(out.stats().hold_us.len(), 2);
}

#[test]
fn the_age_of_the_oldest_held_frame_is_known_before_it_leaves() {
    let (out, _) = buffer(ROOMY);
    out.hold();
    assert_eq!(out.stats().oldest_held, Duration::ZERO);
    let before = Instant::now();
    take(&out, b"a");
    let taken = Instant::now();
    out.close_epoch(1);
    take(&out, b"b");
    while out.stats().oldest_held < Duration::from_millis(5) {
        std::thread::yield_now();
    }
    let (least, age) = (taken.elapsed(), out.stats().oldest_held);
    assert!((least..=before.elapsed()).contains(&age), "{age:?}");
    let _ = out.release_through(1, long_permit());
    assert!(out.stats().oldest_held > Duration::ZERO, "the other one's");
    out.close_epoch(2);
    let _ = out.release_through(2, long_permit());
    assert_eq!(out.stats().oldest_held, Duration::ZERO);
}

#[test]
fn the_first_held_frame_of_each_epoch_is_told() {
    let (out, _) = buffer(ROOMY);
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    out.on_held(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let told = move || told.load(Ordering::Relaxed);
    let _ = out.pass();
    take(&out, b"passes");
    out.hold();
    assert_eq!(told(), 0);
    take(&out, b"a");
    take(&out, b"b");
    assert_eq!(told(), 1);
    out.close_epoch(1);
    out.close_epoch(2);
    take(&out, b"c");
    assert_eq!(told(), 2, "what is still held of epoch 1 does not matter");
    out.close_epoch(3);
    assert_eq!(out.release_through(3, long_permit()).frames, 3);
    take(&out, b"d");
    assert_eq!(told(), 3);
}

#[test]
fn a_new_buffer_is_muted_and_lets_nothing_out() {
    let (out, wire) = buffer(ROOMY);
    assert_eq!(out.stats().gate, Gate::Muted);
    assert_eq!(out.transmit(0, b"a"), Transmitted::Full);
    assert_eq!(out.stats().muted_offers, 1);
    assert_eq!(out.release_through(9, long_permit()).frames, 0);
    assert!(wire.sent.lock().is_empty());
}

#[test]
fn a_lapsed_permit_releases_nothing_and_a_new_one_goes_on() {
    let (out, wire) = buffer(ROOMY);
    out.hold();
    take(&out, b"a");
    out.close_epoch(1);
    let released = out.release_through(1, Permit { valid_until: BootTime::now() });
    assert_eq!((released.frames, released.left, released.stopped), (0, 1, Some(Stopped::Lapsed)));
    assert!(wire.sent.lock().is_empty());
    assert_eq!(out.release_through(1, long_permit()).frames, 1);
}

#[test]
fn a_permit_that_lapses_between_two_frames_stops_the_second() {
    let (out, wire) = buffer(ROOMY);
    out.hold();
    for frame in [b"a", b"b", b"c"] {
        take(&out, frame);
    }
    out.close_epoch(1);
    let valid_until = BootTime::now() + Duration::from_millis(200);
    *wire.after_each.lock() = Some(Box::new(move |count| {
        while count == 2 && BootTime::now() < valid_until {
            std::thread::yield_now();
        }
    }));
    let released = out.release_through(1, Permit { valid_until });
    // A starved machine may lapse sooner; never later.
    assert!(released.frames <= 2, "{released:?}");
    assert_eq!(released.frames + released.left, 3);
    assert_eq!(released.stopped, Some(Stopped::Lapsed));
    assert_eq!(wire.sent.lock().len(), released.frames);
}

#[test]
fn a_blocked_wire_loses_nothing_and_the_next_release_goes_on() {
    let (out, wire) = buffer(ROOMY);
    out.hold();
    for frame in [b"a", b"b", b"c"] {
        take(&out, frame);
    }
    out.close_epoch(1);
    *wire.credit.lock() = Some(1);
    let released = out.release_through(1, long_permit());
    assert_eq!((released.frames, released.left, released.stopped), (1, 2, Some(Stopped::Blocked)));
    *wire.credit.lock() = None;
    assert_eq!(out.release_through(1, long_permit()).frames, 2);
    assert_eq!(*wire.sent.lock(), [b"a", b"b", b"c"]);
}

#[test]
fn a_blocked_wire_keeps_the_order_of_what_passes() {
    let (out, wire) = buffer(ROOMY);
    let _ = out.pass();
    *wire.credit.lock() = Some(1);
    for frame in [b"a", b"b", b"c"] {
        take(&out, frame);
    }
    assert_eq!(*wire.sent.lock(), [b"a"]);
    *wire.credit.lock() = None;
    take(&out, b"d");
    assert_eq!(*wire.sent.lock(), [b"a", b"b", b"c", b"d"]);
}

#[test]
fn what_could_not_pass_belongs_to_the_open_epoch_once_held() {
    let (out, wire) = buffer(ROOMY);
    let _ = out.pass();
    *wire.credit.lock() = Some(0);
    take(&out, b"a");
    out.hold();
    *wire.credit.lock() = None;
    assert_eq!(out.release_through(5, long_permit()).frames, 0);
    out.close_epoch(6);
    assert_eq!(out.release_through(6, long_permit()).frames, 1);
    assert_eq!(*wire.sent.lock(), [b"a"]);
}

#[test]
fn a_fence_discards_what_is_held_and_silences_what_follows() {
    let (out, wire) = buffer(ROOMY);
    out.hold();
    take(&out, b"a");
    out.close_epoch(1);
    out.mute();
    assert_eq!(out.transmit(0, b"b"), Transmitted::Full);
    assert_eq!(out.release_through(1, long_permit()).frames, 0);
    assert_eq!(out.stats().discarded, 1);
    let _ = out.pass();
    take(&out, b"c");
    assert_eq!(*wire.sent.lock(), [b"c"], "what was discarded never comes back");
}

#[test]
fn room_is_told_once_for_each_time_the_buffer_was_full() {
    let (out, _wire) = buffer(Bounds { frames: 2, bytes: FRAME_BYTES_MAX, frame_bytes: FRAME_BYTES_MAX });
    let told = Arc::new(AtomicUsize::new(0));
    out.on_room({
        let told = told.clone();
        move || {
            told.fetch_add(1, Ordering::SeqCst);
        }
    });
    out.hold();
    take(&out, b"a");
    out.close_epoch(1);
    take(&out, b"b");
    out.close_epoch(2);
    assert_eq!(out.transmit(0, b"c"), Transmitted::Full);
    assert_eq!(out.transmit(0, b"c"), Transmitted::Full);
    assert_eq!((told.load(Ordering::SeqCst), out.stats().full_events), (0, 1));
    let _ = out.release_through(1, long_permit());
    assert_eq!(told.load(Ordering::SeqCst), 1);
    let _ = out.release_through(2, long_permit());
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn every_frame_of_legal_length_fits_an_empty_buffer_and_longer_ones_do_not_block_it() {
    let (out, wire) = buffer(Bounds { frames: 0, bytes: 0, frame_bytes: FRAME_BYTES_MAX });
    out.hold();
    take(&out, &vec![1; FRAME_BYTES_MAX + 1]);
    take(&out, &vec![2; FRAME_BYTES_MAX]);
    out.close_epoch(1);
    assert_eq!(out.release_through(1, long_permit()).bytes, FRAME_BYTES_MAX);
    assert_eq!(wire.sent.lock().len(), 1);
    assert_eq!(out.stats().oversized, 1);
}

#[test]
fn the_wire_refusing_a_frame_is_counted_and_does_not_stop_the_rest() {
    struct Broken;
    impl Emit for Broken {
        fn emit(&self, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let out = OutputBuffer::new(vec![Box::new(Broken)], ROOMY);
    out.hold();
    take(&out, b"a");
    take(&out, b"b");
    out.close_epoch(1);
    let released = out.release_through(1, long_permit());
    assert_eq!((released.frames, released.left), (0, 0));
    assert_eq!(out.stats().emit_errors, 2);
}

#[test]
fn concurrent_transmit_release_and_pass_keep_order_and_lose_nothing() {
    const FRAMES: u32 = 40_000;
    let (out, wire) = buffer(Bounds { frames: 64, bytes: FRAME_BYTES_MAX, frame_bytes: FRAME_BYTES_MAX });
    out.hold();
    let vcpu = std::thread::spawn({
        let out = out.clone();
        move || {
            for number in 0..FRAMES {
                while out.transmit(0, &number.to_le_bytes()) == Transmitted::Full {
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut epoch = 0;
    while !vcpu.is_finished() {
        epoch += 1;
        if epoch % 64 == 0 {
            let _ = out.pass();
        }
        if epoch % 64 == 8 {
            out.hold();
        }
        out.close_epoch(epoch);
        let _ = out.release_through(epoch, long_permit());
    }
    vcpu.join().unwrap();
    let _ = out.pass();
    let sent = wire.sent.lock();
    assert!(sent.iter().map(|frame| u32::from_le_bytes(frame[..].try_into().unwrap())).eq(0..FRAMES));
}

#[test]
fn nothing_leaves_after_mute_has_returned() {
    for _ in 0..200 {
        let (out, wire) = buffer(ROOMY);
        let _ = out.pass();
        let started = Arc::new(AtomicUsize::new(0));
        let vcpu = std::thread::spawn({
            let (out, started) = (out.clone(), started.clone());
            move || {
                while out.transmit(0, b"x") == Transmitted::Taken {
                    started.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        while started.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        out.mute();
        let sent = wire.sent.lock().len();
        vcpu.join().unwrap();
        assert_eq!(wire.sent.lock().len(), sent);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Transmit(u8),
    Close,
    /// Release this many epochs back from the last closed one.
    Release(u64),
    ReleaseLapsed,
    Hold,
    Pass,
    Mute,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => any::<u8>().prop_map(Op::Transmit),
        5 => Just(Op::Close),
        4 => (0..4u64).prop_map(Op::Release),
        1 => Just(Op::ReleaseLapsed),
        1 => Just(Op::Hold),
        1 => Just(Op::Pass),
        1 => Just(Op::Mute),
    ]
}

/// What the buffer should do, told without locks, rings or marks: each held frame with the epoch that covers it.
struct Model {
    gate: Gate,
    held: VecDeque<(Option<u64>, Vec<u8>)>,
    sent: Vec<Vec<u8>>,
    bounds: Bounds,
}

impl Model {
    fn transmit(&mut self, frame: Vec<u8>) -> Transmitted {
        match self.gate {
            Gate::Muted => return Transmitted::Full,
            Gate::Passing => self.sent.push(frame),
            Gate::Holding => {
                let bytes: usize = self.held.iter().map(|(_, frame)| frame.len()).sum();
                if self.held.len() >= self.bounds.frames || bytes + frame.len() > self.bounds.bytes {
                    return Transmitted::Full;
                }
                self.held.push_back((None, frame));
            }
        }
        Transmitted::Taken
    }

    fn release(&mut self, epoch: u64) {
        while let Some((Some(covered), _)) = self.held.front()
            && *covered <= epoch
        {
            self.sent.extend(self.held.pop_front().map(|(_, frame)| frame));
        }
    }
}

proptest! {
    #[test]
    fn any_interleaving_does_what_the_model_does(ops in proptest::collection::vec(op(), 0..200)) {
        let bounds = Bounds { frames: 12, bytes: 2 * FRAME_BYTES_MAX, frame_bytes: FRAME_BYTES_MAX };
        let (out, wire) = buffer(bounds);
        let mut model = Model { gate: Gate::Muted, held: VecDeque::new(), sent: Vec::new(), bounds };
        let mut epoch = 0;
        let mut number = 0u32;
        for op in ops {
            match op {
                Op::Transmit(size) => {
                    number += 1;
                    let mut frame = number.to_le_bytes().to_vec();
                    frame.resize(4 + usize::from(size) * 200, size);
                    prop_assert_eq!(out.transmit(0, &frame), model.transmit(frame));
                }
                Op::Close => {
                    epoch += 1;
                    out.close_epoch(epoch);
                    if model.gate == Gate::Holding {
                        model.held.iter_mut().for_each(|(covered, _)| *covered = covered.or(Some(epoch)));
                    }
                }
                Op::Release(back) => {
                    let _ = out.release_through(epoch.saturating_sub(back), long_permit());
                    model.release(epoch.saturating_sub(back));
                }
                Op::ReleaseLapsed => {
                    prop_assert_eq!(out.release_through(epoch, Permit { valid_until: BootTime::now() }).frames, 0);
                }
                Op::Hold => {
                    out.hold();
                    model.gate = Gate::Holding;
                }
                Op::Pass => {
                    prop_assert_eq!(out.pass().frames, model.held.len());
                    model.gate = Gate::Passing;
                    model.sent.extend(model.held.drain(..).map(|(_, frame)| frame));
                }
                Op::Mute => {
                    out.mute();
                    model.gate = Gate::Muted;
                    model.held.clear();
                }
            }
            prop_assert_eq!(&*wire.sent.lock(), &model.sent);
            prop_assert_eq!(out.stats().held_frames, model.held.len());
        }
    }
}
