//! The second connection of a link. Heartbeats go one way on it, their answers the other, and nothing else. So they
//! wait behind no checkpoint: not in a queue here, not in the kernel's buffers, not at the peer's reader.
//!
//! Of what is to be written only the newest counts, and a heartbeat is stamped as it is written: a permission that runs
//! from its stamp loses nothing to a writer that was held up. Both connections are one link: with either both end.

use super::error::{LinkEnd, LinkError};
use super::intake::Intake;
use super::news::PeerNews;
use super::stream::{PeerReader, PeerWriter};
use crate::clock;
use crate::outlet::Outlet;
use crate::role::{ConnId, Micros};
use ft_checkpoint::wire::{FrameError, Message};
use ft_confine::ThreadKind;
use parking_lot::{Condvar, Mutex};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long the other connection may take to say why it ends, when this one has ended.
const LAST_WORD: Duration = Duration::from_millis(100);

/// What comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The primary lives.
    Heartbeat {
        /// Its clock, to be sent back.
        stamp: Micros,
        /// The lease that it asks for.
        lease: Micros,
    },
    /// The backup answers.
    Echo {
        /// Our clock when we wrote what it answers.
        stamp: Micros,
        /// The lease that it grants.
        lease: Micros,
    },
}

/// What goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A heartbeat, which asks for this lease. It gets its stamp as it is written.
    Heartbeat {
        /// The lease.
        lease: Micros,
    },
    /// The answer to one.
    Echo {
        /// From the heartbeat.
        stamp: Micros,
        /// The lease that is granted.
        lease: Micros,
    },
}

/// Both directions of the connection, as the handshake leaves it.
pub struct PulseEnds {
    /// Reading side.
    pub reader: PeerReader,
    /// Writing side.
    pub writer: PeerWriter,
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSide {
    /// It asks.
    Primary,
    /// It answers.
    Backup,
}

/// See the module.
pub struct Pulse {
    slot: Mutex<Slot>,
    filled: Condvar,
    intake: Arc<Intake>,
    stream: TcpStream,
}

#[derive(Default)]
struct Slot {
    next: Option<Outgoing>,
    ended: bool,
}

impl Pulse {
    /// Starts its threads. `stream_ended` is closed by the reader of the other connection, when that ends.
    pub fn start(
        conn: ConnId,
        ends: PulseEnds,
        side: LinkSide,
        news: &Outlet<PeerNews>,
        stream_ended: Receiver<()>,
    ) -> std::io::Result<Arc<Self>> {
        let PulseEnds { reader, writer } = ends;
        reader.get_ref().lift_deadline()?;
        let stream = writer.get_ref().socket().try_clone()?;
        let intake = Intake::new();
        let pulse = Arc::new(Self { slot: Mutex::default(), filled: Condvar::new(), intake, stream });
        let writing = Arc::clone(&pulse);
        std::thread::Builder::new().name(format!("ftd-beat-{conn}")).spawn(move || {
            ft_confine::this_thread(ThreadKind::Link);
            if let Err(e) = writing.write(writer) {
                tracing::debug!(conn, "cannot write a heartbeat: {e}");
                // The reader tells.
                let _ = writing.stream.shutdown(Shutdown::Both);
            }
        })?;
        let (reading, news) = (Arc::clone(&pulse), news.clone());
        let heard = std::thread::Builder::new().name(format!("ftd-hear-{conn}")).spawn(move || {
            ft_confine::this_thread(ThreadKind::Link);
            let Some(why) = reading.read(conn, reader, side, &news) else { return };
            // What the peer said last is on the other connection, whose end is then the link's.
            if stream_ended.recv_timeout(LAST_WORD) == Err(RecvTimeoutError::Timeout) {
                // An executor that has ended does not miss it.
                let _ = news.tell(PeerNews::Gone { conn, why: LinkEnd::Lost(why) });
            }
        });
        // The first thread waits for nobody.
        heard.inspect_err(|_| pulse.end())?;
        Ok(pulse)
    }

    /// Has this written; what was to be written before, and still is, counts no more.
    pub fn send(&self, outgoing: Outgoing) {
        self.slot.lock().next = Some(outgoing);
        self.filled.notify_one();
    }

    /// Nothing more is taken in.
    pub fn stop_reading(&self) {
        self.intake.stop();
    }

    /// Ends the connection.
    pub fn end(&self) {
        self.intake.stop();
        self.slot.lock().ended = true;
        self.filled.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The connection, for its lifeline.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn next(&self) -> Option<Outgoing> {
        let mut slot = self.slot.lock();
        loop {
            if slot.ended {
                return None;
            }
            if let Some(outgoing) = slot.next.take() {
                return Some(outgoing);
            }
            self.filled.wait(&mut slot);
        }
    }

    fn write(&self, mut writer: PeerWriter) -> Result<(), FrameError> {
        while let Some(outgoing) = self.next() {
            let message = match outgoing {
                Outgoing::Heartbeat { lease } => {
                    Message::Heartbeat { stamp_us: clock::now_us(), lease_us: lease }
                }
                Outgoing::Echo { stamp, lease } => Message::Echo { stamp_us: stamp, lease_us: lease },
            };
            match message.send(0, &mut writer) {
                // It was ended under our hands.
                Err(_) if self.slot.lock().ended => return Ok(()),
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Reads until the connection ends, and says how; nothing when it was stopped.
    fn read(
        &self,
        conn: ConnId,
        mut reader: PeerReader,
        side: LinkSide,
        news: &Outlet<PeerNews>,
    ) -> Option<LinkError> {
        loop {
            let beat = match reader.read().and_then(|frame| Message::decode(&frame)) {
                _ if self.intake.is_stopped() => return None,
                Err(e) => return Some(LinkError::Pulse(e)),
                Ok(message) => match beat_in(&message, side) {
                    Some(beat) => beat,
                    None => return Some(LinkError::NoBeat),
                },
            };
            let ticket = self.intake.enter()?;
            news.tell(PeerNews::Pulse { conn, beat, ticket }).ok()?;
        }
    }
}

/// The beat that a message is, for this end.
fn beat_in(message: &Message<'_>, side: LinkSide) -> Option<Beat> {
    match (message, side) {
        (&Message::Heartbeat { stamp_us, lease_us }, LinkSide::Backup) => {
            Some(Beat::Heartbeat { stamp: stamp_us, lease: lease_us })
        }
        (&Message::Echo { stamp_us, lease_us }, LinkSide::Primary) => {
            Some(Beat::Echo { stamp: stamp_us, lease: lease_us })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::PeerStream;
    use super::*;
    use ft_checkpoint::wire::{FrameReader, FrameWriter};
    use ft_tls::Channel;
    use std::net::TcpListener;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    fn ends(stream: TcpStream) -> PulseEnds {
        let channel = Channel::clear(stream);
        let writer = FrameWriter::new(channel.try_clone().unwrap(), 1, 1);
        let deadline = Instant::now() + Duration::from_secs(60);
        PulseEnds { reader: FrameReader::new(PeerStream::new(channel, deadline)), writer }
    }

    struct Side {
        pulse: Arc<Pulse>,
        news: Receiver<PeerNews>,
        /// Lives as long as the stream's reader.
        stream: Sender<()>,
    }

    impl Side {
        fn start(stream: TcpStream, side: LinkSide) -> Self {
            let (queue, news) = channel();
            let (stream_reads, stream_ended) = channel();
            let outlet = Outlet::into_queue(&queue, |news: PeerNews| news);
            let pulse = Pulse::start(7, ends(stream), side, &outlet, stream_ended).unwrap();
            Self { pulse, news, stream: stream_reads }
        }

        fn beat(&self) -> Beat {
            match self.news.recv().unwrap() {
                PeerNews::Pulse { conn: 7, beat, .. } => beat,
                PeerNews::Gone { why, .. } => panic!("{why:?}"),
                _ => panic!("no beat"),
            }
        }
    }

    fn pair() -> (Side, Side) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        (Side::start(accepted, LinkSide::Primary), Side::start(dialled, LinkSide::Backup))
    }

    #[test]
    fn a_heartbeat_is_stamped_as_it_is_written_and_its_answer_carries_the_stamp_back() {
        let (primary, backup) = pair();
        let before = clock::now_us();
        primary.pulse.send(Outgoing::Heartbeat { lease: 5 });
        let Beat::Heartbeat { stamp, lease: 5 } = backup.beat() else { panic!("no heartbeat of this lease") };
        assert!((before..=clock::now_us()).contains(&stamp));
        backup.pulse.send(Outgoing::Echo { stamp, lease: 4 });
        assert_eq!(primary.beat(), Beat::Echo { stamp, lease: 4 });
    }

    #[test]
    fn of_what_waits_the_newest_counts() {
        let (primary, _backup) = pair();
        let stream = primary.pulse.stream.try_clone().unwrap();
        let waiting = Pulse { slot: Mutex::default(), filled: Condvar::new(), intake: Intake::new(), stream };
        waiting.send(Outgoing::Heartbeat { lease: 1 });
        waiting.send(Outgoing::Heartbeat { lease: 2 });
        assert_eq!(waiting.next(), Some(Outgoing::Heartbeat { lease: 2 }));
        assert_eq!(waiting.slot.lock().next, None);
    }

    #[test]
    fn a_pulse_that_ends_is_told_and_so_is_one_that_brings_something_else() {
        let (primary, backup) = pair();
        backup.pulse.end();
        let told = primary.news.recv().unwrap();
        assert!(matches!(told, PeerNews::Gone { conn: 7, why: LinkEnd::Lost(LinkError::Pulse(_)) }));
        let (primary, backup) = pair();
        backup.pulse.send(Outgoing::Heartbeat { lease: 1 });
        let told = primary.news.recv().unwrap();
        assert!(matches!(told, PeerNews::Gone { conn: 7, why: LinkEnd::Lost(LinkError::NoBeat) }));
    }

    #[test]
    fn a_pulse_that_ends_with_its_stream_leaves_the_last_word_to_that() {
        let (primary, backup) = pair();
        let Side { pulse: _pulse, news, stream } = primary;
        drop(stream);
        backup.pulse.end();
        assert!(news.recv().is_err(), "the reader has ended, and told nothing");
    }
}
