//! The disk engine on a real FUSE file system that transfers less than it is asked for.

use ft_disk::{Access, Buffer, Completion, Finish, ImageStore, Io, IoDone, IoEngine, IoOrder, IoQueue};
use ft_disk::{Persist, RawImage, Store};
use nix::mount::{MntFlags, umount2};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const OFFSET: u64 = 4096;

/// A file, and in its place a disk that misbehaves.
struct ShortDisk {
    _directory: tempfile::TempDir,
    image: PathBuf,
    /// The file under the disk.
    file: File,
    process: Child,
}

impl ShortDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (image, mood) = (directory.path().join("image"), directory.path().join("mood"));
        fs::write(&mood, "short").unwrap();
        File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let file = File::open(&image).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ft-bad-disk"));
        let mut process = command.arg("--mood").arg(mood).arg(&image).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Self { _directory: directory, image, file, process }
    }
}

impl Drop for ShortDisk {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = umount2(&self.image, MntFlags::MNT_DETACH);
    }
}

struct Told(Sender<Vec<IoDone>>);

impl Finish for Told {
    fn finish(&self, done: &mut Vec<IoDone>) {
        let _ = self.0.send(std::mem::take(done));
    }
}

fn do_it(queue: &mut dyn IoQueue, told: &Receiver<Vec<IoDone>>, io: Io) -> Io {
    assert!(queue.submit(IoOrder { tag: 1, io }).is_none());
    let done = told.recv_timeout(SOON).unwrap().pop().unwrap();
    done.result.unwrap();
    done.io
}

#[test]
fn an_image_on_fuse_holds_what_was_written_however_short_the_transfers() {
    const NAME: &str = "an_image_on_fuse_holds_what_was_written_however_short_the_transfers";
    if !nix::unistd::Uid::effective().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED {NAME}: needs root and /dev/fuse");
        return;
    }
    let disk = ShortDisk::new();
    for engine in [IoEngine::Auto, IoEngine::Threads] {
        let (sender, told) = channel();
        let image = RawImage::open(&disk.image, Access::Writable).unwrap();
        let store = Box::new(ImageStore::new(image, engine));
        let mut queue = store.start("short", Completion::By(Arc::new(Told(sender)))).unwrap();
        for bytes in [1 << 10, 4 << 10, 60 << 10, 256 << 10, 1 << 20] {
            let mut from = Buffer::zeroed(bytes);
            // No two sectors are the same.
            for (number, sector) in from.chunks_mut(512).enumerate() {
                sector.fill(number as u8);
                sector[..8].copy_from_slice(&(number * bytes).to_le_bytes());
            }
            let written = from.to_vec();
            do_it(queue.as_mut(), &told, Io::Write { offset: OFFSET, from, persist: Persist::Later });
            let mut held = vec![0; bytes];
            disk.file.read_exact_at(&mut held, OFFSET).unwrap();
            assert!(held == written, "{engine:?}: {bytes} bytes were written wrongly");
            let into = Buffer::zeroed(bytes);
            let done = do_it(queue.as_mut(), &told, Io::Read { offset: OFFSET, into });
            let Io::Read { into, .. } = done else { panic!("another request came back") };
            assert!(into[..] == written, "{engine:?}: {bytes} bytes were read wrongly");
        }
    }
}
