//! An epoch while it is being received: its pages and state are decoded aside.

use super::ReceiveError;
use crate::backlog::{Pages, SealedCheckpoint, ZERO_SLOT};
use crate::digest::Chain;
use crate::image::Image;
use crate::page::{Encoding, Page, PageError, Record, ZERO_PAGE};
use crate::scrub::Sample;
use crate::wire::message::EpochBegin;
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;
use std::sync::Arc;

/// An epoch being received.
pub(super) struct Incoming {
    pub(super) epoch: u64,
    pub(super) begin: EpochBegin,
    pub(super) chain: Chain,
    /// Pages so far, those that did not change included.
    pub(super) count: usize,
    /// The lowest page that may come next. Wider than a page's number, for what follows the last one.
    pub(super) next_page: u64,
    pub(super) pages: Pages,
    pub(super) state: Vec<u8>,
    pub(super) state_blocks: usize,
}

pub(super) fn no_base(epoch: u64, record: &Record<'_>) -> ReceiveError {
    let source = PageError::NoBase { page: record.page, encoding: record.encoding };
    ReceiveError::Page { epoch, source }
}

/// Reads a page as of the last sealed checkpoint.
fn read_sealed(page: PageIndex, image: &Image, bases: &[Arc<SealedCheckpoint>], into: &mut Page) {
    match bases.iter().find_map(|checkpoint| checkpoint.find(page)) {
        Some(Some(base)) => into.copy_from_slice(base),
        Some(None) => into.fill(0),
        None => image.read(page, into),
    }
}

impl Incoming {
    pub(super) fn page(
        &mut self,
        record: &Record<'_>,
        image: &Image,
        bases: &[Arc<SealedCheckpoint>],
    ) -> Result<(), ReceiveError> {
        let index = record.page;
        if record.encoding == Encoding::Zero {
            self.chain.page(index, &ZERO_PAGE);
            self.pages.index.push(index);
            self.pages.slot.push(ZERO_SLOT);
            return Ok(());
        }
        let slot = self.pages.arena.len() as u32;
        let content = self.pages.arena.push()?;
        if record.needs_base() {
            read_sealed(index, image, bases, content);
        }
        record.decode(content).map_err(|source| ReceiveError::Page { epoch: self.epoch, source })?;
        self.chain.page(index, content);
        if record.encoding == Encoding::Same {
            self.pages.arena.pop();
        } else {
            self.pages.index.push(index);
            self.pages.slot.push(slot);
        }
        Ok(())
    }

    /// Compares pages as of this epoch, which is decoded whole, with the primary's.
    pub(super) fn compare(
        &self,
        samples: &[Sample],
        image: &Image,
        bases: &[Arc<SealedCheckpoint>],
    ) -> Result<(), ReceiveError> {
        let epoch = self.epoch;
        let pages = image.view().pages();
        let mut content = ZERO_PAGE;
        for &Sample { page, hash: stated } in samples {
            if page >= pages {
                return Err(ReceiveError::PageIndex { epoch, page, pages });
            }
            match self.pages.find(page) {
                Some(Some(decoded)) => content.copy_from_slice(decoded),
                Some(None) => content.fill(0),
                None => read_sealed(page, image, bases, &mut content),
            }
            let computed = Sample::of(page, &content).hash;
            if computed != stated {
                return Err(ReceiveError::Scrub { epoch, page, computed, stated });
            }
        }
        Ok(())
    }

    /// A block of a page's size of the state; the last one is padded with zeros.
    pub(super) fn state_block(&mut self, record: &Record<'_>, last: &[u8]) -> Result<(), ReceiveError> {
        let epoch = self.epoch;
        let announced = self.begin.state_bytes as usize;
        let at = self.state_blocks * PAGE_SIZE;
        if record.page as usize != self.state_blocks || at >= announced {
            let pages = announced.div_ceil(PAGE_SIZE) as PageIndex;
            return Err(ReceiveError::PageIndex { epoch, page: record.page, pages });
        }
        let mut block: Page = ZERO_PAGE;
        if record.needs_base() {
            let base =
                last.get(at..).filter(|base| !base.is_empty()).ok_or_else(|| no_base(epoch, record))?;
            let length = base.len().min(PAGE_SIZE);
            block[..length].copy_from_slice(&base[..length]);
        }
        record.decode(&mut block).map_err(|source| ReceiveError::Page { epoch, source })?;
        let length = (announced - at).min(PAGE_SIZE);
        self.state.extend_from_slice(&block[..length]);
        self.state_blocks += 1;
        Ok(())
    }

    pub(super) fn miscounted(&self, what: &'static str, received: usize, announced: u32) -> ReceiveError {
        ReceiveError::Count { epoch: self.epoch, what, received, announced: announced as usize }
    }
}
