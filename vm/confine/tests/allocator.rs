//! The C library's allocator asks the kernel for no file on a confined thread, whatever it is asked for.

use ft_confine::{ThreadKind, refused};

/// More than the C library has arenas for before it looks how many processors there are.
const THREADS: usize = 24;
/// Beneath the size that gets a mapping of its own.
const PIECE_BYTES: usize = 100_000;

#[test]
fn memory_comes_and_goes_without_a_refused_call() {
    ft_confine::on().unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            std::thread::spawn(move || {
                ft_confine::this_thread(ThreadKind::Link);
                for round in 0..20 {
                    let pieces: Vec<Vec<u8>> =
                        (0..100).map(|n| vec![n; PIECE_BYTES - number * round]).collect();
                    assert!(pieces.iter().all(|piece| piece[0] == piece[PIECE_BYTES / 2]));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(refused(), []);
}
