//! 4 KiB random writes a second: by plain pwrite, and by the engines with one and with 32 under way.

use ft_disk::{
    Access, Buffer, Completion, Finish, ImageStore, Io, IoDone, IoEngine, IoOrder, Persist, RawImage, Store,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const BYTES: u64 = 256 << 20;
const ROUND: Duration = Duration::from_secs(3);

struct Told(Sender<()>);

impl Finish for Told {
    fn finish(&self, done: &mut Vec<IoDone>) {
        for done in done.drain(..) {
            done.result.expect("the write goes well");
            let _ = self.0.send(());
        }
    }
}

fn offsets() -> impl Iterator<Item = u64> {
    (0u64..).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (BYTES / 4096) * 4096)
}

fn say(name: &str, writes: u64, begun: Instant) {
    println!("{name:32} {:9.0} writes/s", writes as f64 / begun.elapsed().as_secs_f64());
}

fn plain(path: &Path, name: &str, flags: i32) {
    let Ok(file) = OpenOptions::new().write(true).custom_flags(flags).open(path) else {
        return println!("{name:32} not on this file system");
    };
    let (data, begun) = (Buffer::zeroed(4096), Instant::now());
    let mut writes = 0;
    for offset in offsets().take_while(|_| begun.elapsed() < ROUND) {
        file.write_all_at(&data, offset).expect("the write goes well");
        writes += 1;
    }
    say(name, writes, begun);
}

fn with_engine(path: &Path, engine: IoEngine, depth: u64) {
    let name = format!("{engine:?}, {depth} under way");
    let image = RawImage::open(path, Access::Writable).expect("the image opens");
    let caching = image.caching();
    let (sender, told) = channel();
    let store = Box::new(ImageStore::new(image, engine));
    let Ok(mut queue) = store.start("disk", Completion::By(Arc::new(Told(sender)))) else {
        return println!("{name:32} refused by this kernel");
    };
    let begun = Instant::now();
    let (mut ordered, mut finished) = (0, 0);
    for offset in offsets().take_while(|_| begun.elapsed() < ROUND) {
        let io = Io::Write { offset, from: Buffer::zeroed(4096), persist: Persist::Later };
        assert!(queue.submit(IoOrder { tag: ordered, io }).is_none());
        ordered += 1;
        if ordered - finished == depth {
            told.recv().expect("the engine lives");
            finished += 1;
        }
    }
    for _ in finished..ordered {
        told.recv().expect("the engine lives");
    }
    say(&format!("{name} ({caching:?})"), ordered, begun);
}

fn main() {
    let directory = tempfile::tempdir_in(".").expect("a directory");
    let path = directory.path().join("image");
    let image = File::create(&path).expect("an image");
    (0..BYTES >> 20).for_each(|at| image.write_all_at(&[1; 1 << 20], at << 20).expect("room for the image"));
    image.sync_all().expect("room for the image");
    plain(&path, "pwrite, cached", 0);
    image.sync_all().expect("room for the image");
    plain(&path, "pwrite, O_DIRECT", libc::O_DIRECT);
    for engine in [IoEngine::Uring, IoEngine::Threads] {
        for depth in [1, 32] {
            with_engine(&path, engine, depth);
        }
    }
}
