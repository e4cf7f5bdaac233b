//! The C library's allocator looks into two files, once each, at a time of its own: how many processors there are,
//! when it has made several arenas, and whether memory is overcommitted, when an arena becomes smaller. It does without
//! where it cannot. But a refused call is a sign of trouble, and these are none: so they are made ahead.

/// Arenas for each processor: what the C library has where it has looked (`M_ARENA_MAX` in mallopt(3)).
const ARENAS: usize = 8;
/// So much memory, in pieces that get no mapping of their own, that an arena becomes smaller when it is given back.
const PIECES: usize = 64;
const PIECE_BYTES: usize = 64 << 10;

/// Has it look now, and never again.
pub(crate) fn settle() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let arenas = libc::c_int::try_from(ARENAS * processors).unwrap_or(libc::c_int::MAX);
    // SAFETY: a number.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    // Of a thread that is not the first: that has an arena which cannot become smaller so.
    let shrink = || drop((0..PIECES).map(|_| vec![1u8; PIECE_BYTES]).collect::<Vec<_>>());
    let _ = std::thread::spawn(shrink).join();
}
