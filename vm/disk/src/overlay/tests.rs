//! An image over a base is a disk: reads give what was written last, after any crash, and the base never changes.

use super::*;
use crate::{
    Access, Completion, Finish, ImageStore, Io, IoDone, IoEngine, IoOrder, IoQueue, Persist, RawImage, Store,
    StoreError, Unmap,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const UNIT: u64 = 4096;
const DISK: u64 = 40 * UNIT + 512;
/// It ends within a unit, and before the disk.
const BASE: usize = 30 * UNIT as usize + 1024;

fn base_content() -> Vec<u8> {
    let mut content: Vec<u8> = (0..BASE).map(|at| (at / 512 + 1) as u8).collect();
    // Zeroes need no space in the image.
    content[8 * UNIT as usize..12 * UNIT as usize].fill(0);
    content
}

struct Told(Sender<IoDone>);

impl Finish for Told {
    fn finish(&self, done: &mut Vec<IoDone>) {
        done.drain(..).for_each(|done| drop(self.0.send(done)));
    }
}

#[derive(Clone, Copy, Debug)]
enum By {
    Caller,
    Threads,
    Uring,
}

#[derive(Default)]
struct Record {
    present: BTreeSet<u64>,
    /// Recordings until one fails.
    left: Option<u32>,
    /// Reads of the base.
    reads: u32,
    /// What is being zeroed.
    zeroes: Range<u64>,
}

struct Rig {
    directory: tempfile::TempDir,
    record: Arc<Mutex<Record>>,
    by: By,
    queue: Box<dyn IoQueue>,
    told: Receiver<IoDone>,
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("overlay")
}

fn image(directory: &tempfile::TempDir, record: &Arc<Mutex<Record>>) -> RawImage {
    let base = base_content();
    let of_read = Arc::clone(record);
    let read = move |into: &mut [u8], offset: u64| {
        of_read.lock().reads += 1;
        let from = base.get(offset as usize..).unwrap_or_default();
        let some = from.len().min(into.len());
        into[..some].copy_from_slice(&from[..some]);
        into[some..].fill(0);
        Ok(())
    };
    let (of_record, file) = (Arc::clone(record), File::open(path(directory)).unwrap());
    let present = record.lock().present.iter().copied().collect();
    let record = move |units: &[u64]| {
        let mut record = of_record.lock();
        match &mut record.left {
            Some(0) => return Err(io::Error::other("power failed")),
            Some(left) => *left -= 1,
            None => {}
        }
        for unit in units {
            // By now the image has the unit as it was before any write into it, or zeroes where all of it will be.
            let end = ((unit + 1) * UNIT).min(DISK);
            let mut has = vec![0; (end - unit * UNIT) as usize];
            file.read_exact_at(&mut has, unit * UNIT).unwrap();
            let base = base_content();
            let was = (unit * UNIT..end).map(|at| base.get(at as usize).copied().unwrap_or(0));
            let is_zeroed = record.zeroes.start <= unit * UNIT && end <= record.zeroes.end;
            match is_zeroed {
                true => assert!(has.iter().all(|byte| *byte == 0), "unit {unit}"),
                false => assert!(was.eq(has.iter().copied()), "unit {unit}"),
            }
            assert!(record.present.insert(*unit), "recorded twice");
        }
        Ok(())
    };
    let (read, record): (ReadBase, RecordPresent) = (Box::new(read), Box::new(record));
    let under = UnderImage { base: 5, read, unit_bytes: UNIT, present, record };
    RawImage::open(&path(directory), Access::Writable).unwrap().over(under).unwrap()
}

fn start(image: RawImage, by: By) -> Option<(Box<dyn IoQueue>, Receiver<IoDone>)> {
    let (sender, told) = channel();
    let (engine, answer) = match by {
        By::Caller => (IoEngine::Auto, Completion::AtOnce),
        By::Threads => (IoEngine::Threads, Completion::By(Arc::new(Told(sender)))),
        By::Uring => (IoEngine::Uring, Completion::By(Arc::new(Told(sender)))),
    };
    match Box::new(ImageStore::new(image, engine)).start("disk", answer) {
        Ok(queue) => Some((queue, told)),
        Err(StoreError::Uring(e)) => {
            eprintln!("SKIPPED for io_uring, which this kernel refuses: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

impl Rig {
    fn new(by: By) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        File::create(path(&directory)).unwrap().set_len(DISK).unwrap();
        let record = Arc::default();
        let (queue, told) = start(image(&directory, &record), by)?;
        Some(Self { directory, record, by, queue, told })
    }

    /// Another process opens what the last one left.
    fn reopen(&mut self) {
        self.record.lock().left = None;
        struct Nothing;
        impl IoQueue for Nothing {
            fn submit(&mut self, _: IoOrder) -> Option<IoDone> {
                None
            }
            fn nudge(&self) -> bool {
                false
            }
        }
        self.queue = Box::new(Nothing);
        (self.queue, self.told) = start(image(&self.directory, &self.record), self.by).unwrap();
    }

    fn order(&mut self, tag: u64, io: Io) -> Option<IoDone> {
        self.queue.submit(IoOrder { tag, io })
    }

    fn do_it(&mut self, io: Io) -> IoDone {
        self.record.lock().zeroes = match &io {
            Io::WriteZeroes { offset, bytes, .. } => *offset..offset + bytes,
            _ => 0..0,
        };
        self.order(0, io).unwrap_or_else(|| self.told.recv_timeout(Duration::from_secs(60)).unwrap())
    }

    fn read(&mut self, bytes: Range<u64>) -> Vec<u8> {
        let into = Buffer::zeroed((bytes.end - bytes.start) as usize);
        let done = self.do_it(Io::Read { offset: bytes.start, into });
        done.result.unwrap();
        let Io::Read { into, .. } = done.io else { panic!("another request came back") };
        into.to_vec()
    }
}

fn write(offset: u64, bytes: u64, byte: u8) -> Io {
    let mut from = Buffer::zeroed(bytes as usize);
    from.fill(byte);
    Io::Write { offset, from, persist: Persist::Later }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        bytes: Range<u64>,
        byte: u8,
    },
    Zeroes {
        bytes: Range<u64>,
        unmap: Unmap,
    },
    Read {
        bytes: Range<u64>,
    },
    Flush,
    Crash,
    /// Power fails in the recording after so many.
    FailIn {
        left: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || {
        let sectors = (0..DISK / 512, 1..40_u64);
        sectors.prop_map(|(first, count)| first * 512..((first + count) * 512).min(DISK))
    };
    let unmap = prop_oneof![Just(Unmap::May), Just(Unmap::Keep)];
    let step = prop_oneof![
        6 => (range(), 1..=255_u8).prop_map(|(bytes, byte)| Step::Write { bytes, byte }),
        3 => (range(), unmap).prop_map(|(bytes, unmap)| Step::Zeroes { bytes, unmap }),
        6 => range().prop_map(|bytes| Step::Read { bytes }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => (0..3_u32).prop_map(|left| Step::FailIn { left }),
    ];
    prop::collection::vec(step, 1..60)
}

fn at(bytes: &Range<u64>) -> Range<usize> {
    bytes.start as usize..bytes.end as usize
}

/// What the model has is what the disk has. None of a failed request's bytes are other than old or new.
fn check(by: By, steps: Vec<Step>) {
    let Some(mut rig) = Rig::new(by) else { return };
    let mut model = base_content();
    model.resize(DISK as usize, 0);
    for step in steps {
        let (bytes, byte, io) = match step {
            Step::Read { bytes } => {
                assert_eq!(rig.read(bytes.clone()), model[at(&bytes)], "{bytes:?}");
                continue;
            }
            Step::Flush => {
                rig.do_it(Io::Flush).result.unwrap();
                continue;
            }
            Step::Crash => {
                rig.reopen();
                continue;
            }
            Step::FailIn { left } => {
                rig.record.lock().left = Some(left);
                continue;
            }
            Step::Write { bytes, byte } => {
                (bytes.clone(), byte, write(bytes.start, bytes.end - bytes.start, byte))
            }
            Step::Zeroes { bytes, unmap } => {
                let (offset, length) = (bytes.start, bytes.end - bytes.start);
                (bytes, 0, Io::WriteZeroes { offset, bytes: length, unmap })
            }
        };
        match rig.do_it(io).result {
            Ok(()) => model[at(&bytes)].fill(byte),
            Err(_) => {
                rig.reopen();
                let has = rig.read(bytes.clone());
                let mut pairs = has.iter().zip(&model[at(&bytes)]);
                assert!(pairs.all(|(has, was)| has == was || *has == byte), "{bytes:?}");
                model[at(&bytes)].copy_from_slice(&has);
            }
        }
    }
    rig.reopen();
    assert!(rig.read(0..DISK) == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_image_over_a_base_is_a_disk_on_the_callers_thread(steps in steps()) {
        check(By::Caller, steps);
    }

    #[test]
    fn an_image_over_a_base_is_a_disk_on_threads(steps in steps()) {
        check(By::Threads, steps);
    }

    #[test]
    fn an_image_over_a_base_is_a_disk_by_io_uring(steps in steps()) {
        check(By::Uring, steps);
    }
}

#[test]
fn writes_into_one_unit_at_once_lose_nothing_of_each_other_or_of_the_base() {
    for mut rig in [By::Threads, By::Uring].into_iter().filter_map(Rig::new) {
        // Sectors of all units but every eighth, each as an order of its own.
        let mut model = base_content();
        model.resize(DISK as usize, 0);
        let sectors: Vec<u64> = (0..DISK / 512).filter(|sector| sector % 8 != 3).collect();
        for &sector in &sectors {
            assert!(rig.order(sector, write(sector * 512, 512, 0xee)).is_none());
            model[at(&(sector * 512..(sector + 1) * 512))].fill(0xee);
        }
        for _ in &sectors {
            rig.told.recv_timeout(Duration::from_secs(60)).unwrap().result.unwrap();
        }
        assert!(rig.read(0..DISK) == model);
        let record = rig.record.lock();
        assert_eq!(record.present.len() as u64, DISK.div_ceil(UNIT));
        assert!(record.reads <= 41, "each unit is read from the base once, not {} times", record.reads);
    }
}

#[test]
fn a_discard_reads_nothing_of_the_base_and_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let mut rig = Rig::new(By::Caller).unwrap();
    rig.do_it(Io::WriteZeroes { offset: 0, bytes: DISK, unmap: Unmap::May }).result.unwrap();
    assert_eq!(rig.record.lock().reads, 0);
    assert!(std::fs::metadata(path(&rig.directory)).unwrap().blocks() * 512 <= UNIT);
    assert!(rig.read(0..DISK).iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_present_is_told_and_only_there_a_hole_is_zeroes() {
    let directory = tempfile::tempdir().unwrap();
    File::create(path(&directory)).unwrap().set_len(DISK).unwrap();
    let record = Arc::default();
    let image = Arc::new(image(&directory, &record));
    assert_eq!(image.overlay().unwrap().present(), []);
    assert!(!image.is_hole(&(0..DISK)) && !image.is_hole(&(35 * UNIT..36 * UNIT)));
    let store = ImageStore::new(Arc::clone(&image), IoEngine::Threads);
    let mut queue = Box::new(store).start("disk", Completion::AtOnce).unwrap();
    for io in [write(UNIT - 512, 1024, 1), write(DISK - 512, 512, 1)] {
        queue.submit(IoOrder { tag: 0, io }).unwrap().result.unwrap();
    }
    record.lock().zeroes = 6 * UNIT..7 * UNIT;
    let zeroes = Io::WriteZeroes { offset: 6 * UNIT, bytes: UNIT, unmap: Unmap::May };
    queue.submit(IoOrder { tag: 0, io: zeroes }).unwrap().result.unwrap();
    let present = image.overlay().unwrap().present();
    assert_eq!(present, [0..2 * UNIT, 6 * UNIT..7 * UNIT, 40 * UNIT..DISK]);
    assert!(image.is_hole(&(6 * UNIT..7 * UNIT)) && !image.is_hole(&(6 * UNIT..8 * UNIT)));
}
