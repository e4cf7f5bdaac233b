//! The link to the peer after the handshake: the stream, with a writer thread that drains its outbox; the pulse beside
//! it; and a way to shut both down at once. The stream's reader thread runs the caller's code, since the caller knows
//! which messages come in.

use super::error::{LinkEnd, LinkError};
use super::intake::Intake;
use super::lifeline::Lifeline;
use super::news::PeerNews;
use super::outbox::{Item, Outbox};
use super::pulse::{LinkSide, Outgoing, Pulse};
use super::stream::{Fitting, PeerReader, PeerWriter};
use crate::observe::Meter;
use crate::outlet::Outlet;
use crate::role::ConnId;
use ft_checkpoint::encoder::EncodedCheckpoint;
use ft_checkpoint::wire::handshake::Agreed;
use ft_checkpoint::wire::{FrameError, FrameType, Message, SharedPayload, WireSink};
use ft_confine::ThreadKind;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// A piece of a checkpoint, or a whole one that goes out again.
pub enum Bulk {
    /// One frame's content, which the pairing keeps as well.
    Frame(FrameType, u64, SharedPayload),
    /// Everything of an owed checkpoint.
    Again(Arc<EncodedCheckpoint>),
}

/// The outbox of a connection to a peer.
pub type PeerOutbox = Outbox<Message<'static>, Bulk>;

/// Bytes of a checkpoint that may wait in front of the socket. Encoding overlaps with sending by as much.
const BULK_BYTES_MAX: usize = 4 << 20;

/// A stream and its pulse.
pub struct Link {
    /// What is to be written.
    pub outbox: Arc<PeerOutbox>,
    /// Bytes written, headers included.
    pub written: Arc<AtomicU64>,
    /// The versions in which the two talk.
    pub agreed: Agreed,
    stream: TcpStream,
    intake: Arc<Intake>,
    reader: Option<JoinHandle<()>>,
    pulse: Arc<Pulse>,
    _lifeline: Option<Lifeline>,
}

impl Link {
    /// Starts the threads of a connection that has shaken hands: the writer, and a reader that runs `read`, which tells
    /// what comes in, each with a ticket of the intake, and answers how the connection ended (none: it was stopped).
    /// The caller's thread lives as long as the daemon (see `Lifeline::lay`).
    pub fn start(
        fitting: Fitting,
        side: LinkSide,
        news: Outlet<PeerNews>,
        read: impl FnOnce(PeerReader, &Arc<Intake>) -> Option<LinkEnd> + Send + 'static,
    ) -> std::io::Result<Self> {
        let Fitting { conn, generation: _, ours: _, agreed, reader, writer, pulse } = fitting;
        let Agreed { protocol, state } = agreed;
        tracing::info!(protocol, state, "connected to the peer, in the newest versions that both know");
        reader.get_ref().lift_deadline()?;
        let stream = writer.get_ref().socket().try_clone()?;
        let (stream_reads, stream_ended) = channel();
        let pulse = Pulse::start(conn, pulse, side, &news, stream_ended)?;
        let lifeline = Lifeline::lay(&stream, pulse.stream())
            .inspect_err(|e| {
                tracing::warn!("cannot start a lifeline: if this daemon dies, the peer notices later ({e})")
            })
            .ok();
        let outbox = PeerOutbox::new(BULK_BYTES_MAX);
        let written = Arc::new(AtomicU64::new(0));
        let intake = Intake::new();
        let work = WriterThread {
            conn,
            writer,
            outbox: Arc::clone(&outbox),
            written: Arc::clone(&written),
            pulse: Arc::clone(&pulse),
        };
        // An executor that has ended does not miss it.
        let gone = move |why| drop(news.tell(PeerNews::Gone { conn, why }));
        let write_failed = gone.clone();
        // What has begun ends with what cannot begin.
        let (begun, beating) = (Arc::clone(&outbox), Arc::clone(&pulse));
        let end = |_: &std::io::Error| {
            begun.close();
            beating.end();
        };
        let writing = std::thread::Builder::new().name(format!("ftd-write-{conn}")).spawn(move || {
            ft_confine::this_thread(ThreadKind::Link);
            if let Err(e) = work.run() {
                write_failed(LinkEnd::Lost(LinkError::Write(e)));
            }
        });
        writing.inspect_err(end)?;
        let door = Arc::clone(&intake);
        let reader = std::thread::Builder::new().name(format!("ftd-read-{conn}")).spawn(move || {
            ft_confine::this_thread(ThreadKind::Stream);
            let stream_reads: Sender<()> = stream_reads;
            if let Some(why) = read(reader, &door) {
                gone(why);
            }
            drop(stream_reads);
        });
        let reader = reader.inspect_err(end)?;
        Ok(Self { outbox, written, agreed, stream, intake, reader: Some(reader), pulse, _lifeline: lifeline })
    }

    /// Reads nothing more, and waits until the reader has let go of whatever it feeds. Writing goes on.
    pub fn stop_reading(&mut self) {
        self.intake.stop();
        self.pulse.stop_reading();
        let _ = self.stream.shutdown(Shutdown::Read);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// Has the pulse say this next.
    pub fn beat(&self, outgoing: Outgoing) {
        self.pulse.send(outgoing);
    }

    /// For a look at what it carries.
    pub fn meter(&self) -> Option<Meter> {
        self.stream.try_clone().map(Meter::new).ok()
    }

    /// Queues a message.
    pub fn send(&self, message: Message<'static>) {
        // A closed outbox has already been reported by whoever closed it.
        if self.outbox.send(message).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends the connection now: nothing more is read or written.
    pub fn close(&self) {
        self.intake.stop();
        self.outbox.close();
        let _ = self.stream.shutdown(Shutdown::Both);
        self.pulse.end();
    }

    /// Ends the connection after the messages that are queued (a good-bye) are written.
    pub fn finish(&self) {
        self.intake.stop();
        self.pulse.stop_reading();
        self.outbox.finish();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outbox.finish();
    }
}

struct WriterThread {
    conn: ConnId,
    writer: PeerWriter,
    outbox: Arc<PeerOutbox>,
    written: Arc<AtomicU64>,
    pulse: Arc<Pulse>,
}

impl WriterThread {
    fn run(mut self) -> Result<(), FrameError> {
        let result = self.drain();
        // The reader's side learns of it by the shutdown.
        self.outbox.close();
        let _ = self.writer.get_ref().socket().shutdown(Shutdown::Both);
        self.pulse.end();
        tracing::debug!(conn = self.conn, "writer ended");
        result
    }

    fn drain(&mut self) -> Result<(), FrameError> {
        while let Some(item) = self.outbox.next() {
            match item {
                // The message that says so is the first of the new generation.
                Item::Urgent(
                    message @ (Message::Paired { generation } | Message::TookOver { generation }),
                ) => {
                    self.writer.set_generation(generation);
                    message.write(0, &mut self.writer)?;
                }
                Item::Urgent(message) => message.write(0, &mut self.writer)?,
                Item::Bulk(Bulk::Frame(kind, epoch, payload)) => self.writer.frame(kind, epoch, &payload)?,
                Item::Bulk(Bulk::Again(checkpoint)) => checkpoint.send(&mut self.writer)?,
            }
            if self.outbox.is_idle() {
                self.writer.flush()?;
            }
            self.written.store(self.writer.bytes(), Ordering::Relaxed);
        }
        self.writer.flush()
    }
}
