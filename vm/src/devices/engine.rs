//! What a deterministic engine does with its devices, on its thread.

use super::Devices;
use super::inbox::Inbox;
use super::virtio::block::Shown;
use super::virtio::net::Put;

impl Devices {
    /// Puts a frame into the receive queue of one of the guest's cards; for the engine's thread.
    pub(crate) fn receive(&self, card: u8, frame: &[u8]) -> Put {
        self.cards.get(usize::from(card)).map_or(Put::Lost, |card| card.put(frame))
    }

    /// Whether a card tells the guest of a link; none without the card.
    pub(crate) fn has_link(&self, card: u8) -> Option<bool> {
        self.cards.get(usize::from(card)).map(|card| card.has_link())
    }

    /// Takes what disks have finished, without showing it to the guest, and orders what had to wait for it. For the
    /// engine's thread, as are the three below.
    pub(crate) fn take_finished(&self, inbox: &Inbox) {
        while let Some((disk, done)) = inbox.take_finished() {
            if let Some(disk) = self.disks.get(disk) {
                disk.take_finished(done);
            }
        }
        self.go_on_unseen();
    }

    /// Orders of the disks what can be ordered.
    pub(crate) fn go_on_unseen(&self) {
        self.disks.iter().for_each(|disk| disk.go_on_unseen());
    }

    /// Whether the guest is to stand still until a disk has done more of what resets have forgotten.
    pub(crate) fn are_disks_crowded(&self) -> bool {
        self.disks.iter().any(|disk| disk.is_crowded())
    }

    /// Whether the disks that can be written have done, and shown, all that the guest has asked of them.
    pub(crate) fn are_disks_at_rest(&self) -> bool {
        self.disks.iter().all(|disk| disk.is_at_rest())
    }

    /// A request that is finished and was not shown to the guest: the disk, the head of its chain, and whether it went
    /// well.
    pub(crate) fn next_finished(&self) -> Option<(u8, u16, bool)> {
        // A machine has few disks.
        (0u8..).zip(&self.disks).find_map(|(index, disk)| {
            let (head, well) = disk.next_finished()?;
            Some((index, head, well))
        })
    }

    /// Shows the guest that a request is done, well or not.
    pub(crate) fn show_request(&self, disk: usize, head: u16, well: bool) -> Shown {
        self.disks.get(disk).map_or(Shown::Never, |disk| disk.show(head, well))
    }

    /// Types into the guest's console at once; how many bytes its FIFO had room for. For the engine's thread.
    pub(crate) fn type_in(&self, bytes: &[u8]) -> usize {
        self.com1.lock().type_in(bytes)
    }

    /// How many bytes [`Self::type_in`] would take now.
    pub(crate) fn console_room(&self) -> usize {
        self.com1.lock().room()
    }

    /// Whether a virtio device has signalled since the last call. For the engine that waits in the guest's place.
    pub(crate) fn take_signal(&self) -> bool {
        self.idle.take_signal()
    }

    /// Puts back what [`Self::take_signal`] took, as a state that is taken over has it.
    pub(crate) fn set_signal(&self, signalled: bool) {
        self.idle.set_signal(signalled);
    }
}
