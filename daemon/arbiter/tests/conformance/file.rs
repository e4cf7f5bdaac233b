//! The back end "file" on a directory of this host.

use crate::suite::Site;
use ft_arbiter::{Arbiter, FileArbiter};
use std::fs;
use std::path::PathBuf;

/// A directory that all nodes share.
pub struct Shared(tempfile::TempDir);

impl Shared {
    pub fn new(_claim: &str) -> Option<Self> {
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn cell(&self) -> PathBuf {
        self.0.path().join("web.cell")
    }
}

impl Site for Shared {
    fn connect(&self) -> Box<dyn Arbiter> {
        Box::new(FileArbiter::new(&self.cell(), "web"))
    }

    fn damage(&self) {
        let newest = fs::read_dir(self.cell()).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
        let whole = fs::read(&newest).unwrap();
        fs::write(newest, &whole[..whole.len() / 2]).unwrap();
    }
}
