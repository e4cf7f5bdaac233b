//! Chains of descriptors, whatever the device: where they lead, what they name, and tables in tables.

use crate::cases::Expected::{NeedsReset, Served, Survived};
use crate::cases::{ALL, BLOCK, Case, NET, RNG, negotiated, plain, started, table, work};
use crate::driver::{ENTRIES, INDIRECT, INDIRECT_DESC, NEXT, Stage, WRITE};
use crate::vm::{BUFFERS, RAM_BYTES, TABLES};
use ft_ram::layout::{PLATFORM_BASE, VIRTIO_MMIO_BASE};

/// Makes these descriptors of the queue's table a chain that begins with the first.
fn chain(s: &mut Stage<'_>, descriptors: &[(u64, u32, u16, u16)]) {
    let queue = work(s.device);
    for (index, &(address, bytes, flags, next)) in (0u16..).zip(descriptors) {
        s.descriptor(s.queues[queue].desc, index, (address, bytes, flags), next);
    }
    s.offer_head(queue, 0);
    s.notify(queue);
}

/// A chain of one descriptor.
fn one(s: &mut Stage<'_>, address: u64, bytes: u32, flags: u16) {
    chain(s, &[(address, bytes, flags, 0)]);
}

fn head(s: &mut Stage<'_>, head: u16) {
    let queue = work(s.device);
    s.offer_head(queue, head);
    s.notify(queue);
}

/// A plain request in a table of descriptors at this place.
fn in_table(s: &mut Stage<'_>, at: u64, flags: u16) {
    let buffers = plain(s);
    let bytes = table(s, at, &buffers);
    one(s, at, bytes, INDIRECT | flags);
}

/// A plain request whose buffers are cut into pieces of so many bytes, with an empty one before each.
fn cut(s: &Stage<'_>, bytes: u32, with_empty: bool) -> Vec<(u64, u32, u16)> {
    let mut pieces = Vec::new();
    for (address, length, flags) in plain(s) {
        for at in (0..length).step_by(bytes as usize) {
            if with_empty {
                pieces.push((u64::MAX, 0, flags));
            }
            pieces.push((address + u64::from(at), bytes.min(length - at), flags));
        }
    }
    pieces
}

pub const CASES: &[Case] = &[
    started("head one beyond the queue", ALL, NeedsReset, |s| head(s, ENTRIES)),
    started("head 0xffff", ALL, NeedsReset, |s| head(s, 0xffff)),
    started("descriptor that leads to itself", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 64, WRITE | NEXT, 0)]);
    }),
    started("loop of two", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 16, NEXT, 1), (BUFFERS, 16, NEXT, 0)]);
    }),
    started("loop behind a sound beginning", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 16, NEXT, 1), (BUFFERS, 16, NEXT, 2), (BUFFERS, 16, WRITE | NEXT, 1)]);
    }),
    started("loop of empty descriptors", ALL, NeedsReset, |s| chain(s, &[(0, 0, NEXT, 1), (0, 0, NEXT, 0)])),
    started("next one beyond the queue", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 16, NEXT, ENTRIES)]);
    }),
    started("next 0xffff", ALL, NeedsReset, |s| chain(s, &[(BUFFERS, 16, NEXT, 0xffff)])),
    started("buffer right behind memory", ALL, NeedsReset, |s| one(s, RAM_BYTES, 64, WRITE)),
    started("buffer across memory's end", ALL, NeedsReset, |s| one(s, RAM_BYTES - 63, 64, WRITE)),
    started("buffer of one byte behind memory", ALL, NeedsReset, |s| one(s, RAM_BYTES, 1, 0)),
    started("buffer in a virtio window", ALL, NeedsReset, |s| one(s, VIRTIO_MMIO_BASE, 64, WRITE)),
    started("buffer in the platform device", ALL, NeedsReset, |s| one(s, PLATFORM_BASE, 64, 0)),
    started("buffer across the end of addresses", ALL, NeedsReset, |s| one(s, u64::MAX - 2, 64, WRITE)),
    started("buffer at the last address", ALL, NeedsReset, |s| one(s, u64::MAX, 1, WRITE)),
    started("buffer of 4 GiB", ALL, NeedsReset, |s| one(s, 0, u32::MAX, WRITE)),
    started("buffer of 4 GiB at the end of addresses", ALL, NeedsReset, |s| one(s, u64::MAX, u32::MAX, 0)),
    started("readable after writable", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 64, WRITE | NEXT, 1), (BUFFERS, 64, 0, 0)]);
    }),
    started("empty readable after writable", ALL, NeedsReset, |s| {
        chain(s, &[(BUFFERS, 64, WRITE | NEXT, 1), (0, 0, 0, 0)]);
    }),
    started("flags that nobody knows", ALL, Served, |s| {
        let queue = work(s.device);
        let buffers: Vec<_> =
            plain(s).iter().map(|&(at, bytes, flags)| (at, bytes, flags | 0xfff8)).collect();
        s.serve(queue, &buffers);
    }),
    negotiated("empty descriptors at no address between", ALL, INDIRECT_DESC, Served, |s| {
        let buffers = cut(s, 600, true);
        let queue = work(s.device);
        s.serve(queue, &buffers);
    }),
    started("table that was not negotiated", ALL, NeedsReset, |s| in_table(s, TABLES, 0)),
    negotiated("table, negotiated", ALL, INDIRECT_DESC, Served, |s| in_table(s, TABLES, 0)),
    negotiated("table at an odd address", ALL, INDIRECT_DESC, Served, |s| in_table(s, TABLES + 3, 0)),
    negotiated("table across two pages", ALL, INDIRECT_DESC, Served, |s| in_table(s, TABLES + 4088, 0)),
    negotiated("table marked as writable", ALL, INDIRECT_DESC, Served, |s| in_table(s, TABLES, WRITE)),
    negotiated("table with a next beside it", ALL, INDIRECT_DESC, NeedsReset, |s| in_table(s, TABLES, NEXT)),
    negotiated("table behind descriptors of the queue", BLOCK, INDIRECT_DESC, Served, |s| {
        let buffers = plain(s);
        let bytes = table(s, TABLES, &buffers[1..]);
        let (address, length, _) = buffers[0];
        chain(s, &[(address, length, NEXT, 1), (TABLES, bytes, INDIRECT, 0)]);
    }),
    negotiated("table of 17 bytes", ALL, INDIRECT_DESC, NeedsReset, |s| one(s, TABLES, 17, INDIRECT)),
    negotiated("table of no bytes", ALL, INDIRECT_DESC, NeedsReset, |s| one(s, TABLES, 0, INDIRECT)),
    negotiated("table of 15 bytes", ALL, INDIRECT_DESC, NeedsReset, |s| one(s, TABLES, 15, INDIRECT)),
    negotiated("table of more entries than indices", ALL, INDIRECT_DESC, NeedsReset, |s| {
        one(s, TABLES, 16 << 16, INDIRECT);
    }),
    negotiated("table of 4 GiB", ALL, INDIRECT_DESC, NeedsReset, |s| one(s, TABLES, 0xffff_fff0, INDIRECT)),
    negotiated("table right behind memory", ALL, INDIRECT_DESC, NeedsReset, |s| {
        one(s, RAM_BYTES, 32, INDIRECT);
    }),
    negotiated("table across memory's end", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(RAM_BYTES - 16, 0, (BUFFERS, 16, NEXT), 1);
        one(s, RAM_BYTES - 16, 32, INDIRECT);
    }),
    negotiated("table across the end of addresses", ALL, INDIRECT_DESC, NeedsReset, |s| {
        one(s, u64::MAX - 15, 32, INDIRECT);
    }),
    negotiated("table in a virtio window", ALL, INDIRECT_DESC, NeedsReset, |s| {
        one(s, VIRTIO_MMIO_BASE, 64, INDIRECT);
    }),
    negotiated("table in a table", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(TABLES, 0, (TABLES + 0x1000, 16, INDIRECT), 0);
        one(s, TABLES, 16, INDIRECT);
    }),
    negotiated("table as the second of a table", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(TABLES, 0, (BUFFERS, 16, NEXT), 1);
        s.descriptor(TABLES, 1, (TABLES + 0x1000, 16, INDIRECT), 0);
        one(s, TABLES, 32, INDIRECT);
    }),
    negotiated("table that is its own entry", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(TABLES, 0, (TABLES, 16, INDIRECT), 0);
        one(s, TABLES, 16, INDIRECT);
    }),
    negotiated("table that is the queue's", ALL, INDIRECT_DESC, NeedsReset, |s| {
        let at = s.queues[work(s.device)].desc;
        one(s, at, 16 * u32::from(ENTRIES), INDIRECT);
    }),
    negotiated("loop in a table", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(TABLES, 0, (BUFFERS, 16, NEXT), 1);
        s.descriptor(TABLES, 1, (BUFFERS, 16, NEXT), 0);
        one(s, TABLES, 32, INDIRECT);
    }),
    negotiated("next beyond a table", ALL, INDIRECT_DESC, NeedsReset, |s| {
        s.descriptor(TABLES, 0, (BUFFERS, 16, NEXT), 2);
        one(s, TABLES, 32, INDIRECT);
    }),
    negotiated("longer than the queue, in a table", ALL, INDIRECT_DESC, NeedsReset, |s| {
        let buffers = vec![(BUFFERS, 1, WRITE); usize::from(ENTRIES) + 1];
        let bytes = table(s, TABLES, &buffers);
        one(s, TABLES, bytes, INDIRECT);
    }),
    started("as long as the queue", RNG, Served, |s| {
        let buffers = vec![(BUFFERS, 8, WRITE); ENTRIES.into()];
        s.serve(0, &buffers);
        assert_eq!(s.wait_used(0, 1), [(0, 64)]);
    }),
    started("buffers that overlap", RNG, Served, |s| {
        s.serve(0, &[(BUFFERS, 64, WRITE), (BUFFERS + 1, 64, WRITE), (BUFFERS, 64, WRITE)]);
        assert_eq!(s.wait_used(0, 1), [(0, 192)]);
    }),
    started("buffer over the queue's own descriptors", RNG, Survived, |s| {
        let at = s.queues[0].desc;
        s.serve(0, &[(at, 16 * u32::from(ENTRIES), WRITE)]);
        s.wait_used(0, 1);
        s.offer_head(0, 1);
        s.notify(0);
    }),
    started("buffer over the used ring", RNG, Served, |s| {
        let at = s.queues[0].used;
        s.serve(0, &[(at, 70, WRITE)]);
    }),
    started("what is read over the available ring", BLOCK, NeedsReset, |s| {
        // Zeroes, of which the index is one that goes back.
        let at = s.queues[0].avail;
        s.vm.poke(BUFFERS, &[0; 16]);
        s.vm.poke(BUFFERS + 8, &100u64.to_le_bytes());
        s.serve(0, &[(BUFFERS, 16, 0), (at, 512, WRITE), (BUFFERS + 0x2000, 1, WRITE)]);
    }),
    started("transmitted out of the rings themselves", NET, Survived, |s| {
        let at = s.queues[1].desc;
        s.serve(1, &[(at, 100, 0)]);
    }),
];
