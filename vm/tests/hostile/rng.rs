//! The source of random numbers: what may be asked of it.

use crate::cases::Expected::{NeedsReset, Served};
use crate::cases::{Case, RNG, started};
use crate::driver::WRITE;
use crate::vm::BUFFERS;

pub const CASES: &[Case] = &[
    started("randomness from the guest", RNG, NeedsReset, |s| s.serve(0, &[(BUFFERS, 10, 0)])),
    started("randomness from the guest and to it", RNG, NeedsReset, |s| {
        s.serve(0, &[(BUFFERS, 10, 0), (BUFFERS, 10, WRITE)]);
    }),
    started("no room for randomness", RNG, Served, |s| {
        s.serve(0, &[(BUFFERS, 0, WRITE)]);
        assert_eq!(s.wait_used(0, 1), [(0, 0)]);
    }),
    started("one random byte", RNG, Served, |s| {
        s.serve(0, &[(BUFFERS, 1, WRITE)]);
        assert_eq!(s.wait_used(0, 1), [(0, 1)]);
    }),
    started("megabytes of randomness", RNG, Served, |s| {
        s.vm.poke(BUFFERS + 4096, &[0; 64]);
        s.serve(0, &[(BUFFERS, 7 << 20, WRITE)]);
        assert_eq!(s.wait_used(0, 1), [(0, 4096)], "as much as a request gets");
        assert_eq!(s.vm.peek(BUFFERS + 4096, 64), [0; 64], "no more than it says");
    }),
    started("megabytes of randomness in each of a queue's chains", RNG, Served, |s| {
        for _ in 0..8 {
            s.offer(0, &[(BUFFERS, 7 << 20, WRITE)]);
        }
        s.notify(0);
        assert_eq!(s.wait_used(0, 8).len(), 8);
    }),
];
