//! An epoch while it is being received: its pages and state are decoded aside.

use super::ReceiveError;
use crate::backlog::{Pages, SealedCheckpoint, ZERO_SLOT};
use crate::digest::Chain;
use crate::image::Image;
use crate::page::{Encoding, Page, PageError, Record, ZERO_PAGE};
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
            match bases.iter().find_map(|checkpoint| checkpoint.find(index)) {
                Some(Some(base)) => content.copy_from_slice(base),
                Some(None) => content.fill(0),
                None => image.read(index, content),
            }
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
