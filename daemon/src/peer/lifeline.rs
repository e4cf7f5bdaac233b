//! The lifeline: a small process beside the two connections of a link that closes them the moment the daemon dies.
//!
//! The kernel closes a killed process's sockets only after it has taken down its memory. For a VM that takes tens of
//! milliseconds to seconds, in which the peer learns nothing. The kernel tells a child of its parent thread's death
//! (`PR_SET_PDEATHSIG`) before that, since only the last thread takes the memory down. So the child holds the
//! connections too, and shuts them down for both.
//!
//! The lifeline only makes the peer see a death sooner. Nothing rests on it: a peer that sees a closed connection still
//! waits for its promise and for the arbiter, and without a lifeline it merely sees the death later.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};

/// The hidden subcommand of `ftd` that is the lifeline; the connections are its standard input and output.
pub const COMMAND: &str = "lifeline";

/// Said by the kernel when the maker has died. Not one that stops services or terminals.
const DEATH: Signal = Signal::SIGUSR1;

/// A lifeline that lies beside a link. Dropping it ends the child, not the connections.
pub struct Lifeline(Child);

impl Lifeline {
    /// Lays one. It belongs to the calling thread, which has to live as long as the daemon.
    pub fn lay(stream: &TcpStream, pulse: &TcpStream) -> std::io::Result<Self> {
        let owned = |stream: &TcpStream| -> std::io::Result<OwnedFd> { stream.as_fd().try_clone_to_owned() };
        let child = Command::new("/proc/self/exe")
            .args([COMMAND, &std::process::id().to_string()])
            .stdin(owned(stream)?)
            .stdout(owned(pulse)?)
            .env_clear()
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // It has nothing to lose; it may have gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's whole life: waits for its maker's death, and then closes the connections.
pub fn run(maker: u32) -> std::io::Result<()> {
    // What ends services and terminal sessions is for the daemon; it ends this process itself.
    SigSet::all().thread_block()?;
    prctl::set_pdeathsig(DEATH)?;
    let stream = TcpStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let pulse = TcpStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut death = SigSet::empty();
    death.add(DEATH);
    // A maker that died before the kernel was told to say so is not our parent any more.
    if std::os::unix::process::parent_id() == maker {
        death.wait()?;
    }
    stream.shutdown(Shutdown::Both)?;
    pulse.shutdown(Shutdown::Both)
}
