//! Writing a recording.

use super::section::{Kind, Sections};
use super::{About, End, MAGIC, RecordingError, VERSION, each_page, fold};
use crate::page::PageCodec;
use ft_ram::RamView;
use ft_vm::replay::log::{LogError, batch_bytes};
use serde::Serialize;
use std::io::Write;

/// Page records are written in sections of about this size.
const PAGES_BYTES: usize = 1 << 20;

/// Writes a recording as the machine runs.
pub struct Writer<W: Write> {
    sections: Sections<W>,
}

impl<W: Write> Writer<W> {
    /// Writes everything up to where the log begins: what the machine is, and the paused machine's state and memory.
    /// `nonce` tells this recording from others.
    pub fn begin(
        mut out: W,
        nonce: u32,
        about: &About,
        state: &[u8],
        ram: &RamView,
    ) -> Result<Self, RecordingError> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        let mut sections = Sections::new(out, nonce);
        sections.put(Kind::About, &encode("description", about)?)?;
        sections.put(Kind::State, state)?;
        let (mut codec, mut records, mut digest) = (PageCodec::new(), Vec::new(), fold(0, state));
        each_page(ram, |index, page| {
            codec.encode(index, page, None, &mut records);
            if records.len() >= PAGES_BYTES {
                digest = fold(digest, &records);
                sections.put(Kind::Pages, &records)?;
                records.clear();
            }
            Ok::<_, RecordingError>(())
        })?;
        if !records.is_empty() {
            digest = fold(digest, &records);
            sections.put(Kind::Pages, &records)?;
        }
        sections.put(Kind::Begin, &digest.to_le_bytes())?;
        sections.out.flush()?;
        Ok(Self { sections })
    }

    /// Adds what a cut of the machine's log gave: whole batches. They are handed to the system before this returns.
    pub fn log(&mut self, mut batches: &[u8]) -> Result<(), RecordingError> {
        while !batches.is_empty() {
            let truncated = LogError::Truncated { offset: 0, have: batches.len() };
            let length = batch_bytes(batches)?.ok_or(truncated.clone())?;
            let (batch, rest) = batches.split_at_checked(length).ok_or(truncated)?;
            self.sections.put(Kind::Log, batch)?;
            batches = rest;
        }
        Ok(self.sections.out.flush()?)
    }

    /// Says that nothing is missing, and gives the output back.
    pub fn end(mut self, end: &End) -> Result<W, RecordingError> {
        self.sections.put(Kind::End, &encode("end", end)?)?;
        self.sections.out.flush()?;
        Ok(self.sections.out)
    }

    /// What is written to.
    pub fn get_ref(&self) -> &W {
        &self.sections.out
    }
}

fn encode(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, RecordingError> {
    postcard::to_stdvec(value).map_err(|e| RecordingError::Malformed { offset: 0, what, why: e.to_string() })
}
