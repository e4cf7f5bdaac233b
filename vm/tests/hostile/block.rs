//! The disk: requests beyond its end, of no type, of no length, with a header or a status that is none.

use crate::cases::Expected::{NeedsReset, Refused, Served, Survived};
use crate::cases::{BLOCK, Case, negotiated, raw, started, table};
use crate::driver::{INDIRECT, INDIRECT_DESC, Piece, Queue, Stage, WRITE};
use crate::vm::{BUFFERS, DISK_BYTES, TABLES};
use std::time::Instant;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SECTORS: u64 = DISK_BYTES / 512;
const DATA: u64 = BUFFERS + 0x1000;
/// Of all that the data can be.
const STATUS: u64 = BUFFERS + 0x7f_0000;

fn head(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Asks for this, with such data; what the status is, and how many bytes the device says it wrote.
fn ask(s: &mut Stage<'_>, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
    s.vm.poke(BUFFERS, &head(kind, sector));
    s.vm.poke(STATUS, &[0xee]);
    s.serve(0, &[&[(BUFFERS, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat());
    let used = s.wait_used(0, 1);
    (s.vm.peek(STATUS, 1)[0], used[0].1)
}

/// A read of so many bytes.
fn read(s: &mut Stage<'_>, sector: u64, bytes: u32, answer: (u8, u32)) {
    assert_eq!(ask(s, IN, sector, &[(DATA, bytes, WRITE)]), answer);
}

/// A write of so many bytes.
fn write(s: &mut Stage<'_>, sector: u64, bytes: u32, status: u8) {
    assert_eq!(ask(s, OUT, sector, &[(DATA, bytes, 0)]), (status, 1));
}

/// A request of this type that takes a range, or what passes for one.
fn ranges(s: &mut Stage<'_>, kind: u32, ranges: &[(u64, u32, u32)], bytes: u32, status: u8) {
    let content = ranges.iter().flat_map(|(sector, sectors, flags)| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    });
    s.vm.poke(DATA, &content.collect::<Vec<_>>());
    assert_eq!(ask(s, kind, 0, &[(DATA, bytes, 0)]), (status, 1));
}

/// Requests whose type this disk has not.
fn unknown(s: &mut Stage<'_>, kinds: &[u32]) {
    for &kind in kinds {
        assert_eq!(ask(s, kind, 0, &[]), (UNSUPP, 1), "type {kind}");
        assert_eq!(ask(s, kind, 0, &[(DATA, 512, WRITE)]), (UNSUPP, 0), "type {kind}");
    }
}

/// A chain as it is, behind the header of a read.
fn as_is(s: &mut Stage<'_>, chain: &[Piece]) {
    s.vm.poke(BUFFERS, &head(IN, 0));
    s.serve(0, chain);
}

/// Fills the largest queue with the longest requests, and notifies once; says how long that takes.
fn all_at_once(s: &mut Stage<'_>, kind: u32) {
    s.negotiate(INDIRECT_DESC);
    s.queues[0] = Queue { size: 128, ..Queue::new(s.device, 0) };
    assert!(s.set_up(0));
    s.go();
    s.vm.poke(BUFFERS, &head(kind, 0));
    let flags = if kind == IN { WRITE } else { 0 };
    let bytes = table(s, TABLES, &[(BUFFERS, 16, 0), (DATA, 126 * 0x8000, flags), (STATUS, 1, WRITE)]);
    for _ in 0..128 {
        s.offer(0, &[(TABLES, bytes, INDIRECT)]);
    }
    let begun = Instant::now();
    s.notify(0);
    eprintln!("the vCPU goes on after {:?}", begun.elapsed());
    assert_eq!(s.wait_used(0, 128).len(), 128);
}

pub const CASES: &[Case] = &[
    started("read of the last sector", BLOCK, Served, |s| read(s, SECTORS - 1, 512, (OK, 513))),
    // What is not written from the beginning is not said to be written.
    started("read beyond the end", BLOCK, Refused, |s| read(s, SECTORS, 512, (IOERR, 0))),
    started("read across the end", BLOCK, Refused, |s| read(s, SECTORS - 1, 1024, (IOERR, 0))),
    started("read of the last sector there can be", BLOCK, Refused, |s| read(s, u64::MAX, 512, (IOERR, 0))),
    started("read of a sector whose offset overflows", BLOCK, Refused, |s| read(s, 1 << 55, 512, (IOERR, 0))),
    started("read of 100 bytes", BLOCK, Refused, |s| read(s, 0, 100, (IOERR, 0))),
    started("read of 513 bytes", BLOCK, Refused, |s| read(s, 0, 513, (IOERR, 0))),
    started("read of nothing", BLOCK, Served, |s| read(s, 0, 0, (OK, 1))),
    started("read of nothing beyond the end", BLOCK, Refused, |s| read(s, SECTORS + 1, 0, (IOERR, 1))),
    started("longest read", BLOCK, Served, |s| read(s, 0, 126 * 0x8000, (OK, 126 * 0x8000 + 1))),
    started("read a sector too long", BLOCK, Refused, |s| read(s, 0, 126 * 0x8000 + 512, (IOERR, 0))),
    started("read into pieces of any length", BLOCK, Served, |s| {
        let pieces =
            [(DATA, 1, WRITE), (DATA + 9, 510, WRITE), (DATA + 999, 0, WRITE), (DATA + 1000, 1, WRITE)];
        assert_eq!(ask(s, IN, 0, &pieces), (OK, 513));
    }),
    started("read into a buffer to read", BLOCK, Served, |s| {
        // The payload of a read is none of its business.
        assert_eq!(ask(s, IN, 0, &[(DATA, 512, 0)]), (OK, 1));
    }),
    started("write of the last sector", BLOCK, Served, |s| write(s, SECTORS - 1, 512, OK)),
    started("write beyond the end", BLOCK, Refused, |s| write(s, SECTORS, 512, IOERR)),
    started("write across the end", BLOCK, Refused, |s| write(s, SECTORS - 1, 1024, IOERR)),
    started("write of the last sector there can be", BLOCK, Refused, |s| write(s, u64::MAX, 512, IOERR)),
    started("write of a sector whose offset overflows", BLOCK, Refused, |s| write(s, 1 << 55, 512, IOERR)),
    started("write of 511 bytes", BLOCK, Refused, |s| write(s, 0, 511, IOERR)),
    started("write of nothing", BLOCK, Served, |s| write(s, 0, 0, OK)),
    started("write out of a buffer to write", BLOCK, Served, |s| {
        assert_eq!(ask(s, OUT, 0, &[(DATA, 512, WRITE)]).0, OK);
    }),
    started("flush of a sector and with data", BLOCK, Served, |s| {
        assert_eq!(ask(s, FLUSH, 77, &[(DATA, 512, 0)]), (OK, 1));
        assert_eq!(ask(s, FLUSH, u64::MAX, &[]), (OK, 1));
    }),
    started("identity in 20 bytes", BLOCK, Served, |s| {
        assert_eq!(ask(s, GET_ID, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    }),
    started("identity in one byte", BLOCK, Served, |s| {
        assert_eq!(ask(s, GET_ID, 0, &[(DATA, 1, WRITE)]), (OK, 2));
    }),
    started("identity in no byte", BLOCK, Served, |s| assert_eq!(ask(s, GET_ID, 0, &[]), (OK, 1))),
    started("identity in a page", BLOCK, Served, |s| {
        s.vm.poke(DATA, &[0xcc; 64]);
        assert_eq!(ask(s, GET_ID, 0, &[(DATA, 4096, WRITE)]), (OK, 20));
        assert_eq!(s.vm.peek(DATA + 20, 4), [0xcc; 4]);
    }),
    started("types that are not negotiated", BLOCK, Refused, |s| unknown(s, &[2, 3, 10, 14, 15, 16, 17, 26])),
    started("types that are none", BLOCK, Refused, |s| unknown(s, &[5, 7, 9, 12, 0x8000_0000, u32::MAX])),
    started("discard of a range", BLOCK, Served, |s| ranges(s, DISCARD, &[(8, 16, 0)], 16, OK)),
    started("discard of nothing", BLOCK, Served, |s| ranges(s, DISCARD, &[(0, 0, 0)], 16, OK)),
    started("discard beyond the end", BLOCK, Refused, |s| ranges(s, DISCARD, &[(SECTORS, 1, 0)], 16, IOERR)),
    started("discard whose end overflows", BLOCK, Refused, |s| {
        ranges(s, DISCARD, &[(u64::MAX, u32::MAX, 0)], 16, IOERR);
    }),
    started("discard of two ranges", BLOCK, Refused, |s| {
        ranges(s, DISCARD, &[(0, 8, 0), (16, 8, 0)], 32, IOERR);
    }),
    started("discard of no range", BLOCK, Refused, |s| ranges(s, DISCARD, &[], 0, IOERR)),
    started("discard of most of a range", BLOCK, Refused, |s| ranges(s, DISCARD, &[(8, 16, 0)], 15, IOERR)),
    started("discard with a flag", BLOCK, Refused, |s| ranges(s, DISCARD, &[(8, 16, 1)], 16, UNSUPP)),
    started("zeroes", BLOCK, Served, |s| {
        ranges(s, WRITE_ZEROES, &[(8, 16, 0)], 16, OK);
        ranges(s, WRITE_ZEROES, &[(8, 16, 1)], 16, OK);
    }),
    started("zeroes beyond the end", BLOCK, Refused, |s| {
        ranges(s, WRITE_ZEROES, &[(SECTORS - 1, 2, 0)], 16, IOERR);
    }),
    started("zeroes whose end overflows", BLOCK, Refused, |s| {
        ranges(s, WRITE_ZEROES, &[(1 << 55, u32::MAX, 0)], 16, IOERR);
    }),
    started("zeroes of too many sectors", BLOCK, Refused, |s| {
        ranges(s, WRITE_ZEROES, &[(0, u32::MAX, 0)], 16, IOERR);
    }),
    started("zeroes with flags that nobody knows", BLOCK, Refused, |s| {
        ranges(s, WRITE_ZEROES, &[(8, 16, 0xffff_fffe)], 16, UNSUPP);
    }),
    started("zeroes of a thousand ranges", BLOCK, Refused, |s| {
        ranges(s, WRITE_ZEROES, &[(8, 16, 0); 1000], 16_000, IOERR);
    }),
    started("no status", BLOCK, NeedsReset, |s| as_is(s, &[(BUFFERS, 16, 0)])),
    started("status of no bytes", BLOCK, NeedsReset, |s| as_is(s, &[(BUFFERS, 16, 0), (STATUS, 0, WRITE)])),
    started("status to read", BLOCK, NeedsReset, |s| as_is(s, &[(BUFFERS, 16, 0), (STATUS, 1, 0)])),
    started("no request header", BLOCK, NeedsReset, |s| as_is(s, &[(DATA, 513, WRITE)])),
    started("half a request header", BLOCK, NeedsReset, |s| {
        as_is(s, &[(BUFFERS, 15, 0), (DATA, 513, WRITE)])
    }),
    started("request header to write", BLOCK, NeedsReset, |s| {
        as_is(s, &[(BUFFERS, 16, WRITE), (DATA, 513, WRITE)]);
    }),
    started("endless request", BLOCK, NeedsReset, |s| {
        as_is(s, &[(BUFFERS, 7 << 20, 0), (STATUS, 1, WRITE)]);
    }),
    started("status in the data's buffer", BLOCK, Served, |s| {
        as_is(s, &[(BUFFERS, 16, 0), (DATA, 513, WRITE)]);
        assert_eq!(s.wait_used(0, 1)[0].1, 513);
    }),
    started("status before an empty buffer", BLOCK, Served, |s| {
        as_is(s, &[(BUFFERS, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE), (0, 0, WRITE)]);
        assert_eq!(s.wait_used(0, 1)[0].1, 513);
    }),
    negotiated("request header in a byte a descriptor", BLOCK, INDIRECT_DESC, Served, |s| {
        // As many descriptors as the queue has: the header's last bytes lie in one.
        s.vm.poke(BUFFERS, &head(IN, 0));
        let mut buffers: Vec<Piece> = (0..5).map(|at| (BUFFERS + at, 1, 0)).collect();
        buffers.extend([(BUFFERS + 5, 11, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        let bytes = table(s, TABLES, &buffers);
        s.serve(0, &[(TABLES, bytes, INDIRECT)]);
    }),
    started("data over the header and the status over the data", BLOCK, Served, |s| {
        as_is(s, &[(BUFFERS, 16, 0), (BUFFERS, 512, WRITE), (BUFFERS + 511, 1, WRITE)]);
    }),
    started("request that changes once it is given", BLOCK, Survived, |s| {
        for _ in 0..8 {
            s.vm.poke(BUFFERS, &head(OUT, 3));
            s.serve(0, &[(BUFFERS, 16, 0), (DATA, 0x8000, 0), (STATUS, 1, WRITE)]);
            s.vm.poke(BUFFERS, &head(u32::MAX, u64::MAX));
            s.descriptor(s.queues[0].desc, 0, (u64::MAX, u32::MAX, 0xffff), 0xffff);
            s.wait_used(0, 1);
            s.start(0);
        }
    }),
    raw("the longest reads in the largest queue, at once", BLOCK, Served, |s| all_at_once(s, IN)),
    raw("the longest writes in the largest queue, at once", BLOCK, Served, |s| all_at_once(s, OUT)),
    started("writes of one sector, all at once", BLOCK, Served, |s| {
        s.vm.poke(BUFFERS, &head(OUT, 3));
        s.offer(0, &[(BUFFERS, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
        s.offer(0, &[(BUFFERS, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
        s.notify(0);
    }),
];
