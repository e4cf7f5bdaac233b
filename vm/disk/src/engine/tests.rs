//! What the engines promise, each of them, and what a task makes of every answer of the kernel.

use super::task::{Call, Task};
use super::*;
use crate::buffer::Buffer;
use crate::image::Access;
use crate::io::{Io, Persist, Unmap};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

const BYTES: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const ENGINES: [IoEngine; 2] = [IoEngine::Uring, IoEngine::Threads];

struct Told(Sender<Vec<IoDone>>);

impl Finish for Told {
    fn finish(&self, done: &mut Vec<IoDone>) {
        let _ = self.0.send(std::mem::take(done));
    }
}

struct Rig {
    directory: tempfile::TempDir,
    queue: Box<dyn IoQueue>,
    told: Receiver<Vec<IoDone>>,
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("image")
}

impl Rig {
    /// None, said aloud, where this kernel has no io_uring.
    fn new(engine: IoEngine) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        File::create(path(&directory)).unwrap().set_len(BYTES).unwrap();
        let image = RawImage::open(&path(&directory), Access::Writable).unwrap();
        let (sender, told) = channel();
        let store = Box::new(ImageStore::new(image, engine));
        match store.start("disk", Completion::By(Arc::new(Told(sender)))) {
            Ok(queue) => Some(Self { directory, queue, told }),
            Err(StoreError::Uring(e)) => {
                eprintln!("SKIPPED for io_uring, which this kernel refuses: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn order(&mut self, tag: u64, io: Io) {
        assert!(self.queue.submit(IoOrder { tag, io }).is_none(), "done on the caller's thread");
    }

    /// Waits for so many orders.
    fn finished(&self, count: usize) -> BTreeMap<u64, IoDone> {
        let mut done = BTreeMap::new();
        while done.len() < count {
            for one in self.told.recv_timeout(SOON).unwrap() {
                assert!(done.insert(one.tag, one).is_none(), "told twice");
            }
        }
        done
    }

    fn do_it(&mut self, io: Io) -> IoDone {
        self.order(7, io);
        self.finished(1).remove(&7).unwrap()
    }

    fn read(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let done = self.do_it(Io::Read { offset, into: Buffer::zeroed(bytes) });
        done.result.unwrap();
        let Io::Read { into, .. } = done.io else { panic!("another request came back") };
        into.to_vec()
    }
}

fn filled(byte: u8, bytes: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(bytes);
    buffer.fill(byte);
    buffer
}

fn write(offset: u64, byte: u8, bytes: usize) -> Io {
    Io::Write { offset, from: filled(byte, bytes), persist: Persist::Later }
}

#[test]
fn many_orders_are_under_way_at_once_and_each_comes_back_once() {
    for mut rig in ENGINES.into_iter().filter_map(Rig::new) {
        // More than an engine takes at a time.
        for tag in 0..512 {
            rig.order(tag, write(tag * 2048, tag as u8, 2048));
        }
        assert!(rig.finished(512).values().all(|done| done.result.is_ok()));
        for tag in [0, 1, 255, 256, 511] {
            assert_eq!(rig.read(tag * 2048, 2048), vec![tag as u8; 2048]);
        }
    }
}

#[test]
fn zeroes_and_durable_writes_do_what_they_say() {
    for mut rig in ENGINES.into_iter().filter_map(Rig::new) {
        rig.do_it(write(0, 9, BYTES as usize)).result.unwrap();
        for (offset, unmap) in [(4096, Unmap::May), (65_536 + 512, Unmap::Keep)] {
            rig.do_it(Io::WriteZeroes { offset, bytes: 8192, unmap }).result.unwrap();
            assert_eq!(rig.read(offset - 512, 512), [9; 512]);
            assert_eq!(rig.read(offset, 8192), [0; 8192]);
            assert_eq!(rig.read(offset + 8192, 512), [9; 512]);
        }
        rig.do_it(Io::Write { offset: 0, from: filled(3, 512), persist: Persist::Now }).result.unwrap();
        rig.do_it(Io::Flush).result.unwrap();
        let size = std::fs::metadata(path(&rig.directory)).unwrap().len();
        assert_eq!(size, BYTES, "nothing grows or shrinks an image");
    }
}

#[test]
fn an_image_that_was_made_shorter_is_an_error_and_no_zeroes() {
    for mut rig in ENGINES.into_iter().filter_map(Rig::new) {
        File::options().write(true).open(path(&rig.directory)).unwrap().set_len(8192).unwrap();
        let fault = rig.do_it(Io::Read { offset: 4096, into: Buffer::zeroed(8192) }).result.unwrap_err();
        assert!(fault.to_string().contains("at offset 8192: the image ends there"), "{fault}");
        assert_eq!(rig.read(0, 8192).len(), 8192, "one order's trouble is not the next one's");
    }
}

#[test]
fn a_nudge_is_answered() {
    for rig in ENGINES.into_iter().filter_map(Rig::new) {
        assert!(rig.queue.nudge());
        assert!(rig.told.recv_timeout(SOON).unwrap().is_empty());
    }
}

#[test]
fn where_the_kernel_refuses_io_uring_threads_do_it_unless_it_was_asked_for() {
    for errno in [libc::ENOSYS, libc::EPERM, libc::ENOMEM] {
        let directory = tempfile::tempdir().unwrap();
        File::create(path(&directory)).unwrap().set_len(BYTES).unwrap();
        let image = || Arc::new(RawImage::open(&path(&directory), Access::Writable).unwrap());
        let refuse = || Err(io::Error::from_raw_os_error(errno));
        let (sender, told) = channel();
        let told_to = Arc::new(Told(sender));
        let (kind, mut queue) =
            start(image(), IoEngine::Auto, "disk", Arc::clone(&told_to) as _, refuse).unwrap();
        assert_eq!(kind, Kind::Threads);
        assert!(queue.submit(IoOrder { tag: 1, io: write(0, 1, 512) }).is_none());
        assert!(told.recv_timeout(SOON).unwrap()[0].result.is_ok());
        drop(queue);
        assert!(matches!(
            start(image(), IoEngine::Uring, "disk", told_to, refuse),
            Err(StoreError::Uring(_))
        ));
    }
}

#[test]
fn a_queue_that_answers_at_once_has_it_done() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(path(&directory), [5; 1024]).unwrap();
    let image = RawImage::reading(File::open(path(&directory)).unwrap()).unwrap();
    let store = Box::new(ImageStore::new(image, IoEngine::Auto));
    assert!(!store.is_writable() && store.bytes() == 1024);
    let mut queue = store.start("disk", Completion::AtOnce).unwrap();
    let io = Io::Read { offset: 512, into: Buffer::zeroed(512) };
    let done = queue.submit(IoOrder { tag: 3, io }).unwrap();
    let Io::Read { into, .. } = done.io else { panic!("another request came back") };
    assert!(done.result.is_ok() && done.tag == 3 && into[..] == [5; 512]);
    assert!(!queue.nudge());
}

/// Holds whoever tells it what is done, and says so.
struct Stuck {
    entered: Sender<()>,
    until: parking_lot::Mutex<Receiver<()>>,
}

impl Finish for Stuck {
    fn finish(&self, _: &mut Vec<IoDone>) {
        let _ = self.entered.send(());
        let _ = self.until.lock().recv();
    }
}

#[test]
fn a_queue_whose_disk_stands_still_is_dropped_and_the_image_stays_locked_until_it_moves() {
    for engine in ENGINES {
        let directory = tempfile::tempdir().unwrap();
        File::create(path(&directory)).unwrap().set_len(BYTES).unwrap();
        let image = RawImage::open(&path(&directory), Access::Writable).unwrap();
        let (let_go, until) = channel();
        let (entered, is_stuck) = channel();
        let store = Box::new(ImageStore::new(image, engine));
        let finish = Arc::new(Stuck { entered, until: parking_lot::Mutex::new(until) });
        let Ok(mut queue) = store.start("disk", Completion::By(finish)) else { continue };
        assert!(queue.submit(IoOrder { tag: 1, io: write(0, 1, 512) }).is_none());
        assert!(queue.submit(IoOrder { tag: 2, io: Io::Flush }).is_none());
        is_stuck.recv_timeout(SOON).unwrap();
        drop(queue);
        assert!(
            RawImage::open(&path(&directory), Access::Writable).is_err(),
            "{engine:?}: not locked any more"
        );
        drop(let_go);
        let begun = std::time::Instant::now();
        while RawImage::open(&path(&directory), Access::Writable).is_err() {
            assert!(begun.elapsed() < SOON, "{engine:?}: locked for good");
            std::thread::yield_now();
        }
    }
}

/// Carries a task out on a file in memory, with an answer of `answers` for each call in turn: so many bytes at most, or
/// an error.
fn on_memory(io: Io, file: &mut [u8], mut answers: impl FnMut(&Call) -> Result<u64, i32>) -> IoDone {
    let mut task = Task::new(IoOrder { tag: 0, io });
    loop {
        let Some(call) = task.call() else { return task.done(Ok(())) };
        let answer = answers(&call).map_or_else(
            |errno| -i64::from(errno),
            |most| match call {
                Call::Read { into, bytes, offset } => {
                    let (at, now) = (offset as usize, (u64::from(bytes).min(most)) as usize);
                    // SAFETY: the task owns `bytes` bytes there.
                    unsafe { std::ptr::copy_nonoverlapping(file[at..at + now].as_ptr(), into, now) };
                    now as i64
                }
                Call::Write { from, bytes, offset } => {
                    let (at, now) = (offset as usize, (u64::from(bytes).min(most)) as usize);
                    // SAFETY: the task owns `bytes` bytes there.
                    unsafe { std::ptr::copy_nonoverlapping(from, file[at..at + now].as_mut_ptr(), now) };
                    now as i64
                }
                Call::Allocate { offset, bytes, .. } => {
                    file[offset as usize..(offset + bytes) as usize].fill(0);
                    0
                }
                Call::Sync => 0,
            },
        );
        if let Some(result) = task.advance(answer) {
            return task.done(result);
        }
    }
}

proptest! {
    /// However short the transfers and however often a call is interrupted: all is read and written, or it is an error.
    #[test]
    fn short_transfers_are_continued(
        sectors in 1usize..40,
        at in 0u64..20,
        answers in prop::collection::vec(prop_oneof![
            6 => (512u64..8192).prop_map(Ok),
            2 => Just(Err(libc::EINTR)),
            1 => Just(Err(libc::EAGAIN)),
        ], 1..30),
        zeroes in any::<bool>(),
    ) {
        let mut file: Vec<u8> = (0..64 * 512).map(|i| (i / 512) as u8 | 1).collect();
        let (offset, bytes) = (at * 512, sectors * 512);
        let mut expected = file.clone();
        let mut turn = 0;
        let mut next = |call: &Call| {
            turn += 1;
            match call {
                // As a file system that cannot.
                Call::Allocate { .. } => Err(libc::EOPNOTSUPP),
                _ => answers[turn % answers.len()],
            }
        };
        let read = |io| match io {
            Io::Read { into, .. } => into.to_vec(),
            _ => panic!("another request came back"),
        };
        if answers.iter().any(Result::is_ok) {
            let done = on_memory(Io::Read { offset, into: Buffer::zeroed(bytes) }, &mut file, &mut next);
            prop_assert!(done.result.is_ok());
            prop_assert_eq!(&read(done.io)[..], &file[offset as usize..][..bytes]);
            let (io, byte) = match zeroes {
                true => (Io::WriteZeroes { offset, bytes: bytes as u64, unmap: Unmap::Keep }, 0),
                false => (write(offset, 0xcc, bytes), 0xcc),
            };
            expected[offset as usize..][..bytes].fill(byte);
            prop_assert!(on_memory(io, &mut file, &mut next).result.is_ok());
            prop_assert!(file == expected);
        }
    }
}

#[test]
fn errors_are_reported_where_they_happened() {
    let mut file = vec![7; 8192];
    let refuse = |errno| move |_: &Call| Err(errno);
    let fault = on_memory(write(512, 1, 512), &mut file, refuse(libc::ENOSPC)).result.unwrap_err();
    assert_eq!(fault.source.raw_os_error(), Some(libc::ENOSPC));
    assert!(fault.to_string().starts_with("cannot write a disk's image at offset 512"), "{fault}");
    assert!(on_memory(Io::Flush, &mut file, refuse(libc::EIO)).result.is_err());
    assert!(on_memory(write(0, 1, 512), &mut file, |_| Ok(0)).result.is_err(), "nothing is not a success");
    assert!(on_memory(write(0, 1, 512), &mut file, refuse(libc::EAGAIN)).result.is_err(), "not for ever");
    let zeroes = Io::WriteZeroes { offset: 0, bytes: 4096, unmap: Unmap::May };
    assert!(on_memory(zeroes, &mut file, refuse(libc::EIO)).result.is_err());
    let durable = Io::Write { offset: 0, from: filled(1, 512), persist: Persist::Now };
    let no_sync = |call: &Call| if *call == Call::Sync { Err(libc::EIO) } else { Ok(512) };
    assert!(on_memory(durable, &mut file, no_sync).result.is_err());
}
