//! The VM's network card and the wire behind it: the daemon's real output buffer, and the frames that leave it, each
//! with its time. The buffer's clock is the node's. The process may be killed or frozen between two frames of one
//! release.

use std::io;
use std::sync::Arc;

use ft_netbuf::{BootTime, Bounds, Emit, Gate, OutputBuffer};
use ftd::role::Micros;
use parking_lot::Mutex;

use crate::model::Frame;

/// Frames held at most: a VM that sends more must wait.
const FRAMES_MAX: usize = 6;

/// What happens to the process after some more frames of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snag {
    /// It stands still for so long.
    Freeze(Micros),
    /// It is killed.
    Kill,
}

/// How the buffer's clock goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Goes,
    /// A mutant's: not while the process is frozen.
    StandsInFreeze,
    /// A mutant's: no permit ever lapses.
    Never,
}

#[derive(Debug, Default)]
struct Wire {
    /// The node's clock.
    clock_us: Micros,
    pace: Pace,
    /// Time that the process has stood still since the clock was set.
    stalled_us: Micros,
    snag: Option<(u32, Snag)>,
    dead: bool,
    left: Vec<(Micros, Frame)>,
}

/// The wire's end in the output buffer.
struct Plug(Arc<Mutex<Wire>>);

impl Emit for Plug {
    fn emit(&self, bytes: &[u8]) -> io::Result<()> {
        let mut wire = self.0.lock();
        if wire.dead {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let stalled = wire.stalled_us;
        wire.left.push((stalled, Frame::from_bytes(bytes)));
        match &mut wire.snag {
            Some((0, snag)) => {
                let snag = *snag;
                wire.snag = None;
                match snag {
                    Snag::Freeze(us) => wire.stalled_us += us,
                    Snag::Kill => wire.dead = true,
                }
            }
            Some((frames, _)) => *frames -= 1,
            None => {}
        }
        Ok(())
    }
}

/// What came of a step in which frames may have left.
#[derive(Debug, Default)]
pub struct Left {
    /// The frames, each with the time that the process had stood still before it.
    pub frames: Vec<(Micros, Frame)>,
    /// How long it stood still.
    pub stalled_us: Micros,
    /// It was killed.
    pub dead: bool,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Card {
    wire: Arc<Mutex<Wire>>,
    pub output: OutputBuffer,
}

impl Default for Card {
    fn default() -> Self {
        let wire = Arc::new(Mutex::new(Wire::default()));
        let clock = Arc::clone(&wire);
        let bounds = Bounds { frames: FRAMES_MAX, bytes: 4096, frame_bytes: 64 };
        let output = OutputBuffer::with_clock(vec![Box::new(Plug(Arc::clone(&wire)))], bounds, move || {
            let wire = clock.lock();
            BootTime::from_us(match wire.pace {
                Pace::Goes => wire.clock_us + wire.stalled_us,
                Pace::StandsInFreeze => wire.clock_us,
                Pace::Never => 0,
            })
        });
        Self { wire, output }
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.output.gate())
    }
}

impl Card {
    pub fn gate(&self) -> Gate {
        self.output.gate()
    }

    /// A step begins at this time of the node's clock; this happens to the process after so many frames.
    pub fn begin(&self, clock_us: Micros, pace: Pace, snag: Option<(u32, Snag)>) {
        let mut wire = self.wire.lock();
        (wire.clock_us, wire.pace, wire.snag) = (clock_us, pace, snag);
    }

    /// What the step has let out.
    pub fn end(&self) -> Left {
        let mut wire = self.wire.lock();
        wire.snag = None;
        Left {
            frames: std::mem::take(&mut wire.left),
            stalled_us: std::mem::take(&mut wire.stalled_us),
            dead: wire.dead,
        }
    }
}
