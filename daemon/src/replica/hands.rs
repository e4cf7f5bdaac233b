//! The executor's hands: the verbs of a node. The daemon's hands (`real`) do them with threads, sockets and a machine;
//! the simulator's hands model these. The executor decides which verb comes when, and which is undone when one fails.
//!
//! A verb returns when its work is done, unless it says that news follow. The news comes in as events.

use crate::peer::Outgoing;
use crate::role::{ConnId, Done, Micros, NodeRecord, PairingStart, RequestId, RequestRefusal, Saved, View};
use ft_arbiter::{Cell, CellId};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::Position;
use ft_netbuf::OutputBuffer;

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Nothing more is read or written.
    Now,
    /// What is queued (a good-bye) is written first.
    AfterQueued,
}

/// What becomes of a question whether the VM can go on from what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// It can: it was verified as it was sealed.
    Done,
    /// `Verified`, `LoadFailed` or `StateLost` follows.
    Follows,
}

/// See the module.
pub trait Hands {
    /// Why something could not be done.
    type Error: std::error::Error;

    /// This node's clock, which goes on while the host is suspended.
    fn now_us(&self) -> Micros;
    /// Output commit.
    fn output(&self) -> &OutputBuffer;
    /// Shows others what the core says of itself.
    fn show(&mut self, view: View);

    /// Reads the cell; `CellRead` follows.
    fn read_cell(&mut self);
    /// Reads the cell and proves that it could be set; `CellRead` follows.
    fn probe_cell(&mut self);
    /// Makes this durable on this host, in the place of what was recorded before. Where that
    /// fails or takes too long, `Recorded` follows once it is durable.
    fn record(&mut self, record: NodeRecord) -> Result<(), Self::Error>;
    /// Sets the cell if it has this generation; `CellSet` follows.
    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell);
    /// Waits no longer for the call on the arbiter that is under way: `CellRead` or `CellSet` follows, as of one whose
    /// answer is lost, unless it has just been answered or too many calls hang already.
    fn leave_arbiter(&mut self);

    /// Dials the peer until a connection is welcomed.
    fn dial(&mut self);
    /// Dials no more. A connection that is welcomed at this moment still arrives.
    fn stop_dialling(&mut self);
    /// Declines an arriving connection.
    fn refuse(&mut self, conn: ConnId, why: String);
    /// Closes an arriving connection, unless it was welcomed, followed or refused.
    fn turn_away(&mut self, conn: ConnId);
    /// Primary: welcomes an arriving connection; what the backup says on it comes in as events.
    fn welcome(
        &mut self,
        conn: ConnId,
        pairing: u64,
        generation: u64,
        how: PairingStart,
    ) -> Result<(), Self::Error>;
    /// Backup: receives what an arriving connection brings, into what is held or prepared.
    fn follow(&mut self, conn: ConnId, pairing: u64, how: PairingStart) -> Result<(), Self::Error>;
    /// Has the link's pulse say this next, if it is still there.
    fn beat(&mut self, conn: ConnId, outgoing: Outgoing);
    /// Says this on a connection, if it is still there.
    fn send(&mut self, conn: ConnId, message: Message<'static>);
    /// Ends a connection; false if there is none.
    fn close(&mut self, conn: ConnId, closing: Closing) -> bool;

    /// Primary: boots the guest on a fresh machine.
    fn boot(&mut self) -> Result<(), Self::Error>;
    /// Primary: presses the guest's power button, if it runs.
    fn press_power_button(&mut self);
    /// Ends the machine, whatever it does.
    fn stop_vm(&mut self);
    /// Primary: a full copy, then checkpoints, under this pairing.
    fn begin_pairing(&mut self, conn: ConnId, pairing: u64);
    /// Primary: sends again what the backup, back on this connection, does not hold beyond this epoch.
    fn resume_pairing(&mut self, conn: ConnId, held: u64) -> Result<(), Self::Error>;
    /// Primary: if the pairing goes over this connection, it has none for now; what is owed is kept.
    fn unlink_pairing(&mut self, conn: ConnId);
    /// Primary: no more checkpoints; what is owed is forgotten.
    fn end_pairing(&mut self);
    /// Primary: the backup has sealed everything up to this epoch.
    fn acked(&mut self, conn: ConnId, epoch: u64, stamp: Micros) -> Result<(), Self::Error>;
    /// Primary: a last checkpoint, after which the guest stands still; `FinalCaptured` follows.
    fn freeze(&mut self);
    /// Primary: the guest goes on after all.
    fn thaw(&mut self);

    /// Backup: fresh memory for a full copy. What was held is given up.
    fn prepare(&mut self) -> Result<(), Self::Error>;
    /// Backup in replay mode: how far the log is executed.
    fn position(&self) -> Option<Position>;
    /// Backup: looks whether the VM can go on from what is held at this epoch.
    fn verify(&mut self, epoch: u64) -> Verification;
    /// Backup: has the machine take what is held at this epoch, all but the run. The primary sends no further epoch.
    fn load(&mut self, epoch: u64) -> Verification;
    /// Backup: tries whether the VM could go on from what is held; `Rehearsed` or `RehearsalFailed` follows.
    fn rehearse(&mut self, epoch: u64);
    /// Backup: has a fresh machine stand ready over the memory that is held. Where there is none, the take-over makes
    /// one.
    fn renew(&mut self);
    /// Backup: no connection reaches what is held any more; sending goes on.
    fn stop_receiving(&mut self);
    /// Backup: takes what is held out of the receiver, if it is at least this epoch, to go on from it. What was taken
    /// out before is taken again.
    fn seal_off(&mut self, epoch: u64) -> Result<(), Self::Error>;
    /// Backup: the VM goes on from what was sealed off. After an error that is still there, for the next attempt, which
    /// is made on a fresh machine.
    fn resume_vm(&mut self) -> Result<(), Self::Error>;
    /// Heir: has what was sealed off written to disk, unless the VM goes on before it is; `ImageSaved` or
    /// `ImageUnsaved` follows.
    fn save_image(&mut self, saved: Saved);
    /// Heir: has this image on disk read into fresh memory, to be gone on from as what was sealed off; `ImageRead` or
    /// `ImageUnread` follows.
    fn read_image(&mut self, saved: Saved);
    /// Has it looked what is on disk; `ImageFound` follows.
    fn find_image(&mut self, cell: CellId);
    /// No image of this cell below this generation is on disk from now on, nor comes there.
    fn drop_image(&mut self, cell: CellId, below: u64);
    /// Tells the network that the VM is here now.
    fn announce(&mut self, generation: u64);
    /// Backup: gives up what is held.
    fn discard(&mut self);

    /// Tells the operator what became of a request.
    fn answer(&mut self, request: RequestId, outcome: Result<Done, RequestRefusal>);
}
