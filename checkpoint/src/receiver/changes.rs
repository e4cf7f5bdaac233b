//! Changes of disks ahead of the epoch that they are a part of. They are handed on as they come; here they are counted
//! into the digest that seals the epoch.

use super::{Holding, ReceiveError, Received, Receiver};
use crate::digest::Changes;
use crate::wire::Frame;
use crate::wire::disk::EXTENT_BYTES;
use crate::wire::message::{Compare, DiskMap, Mode};
use ft_mirror::{Change, Extent};

/// Changes come in sectors.
const SECTOR_BYTES: u64 = 512;

/// What has come since the last seal, or since a copy began.
#[derive(Default)]
pub(super) struct IncomingChanges {
    /// The epoch that they belong to, once one says so: those of a copy belong to none.
    epoch: Option<u64>,
    digest: Changes,
}

impl IncomingChanges {
    /// The epoch begins that they are a part of.
    pub(super) fn belong_to(&self, epoch: u64) -> Result<(), ReceiveError> {
        match self.epoch {
            Some(theirs) if theirs != epoch => Err(ReceiveError::Epoch { theirs: epoch, ours: theirs }),
            _ => Ok(()),
        }
    }

    pub(super) fn digest(&self) -> Changes {
        self.digest
    }
}

impl Receiver {
    /// A change of a disk.
    pub(super) fn change<'f>(
        &mut self,
        frame: &Frame<'f>,
        change: Change<'f>,
    ) -> Result<Received<'f>, ReceiveError> {
        let (kind, theirs) = (frame.kind, frame.epoch);
        let unexpected = |when| Err(ReceiveError::Unexpected { kind, when });
        let due = match &self.holding {
            Holding::Nothing => return unexpected("without a copy"),
            // A copy's changes are of no epoch, those after it of the first one, whichever that is.
            Holding::Copy(_) => self.incoming_changes.epoch.unwrap_or(theirs),
            // The machine here makes them itself.
            Holding::Sealed(_) if self.mode == Mode::Replay => {
                return unexpected("behind a copy in replay mode");
            }
            Holding::Sealed(sealed) => sealed.epoch.saturating_add(1),
        };
        if theirs != due {
            return Err(ReceiveError::Epoch { theirs, ours: due });
        }
        self.check_extent(theirs, change.extent())?;
        self.incoming_changes.epoch = Some(theirs).filter(|epoch| *epoch != 0);
        self.incoming_changes.digest.add(frame.payload);
        Ok(Received::Change(change))
    }

    /// An extent of a disk is to be compared.
    pub(super) fn compare(
        &self,
        frame: &Frame<'_>,
        compare: Compare,
    ) -> Result<Received<'static>, ReceiveError> {
        let (kind, theirs) = (frame.kind, frame.epoch);
        match &self.holding {
            Holding::Nothing => return Err(ReceiveError::Unexpected { kind, when: "without a copy" }),
            Holding::Copy(_) => {}
            Holding::Sealed(_) if self.mode == Mode::Replay => {
                return Err(ReceiveError::Unexpected { kind, when: "behind a copy in replay mode" });
            }
            // In its place among the changes of the epoch that is sealed next.
            Holding::Sealed(sealed) => {
                let due = sealed.epoch.saturating_add(1);
                if theirs != due {
                    return Err(ReceiveError::Epoch { theirs, ours: due });
                }
            }
        }
        let start = u64::from(compare.extent) * EXTENT_BYTES;
        self.check_extent(frame.epoch, Extent { disk: compare.disk, bytes: start..start + SECTOR_BYTES })?;
        Ok(Received::Compare(compare))
    }

    /// What may differ of a disk, as the primary's map has it.
    pub(super) fn disk_map(
        &self,
        frame: &Frame<'_>,
        map: DiskMap,
    ) -> Result<Received<'static>, ReceiveError> {
        self.check_copy(frame)?;
        let start = u64::from(map.at) * EXTENT_BYTES;
        self.check_extent(frame.epoch, Extent { disk: map.disk, bytes: start..start + SECTOR_BYTES })?;
        Ok(Received::DiskMap(map))
    }

    fn check_copy(&self, frame: &Frame<'_>) -> Result<(), ReceiveError> {
        match self.holding {
            Holding::Copy(_) => Ok(()),
            _ => Err(ReceiveError::Unexpected { kind: frame.kind, when: "outside a copy" }),
        }
    }

    fn check_extent(&self, epoch: u64, extent: Extent) -> Result<(), ReceiveError> {
        let bytes = &extent.bytes;
        let whole = |at: u64| at.is_multiple_of(SECTOR_BYTES);
        let what = match self.disks.get(usize::from(extent.disk)) {
            None => "of which there is none",
            Some(0) => "which is read only",
            Some(size) if bytes.end > *size => "beyond its end",
            Some(_) if bytes.is_empty() || !whole(bytes.start) || !whole(bytes.end) => "not in whole sectors",
            Some(_) => return Ok(()),
        };
        Err(ReceiveError::Change { epoch, extent, what })
    }
}
