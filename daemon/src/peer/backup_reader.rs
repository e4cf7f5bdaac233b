//! The primary's reader: takes the messages of a backup.

use super::error::{LinkEnd, LinkError};
use super::intake::Intake;
use super::news::{FromBackup, OfDisks, PeerNews};
use super::stream::PeerReader;
use crate::outlet::Outlet;
use crate::role::ConnId;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Mode};
use std::sync::Arc;

/// See the module.
pub struct BackupReader {
    /// The connection.
    pub conn: ConnId,
    /// What the pair does: some messages belong to one mode only.
    pub mode: Mode,
    /// Where what it says goes.
    pub news: Outlet<PeerNews>,
}

impl BackupReader {
    /// Reads until the connection ends or is stopped.
    pub fn read(self, mut reader: PeerReader, intake: &Arc<Intake>) -> Option<LinkEnd> {
        let Self { conn, mode, news } = self;
        loop {
            let said = match reader.read().and_then(|frame| Message::decode(&frame).map(|m| said(m, mode))) {
                _ if intake.is_stopped() => return None,
                Ok(Ok(said)) => said,
                Ok(Err(ending)) => return Some(ending),
                Err(e) => return Some(LinkEnd::Lost(e.into())),
            };
            let ticket = intake.enter()?;
            news.tell(PeerNews::FromBackup { conn, said, ticket }).ok()?;
        }
    }
}

/// What a message says that a backup may send, or how the connection ends because of it.
fn said(message: Message<'_>, mode: Mode) -> Result<FromBackup, LinkEnd> {
    Ok(match message {
        Message::Ack(Ack { epoch, stamp_us }) => FromBackup::Ack { epoch, stamp: stamp_us },
        Message::Standing(standing) => FromBackup::Standing(standing),
        Message::TookOver { generation } => FromBackup::TookOver { generation },
        Message::Decline { text } => FromBackup::Declined { why: text },
        Message::Position(position) if mode == Mode::Replay => FromBackup::Position(position),
        Message::Diverged(diverged) if mode == Mode::Replay => FromBackup::Diverged(diverged),
        Message::Network(network) => FromBackup::Network(network),
        Message::DiskMap(part) => FromBackup::OfDisks(OfDisks::Map(part)),
        Message::Compared(compared) => FromBackup::OfDisks(OfDisks::Compared(compared)),
        Message::Settled(settled) => FromBackup::OfDisks(OfDisks::Settled(settled)),
        Message::PageHashes(said) => FromBackup::Kept(said),
        #[cfg(feature = "next-version")]
        Message::Build { text } => FromBackup::Build(text),
        Message::Bye(bye) => return Err(LinkEnd::Bye(bye.text)),
        // It was welcomed, and cannot follow after all.
        Message::Refuse(refuse) => return Err(LinkEnd::Bye(refuse.text)),
        _ => return Err(LinkEnd::Lost(LinkError::OutOfRole)),
    })
}
