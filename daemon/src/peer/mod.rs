//! Connections to the peer: who may knock (`port`) and who may connect (`handshake`), how messages are written (`link`,
//! `outbox`) and read (`backup_reader`), how many may wait (`intake`), how the peer is known to live (`pulse`, which
//! finds its link by `rendezvous`), how a death is noticed early (`lifeline`), and what lies between the two hosts
//! (`survey`).

mod backup_reader;
mod error;
mod handshake;
mod intake;
mod lifeline;
mod link;
mod news;
mod outbox;
mod port;
mod pulse;
mod rendezvous;
mod stream;
mod survey;

pub use backup_reader::BackupReader;
pub use error::{HandshakeError, LinkEnd, LinkError};
pub use handshake::{ConnIds, Dialler, Local, TellContents, TellLack, listen};
pub use intake::{Intake, Ticket};
pub use lifeline::{COMMAND as LIFELINE_COMMAND, run as run_lifeline};
pub use link::{Bulk, Link, PeerOutbox};
pub use news::{FromBackup, OfDisks, PeerNews};
pub use outbox::Closed;
pub use port::{Listen, PeerPlace, Port};
pub use pulse::{Beat, LinkSide, Outgoing};
pub use stream::{Fitting, PeerReader};
pub use survey::{HostGap, NotCompared, compare};
