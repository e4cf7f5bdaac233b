//! From reset to DRIVER_OK, in every wrong order: features, status, queues that cannot be, and resets at any time.

use crate::cases::Expected::{Ignored, NeedsReset, Served, Survived};
use crate::cases::{ALL, BLOCK, Case, NET, plain, raw, started, work};
use crate::driver::{
    ACKNOWLEDGE, DESC, DRIVER, DRIVER_FEATURES, DRIVER_FEATURES_SELECT, DRIVER_OK, ENTRIES, FAILED,
    FEATURES_OK, NEEDS_RESET, NOTIFY, QUEUE_READY, QUEUE_SELECT, QUEUE_SIZE, Queue, STATUS, Stage, WRITE,
};
use crate::vm::{BUFFERS, RAM_BYTES};
use ft_ram::layout::VIRTIO_MMIO_BASE;
use ft_vm::spec::BusKind;

/// Negotiates these features, all 64 bits; whether the device takes them.
fn takes(s: &Stage<'_>, features: u64) -> bool {
    s.negotiate(0);
    s.set_all(&[
        (STATUS, 0),
        (STATUS, ACKNOWLEDGE | DRIVER),
        (DRIVER_FEATURES_SELECT, 0),
        (DRIVER_FEATURES, features & 0xffff_ffff),
        (DRIVER_FEATURES_SELECT, 1),
        (DRIVER_FEATURES, features >> 32),
        (STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    ]);
    s.status() & FEATURES_OK != 0
}

/// A queue that is set up with a change; whether it is ready.
fn queue(s: &mut Stage<'_>, change: fn(&mut Queue)) -> bool {
    s.negotiate(0);
    let at = work(s.device);
    s.queues[at] = Queue::new(s.device, at as u64);
    change(&mut s.queues[at]);
    s.set_up(at)
}

/// The same, and it must not be ready.
fn no_queue(s: &mut Stage<'_>, change: fn(&mut Queue)) {
    assert!(!queue(s, change));
}

/// Up to DRIVER_OK with one queue of this making, and a plain request in it.
fn one_queue(s: &mut Stage<'_>, change: fn(&mut Queue)) {
    assert!(queue(s, change));
    let at = work(s.device);
    let Queue { avail, used, .. } = s.queues[at];
    s.vm.poke(avail, &[0; 4]);
    s.vm.poke(used, &[0; 4]);
    s.go();
    let buffers = plain(s);
    s.serve(at, &buffers);
}

pub const CASES: &[Case] = &[
    raw("features of every bit", ALL, Ignored, |s| assert!(!takes(s, u64::MAX))),
    raw("each feature that is not offered", ALL, Ignored, |s| {
        s.negotiate(0);
        let offered = s.features();
        for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
            assert!(!takes(s, 1 << 32 | 1 << bit), "feature {bit}");
        }
    }),
    raw("no VERSION_1", ALL, Ignored, |s| assert!(!takes(s, 0))),
    raw("all that is offered", ALL, Ignored, |s| {
        s.negotiate(0);
        let offered = s.features();
        assert!(takes(s, offered));
    }),
    raw("DRIVER_OK after features that were refused", ALL, NeedsReset, |s| {
        takes(s, u64::MAX);
        s.go();
    }),
    raw("DRIVER_OK before FEATURES_OK", ALL, NeedsReset, |s| {
        s.negotiate(0);
        s.set_all(&[(STATUS, 0), (STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK)]);
    }),
    raw("DRIVER_OK alone", ALL, NeedsReset, |s| {
        s.negotiate(0);
        s.set_all(&[(STATUS, 0), (STATUS, DRIVER_OK)]);
    }),
    raw("FEATURES_OK alone", ALL, Ignored, |s| {
        s.negotiate(0);
        s.set_all(&[(STATUS, 0), (STATUS, FEATURES_OK)]);
        assert_eq!(s.status() & FEATURES_OK, 0);
    }),
    raw("features beyond bit 63", ALL, Ignored, |s| {
        s.negotiate(0);
        s.set_all(&[(STATUS, 0), (STATUS, ACKNOWLEDGE | DRIVER)]);
        for select in [2, 3, 0xffff_ffff] {
            s.set_all(&[(DRIVER_FEATURES_SELECT, select), (DRIVER_FEATURES, 0xffff_ffff)]);
        }
    }),
    raw("features after FEATURES_OK", ALL, Ignored, |s| {
        s.negotiate(0);
        s.set_all(&[(DRIVER_FEATURES_SELECT, 0), (DRIVER_FEATURES, 0xffff_ffff)]);
        s.go();
        assert_eq!(s.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }),
    raw("status bits taken back one by one", ALL, Ignored, |s| {
        s.negotiate(0);
        s.set_all(&[(STATUS, DRIVER), (STATUS, ACKNOWLEDGE)]);
        assert_eq!(s.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }),
    raw("status bits that are the device's or nobody's", ALL, Ignored, |s| {
        s.negotiate(0);
        s.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | NEEDS_RESET | 0x30);
        assert_eq!(s.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }),
    raw("negotiation a hundred times", ALL, Ignored, |s| (0..100).for_each(|_| s.negotiate(0))),
    raw("DRIVER_OK without a queue", ALL, Ignored, |s| {
        s.negotiate(0);
        s.go();
        s.set_all(&[(NOTIFY, 0), (NOTIFY, 1), (NOTIFY, 2)]);
    }),
    started("requests after FAILED", ALL, Ignored, |s| {
        s.set(STATUS, FAILED);
        let (queue, buffers) = (work(s.device), plain(s));
        s.serve(queue, &buffers);
    }),
    started("writes to every register after FAILED", ALL, Ignored, |s| {
        s.set(STATUS, FAILED);
        for register in [DRIVER_FEATURES, QUEUE_SIZE, QUEUE_READY, DESC, NOTIFY] {
            s.set(register, 1);
        }
        assert_eq!(s.status() & FAILED, FAILED);
    }),
    raw("requests before DRIVER_OK", ALL, Ignored, |s| {
        assert!(queue(s, |_| ()));
        let (queue, buffers) = (work(s.device), plain(s));
        s.vm.poke(s.queues[queue].used, &[0; 4]);
        s.serve(queue, &buffers);
    }),
    raw("queue of no entries", ALL, NeedsReset, |s| no_queue(s, |queue| queue.size = 0)),
    raw("queue of three entries", ALL, NeedsReset, |s| no_queue(s, |queue| queue.size = 3)),
    raw("queue of 512 entries", ALL, NeedsReset, |s| no_queue(s, |queue| queue.size = 512)),
    raw("queue of 0x8000 entries", ALL, NeedsReset, |s| no_queue(s, |queue| queue.size = 0x8000)),
    raw("queue of 0xffff entries", ALL, NeedsReset, |s| no_queue(s, |queue| queue.size = 0xffff)),
    raw("queue of one entry", NET, Served, |s| one_queue(s, |queue| queue.size = 1)),
    raw("descriptors misaligned by 8", ALL, NeedsReset, |s| no_queue(s, |queue| queue.desc += 8)),
    raw("descriptors misaligned by 1", ALL, NeedsReset, |s| no_queue(s, |queue| queue.desc += 1)),
    raw("available ring misaligned", ALL, NeedsReset, |s| no_queue(s, |queue| queue.avail += 1)),
    raw("used ring misaligned", ALL, NeedsReset, |s| no_queue(s, |queue| queue.used += 2)),
    raw("descriptors at 0", ALL, NeedsReset, |s| no_queue(s, |queue| queue.desc = 0)),
    raw("available ring at 0", ALL, NeedsReset, |s| no_queue(s, |queue| queue.avail = 0)),
    raw("descriptors behind memory", ALL, NeedsReset, |s| no_queue(s, |queue| queue.desc = RAM_BYTES)),
    raw("descriptors across memory's end", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.desc = RAM_BYTES - 16);
    }),
    raw("available ring across memory's end", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.avail = RAM_BYTES - 4);
    }),
    raw("used ring across memory's end", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.used = RAM_BYTES - 64);
    }),
    raw("used ring across the end of addresses", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.used = u64::MAX - 3);
    }),
    raw("descriptors across the end of addresses", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.desc = u64::MAX - 15);
    }),
    raw("available ring in the device's own window", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.avail = VIRTIO_MMIO_BASE);
    }),
    raw("available ring above 4 GiB, where there is none", ALL, NeedsReset, |s| {
        no_queue(s, |queue| queue.avail |= 1 << 32);
    }),
    raw("used ring that ends with memory", ALL, Served, |s| {
        one_queue(s, |queue| queue.used = RAM_BYTES - 8 - 8 * u64::from(ENTRIES));
    }),
    raw("rings one upon the other", ALL, Survived, |s| one_queue(s, |queue| queue.used = queue.avail)),
    raw("descriptors upon the rings", ALL, Survived, |s| {
        one_queue(s, |queue| (queue.avail, queue.used) = (queue.desc, queue.desc));
    }),
    raw("two queues in one place", NET, Survived, |s| {
        s.negotiate(0);
        for at in 0..3 {
            s.queues[at] = Queue { index: at as u64, ..Queue::new(s.device, 1) };
            assert!(s.set_up(at));
        }
        s.vm.poke(s.queues[1].avail, &[0; 4]);
        s.go();
        let buffers = plain(s);
        s.serve(1, &buffers);
        s.notify(2);
        s.notify(0);
    }),
    started("a running queue set up anew", ALL, Served, |s| {
        let at = work(s.device);
        let settings = [(QUEUE_SELECT, at as u64), (QUEUE_SIZE, 4), (DESC, BUFFERS), (QUEUE_READY, 1)];
        s.set_all(&settings);
        let buffers = plain(s);
        s.serve(at, &buffers);
    }),
    started("a queue that is taken back", ALL, Survived, |s| {
        let (at, buffers) = (work(s.device), plain(s));
        s.offer(at, &buffers);
        s.set_all(&[(QUEUE_SELECT, at as u64), (NOTIFY, at as u64), (QUEUE_READY, 0), (QUEUE_READY, 1)]);
        s.notify(at);
    }),
    raw("queues that are not there", ALL, Ignored, |s| {
        s.negotiate(0);
        for index in [3, 4, 255, 0x7fff, 0xffff] {
            s.set_all(&[(QUEUE_SELECT, index), (QUEUE_SIZE, 8), (DESC, BUFFERS), (QUEUE_READY, 1)]);
            assert_eq!(s.get(QUEUE_READY), 0);
            if s.vm.bus() == BusKind::Pci {
                assert_eq!(s.get(QUEUE_SIZE), 0);
            }
        }
    }),
    started("a reset at once after a notification", ALL, Survived, |s| {
        let at = work(s.device);
        for _ in 0..20 {
            let buffers = plain(s);
            s.offer(at, &buffers);
            s.set_all(&[(NOTIFY, at as u64), (STATUS, 0)]);
            s.start(0);
        }
    }),
    started("a reset while a large read is out", BLOCK, Survived, |s| {
        for _ in 0..8 {
            s.vm.poke(BUFFERS, &[0; 16]);
            s.offer(
                0,
                &[(BUFFERS, 16, 0), (BUFFERS + 0x1000, 4 << 20, WRITE), (BUFFERS + 0x60_0000, 1, WRITE)],
            );
            s.set_all(&[(NOTIFY, 0), (STATUS, 0)]);
            s.start(0);
        }
    }),
    started("a thousand resets", ALL, Survived, |s| s.set_all(&[(STATUS, 0); 1000])),
    raw("a reset in the middle of setting up", ALL, Survived, |s| {
        assert!(queue(s, |_| ()));
        s.set(STATUS, 0);
        assert_eq!(s.get(QUEUE_READY), 0);
        s.go();
    }),
];
