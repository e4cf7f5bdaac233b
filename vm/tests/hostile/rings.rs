//! What the two rings hold: indices that jump, entries given twice, events that mean nothing, rings that change while
//! the device looks at them, and notifications of nothing.

use crate::cases::Expected::{Ignored, NeedsReset, Served, Survived};
use crate::cases::{ALL, BLOCK, Case, NET_AND_RNG, negotiated, plain, started, work};
use crate::driver::{ENTRIES, EVENT_IDX, NOTIFY, Stage, WRITE};
use crate::guest::GuestAccess;
use crate::vm::{BUFFERS, RAM_BYTES};
use std::sync::atomic::{AtomicBool, Ordering};

/// The available index is set to this, and the device told.
fn index(s: &mut Stage<'_>, index: u16) {
    let queue = work(s.device);
    s.queues[queue].next_avail = index;
    s.publish(queue);
    s.notify(queue);
}

/// A plain request whose chain is in the available ring so many times.
fn again(s: &mut Stage<'_>, times: u16) {
    let (queue, buffers) = (work(s.device), plain(s));
    let head = s.offer(queue, &buffers);
    (1..times).for_each(|_| s.offer_head(queue, head));
    s.notify(queue);
}

/// Serves plain requests, one by one, with this done before each.
fn with(s: &mut Stage<'_>, requests: u16, before: fn(&Stage<'_>, usize)) {
    let queue = work(s.device);
    for _ in 0..requests {
        let buffers = plain(s);
        before(s, queue);
        s.serve(queue, &buffers);
        s.wait_used(queue, 1);
    }
}

/// An event index behind the entries of a ring.
fn event(s: &Stage<'_>, ring: u64, entry_bytes: u64, value: u16) {
    s.vm.poke(ring + 4 + entry_bytes * u64::from(ENTRIES), &value.to_le_bytes());
}

/// While plain requests are served, somebody does this to the queue again and again.
fn meanwhile(s: &mut Stage<'_>, change: impl Fn(u64, u64, u64) -> (u64, Vec<u8>) + Send) {
    let queue = work(s.device);
    let (vm, ring) = (s.vm, s.queues[queue].clone());
    let (buffers, over) = (plain(s), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let view = &vm.view;
        let over = &over;
        scope.spawn(move || {
            let mut turn = 0;
            while !over.load(Ordering::Relaxed) {
                let (at, bytes) = change(ring.desc, ring.avail, turn);
                view.write_in_page((at / 4096) as u32, (at % 4096) as usize, &bytes);
                turn += 1;
            }
        });
        for _ in 0..50 {
            s.offer(queue, &buffers);
            s.notify(queue);
            if s.needs_reset() {
                s.bring_up(0);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

pub const CASES: &[Case] = &[
    started("available index one more than the queue's size ahead", ALL, NeedsReset, |s| {
        index(s, ENTRIES + 1)
    }),
    started("available index goes back by one", ALL, NeedsReset, |s| index(s, u16::MAX)),
    started("available index jumps by half of its range", ALL, NeedsReset, |s| index(s, 0x8000)),
    started("available index goes back after a request", ALL, NeedsReset, |s| {
        with(s, 3, |_, _| ());
        index(s, 2);
    }),
    started("available index jumps after a request", ALL, NeedsReset, |s| {
        with(s, 1, |_, _| ());
        index(s, 2 + ENTRIES);
    }),
    started("available index goes back to zero while requests are out", BLOCK, Survived, |s| {
        again(s, 1);
        index(s, 0);
    }),
    started("whole queue of one chain, on which nothing is kept", NET_AND_RNG, Served, |s| {
        again(s, ENTRIES);
    }),
    started("chain given twice at once", BLOCK, NeedsReset, |s| again(s, 2)),
    started("whole queue of one chain", BLOCK, NeedsReset, |s| again(s, ENTRIES)),
    started("two heads of one chain", BLOCK, Served, |s| {
        // Each is a chain of its own, and both have the same status byte.
        let buffers = plain(s);
        let head = s.offer(0, &buffers);
        let desc = s.queues[0].desc;
        s.descriptor(desc, 5, (BUFFERS, 16, 1), head + 1);
        s.offer_head(0, 5);
        s.notify(0);
    }),
    started("notification of nothing", ALL, Ignored, |s| s.notify(work(s.device))),
    started("a thousand notifications of nothing", ALL, Ignored, |s| {
        let queue = s.queues[work(s.device)].index;
        s.set_all(&vec![(NOTIFY, queue); 1000]);
    }),
    started("notifications of queues that are not there", ALL, Ignored, |s| {
        s.set_all(&[3, 4, 7, 255, 256, 1023].map(|queue| (NOTIFY, queue)));
    }),
    started("requests that nobody tells the device of", ALL, Ignored, |s| {
        let (queue, buffers) = (work(s.device), plain(s));
        s.offer(queue, &buffers);
    }),
    started("a notification for several requests", ALL, Served, |s| {
        let (queue, buffers) = (work(s.device), plain(s));
        s.offer(queue, &buffers);
        s.offer(queue, &buffers);
        s.notify(queue);
    }),
    started("available flags that nobody knows", ALL, Served, |s| {
        with(s, 3, |s, queue| s.vm.poke(s.queues[queue].avail, &0xfffeu16.to_le_bytes()));
    }),
    started("used flags set by the driver", ALL, Served, |s| {
        with(s, 3, |s, queue| s.vm.poke(s.queues[queue].used, &0xffffu16.to_le_bytes()));
    }),
    started("used entries set by the driver", ALL, Served, |s| {
        with(s, 3, |s, queue| s.vm.poke(s.queues[queue].used + 4, &[0xff; 8 * ENTRIES as usize]));
    }),
    negotiated("used event far ahead", ALL, EVENT_IDX, Served, |s| {
        with(s, 9, |s, queue| event(s, s.queues[queue].avail, 2, 0x8000));
    }),
    negotiated("used event right behind", ALL, EVENT_IDX, Served, |s| {
        with(s, 9, |s, queue| event(s, s.queues[queue].avail, 2, 0xffff));
    }),
    negotiated("available event set by the driver", ALL, EVENT_IDX, Served, |s| {
        with(s, 9, |s, queue| event(s, s.queues[queue].used, 8, 0x1234));
    }),
    negotiated("events that were negotiated, and an index that jumps", ALL, EVENT_IDX, NeedsReset, |s| {
        index(s, ENTRIES + 1);
    }),
    started("ring that wraps around many times", ALL, Served, |s| with(s, 5 * ENTRIES + 3, |_, _| ())),
    started("available index that flickers", ALL, Survived, |s| {
        meanwhile(s, |_, avail, turn| (avail + 2, (turn as u16).to_le_bytes().to_vec()));
    }),
    started("available entries that flicker", ALL, Survived, |s| {
        meanwhile(s, |_, avail, turn| (avail + 4 + 2 * (turn % 8), (turn as u16 % 9).to_le_bytes().to_vec()));
    }),
    started("descriptors whose length flickers", ALL, Survived, |s| {
        let lengths = [0, 1, 15, 16, 512, RAM_BYTES as u32, u32::MAX];
        meanwhile(s, move |desc, _, turn| {
            (desc + 16 * (turn % 8) + 8, lengths[turn as usize % lengths.len()].to_le_bytes().to_vec())
        });
    }),
    started("descriptors whose address flickers", ALL, Survived, |s| {
        let places = [BUFFERS, RAM_BYTES - 1, RAM_BYTES, u64::MAX];
        meanwhile(s, move |desc, _, turn| {
            (desc + 16 * (turn % 8), places[turn as usize % places.len()].to_le_bytes().to_vec())
        });
    }),
    started("descriptors whose flags and next flicker", ALL, Survived, |s| {
        meanwhile(s, |desc, _, turn| {
            let bytes = [turn as u16 % 8, turn as u16 / 8 % 9].map(u16::to_le_bytes).concat();
            (desc + 16 * (turn / 72 % 8) + 12, bytes)
        });
    }),
    started("accesses to every register while requests are out", ALL, Survived, |s| {
        let (queue, buffers) = (work(s.device), plain(s));
        s.serve(queue, &buffers);
        let base = if s.vm.bus() == ft_vm::spec::BusKind::Mmio { s.device.window() } else { s.device.bar() };
        let reads: Vec<_> = (0..0x40).map(|at| GuestAccess::read(base + 4 * at, 4)).collect();
        s.vm.access(&reads);
        s.offer(queue, &[(BUFFERS, 16, 0), (BUFFERS, 1, WRITE)]);
        s.notify(queue);
    }),
];
