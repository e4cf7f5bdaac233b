//! ft-bad-disk: puts a disk that misbehaves in the place of an image, until it is told to end (SIGTERM) or is killed.

use anyhow::Context;
use clap::Parser;
use ft_tests::bad_disk::{BadDisk, Cache};
use fuser::{Config, MountOption};
use std::fs::OpenOptions;
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "ft-bad-disk", version, about)]
struct Cli {
    /// The file that says how the disk is: fine, slow MS, fails, fails-to-write, fails-to-sync, full, short or lies
    #[arg(long)]
    mood: PathBuf,
    /// Have a cache that forgets what was not flushed when this process is killed; the seed chooses what stays in it
    #[arg(long)]
    forgets: Option<u64>,
    /// The image; what others open under its name from now on is the disk
    image: PathBuf,
}

/// Requests at a time.
const THREADS: usize = 8;

fn main() -> anyhow::Result<()> {
    let Cli { mood, forgets, image } = Cli::parse();
    let name = || image.display().to_string();
    let file = OpenOptions::new().read(true).write(true).open(&image).with_context(name)?;
    let disk = BadDisk::new(file, mood, forgets.map(Cache::new)).with_context(name)?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("ft-bad-disk".into())];
    config.n_threads = Some(THREADS);
    let session = fuser::Session::new(disk, &image, &config).with_context(name)?;
    println!("ready");
    session.run().with_context(name)
}
