//! After storage has failed. What a flush that failed did not write, the kernel forgets: the next flush says nothing of
//! it, while reads still show it. So all that counts is read, and written again where it stands, before anything is
//! believed of it.

use super::flush::Flushing;
use super::recover::Walk;
use super::superblock::{Position, Superblock};
use super::{Health, Journal, JournalError};
use crate::medium::Medium;

impl<M: Medium> Journal<M> {
    /// Whether storage has not failed since it was opened, or mended.
    pub fn is_sound(&self) -> bool {
        self.health == Health::Sound
    }

    /// Makes it sound again: what it holds is there and durable then, also what was appended since the last seal. An
    /// error leaves it as it is; damage stays.
    pub fn mend(&mut self) -> Result<(), JournalError> {
        match (self.health, self.flushing) {
            (Health::Sound, _) => return Ok(()),
            (Health::Unknown, Flushing::UnderWay) => return Err(JournalError::Busy),
            (Health::Unknown, Flushing::Idle) => {}
        }
        self.write_again(self.tail)?;
        self.ring.medium.sync()?;
        // A slot may hold one that was not published: this one is newer.
        let Superblock { count, behind, .. } = Superblock::read(&self.ring.medium)?;
        // The record that failed may be there after all, and must not come back in the place of the next one.
        let (cut, session) = (self.tail, self.superblock.session.wrapping_add(1));
        let mut next = Superblock { count: count + 1, behind, cut, session, ..self.newest() };
        next.write(&self.ring.medium)?;
        self.superblock = next;
        self.releasing = None;
        self.durable = self.sealed.0;
        self.health = Health::Sound;
        Ok(())
    }

    /// Writes again both slots, and what stands from the head on to here. The same bytes: nothing is torn by it.
    pub(super) fn write_again(&self, end: Position) -> Result<(), JournalError> {
        Superblock::write_again(&self.ring.medium)?;
        let mut walk = Walk { ring: &self.ring, superblock: &self.superblock, at: self.superblock.head };
        while walk.at.at < end.at {
            let begin = walk.at.at;
            if walk.step()?.is_none() {
                return Err(walk.damage());
            }
            let mut bytes = vec![0; (walk.at.at - begin) as usize];
            self.ring.read(begin, &mut bytes)?;
            self.ring.write(begin, &bytes)?;
        }
        if walk.at == end { Ok(()) } else { Err(walk.damage()) }
    }
}
