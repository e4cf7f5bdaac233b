//! `ftctl console`: bytes both ways, until Ctrl-] on a terminal or the daemon ends it.

use super::End;
use ftd::control::client::{Client, ClientError, ClientStream};
use ftd::exit::CtlExit;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Ctrl-]
const DETACH: u8 = 0x1d;

/// Puts the terminal back as it was.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Attaches. Without a terminal the end of the input is not the end: the output goes on.
///
/// The output has a thread of its own: whether there is more of it, TLS knows, and poll(2) does not.
pub fn attach(client: Client) -> Result<CtlExit, End> {
    let (output, mut input) = client.console()?;
    let on_terminal = io::stdin().is_terminal();
    let _raw = if on_terminal {
        eprintln!("ftctl: attached; Ctrl-] detaches");
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    // One end goes with the thread, which the other end sees.
    let (ended, ends_with) = UnixStream::pair()?;
    let showing = std::thread::spawn(move || {
        let _ends = ends_with;
        show(output)
    });
    let mut typing = true;
    loop {
        let stdin = io::stdin();
        let mut ready = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if typing {
            ready.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let readable: Vec<bool> = ready.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(ready);
        if readable[0] {
            let shown = showing.join().unwrap_or_else(|_| Err(io::Error::other("a thread has ended").into()));
            return shown.map(|()| CtlExit::Ok);
        }
        if readable.get(1) == Some(&true) {
            let mut bytes = [0; 1024];
            // Not through stdin's buffer, which poll does not see.
            let len = nix::unistd::read(&stdin, &mut bytes).map_err(io::Error::from)?;
            let typed = &bytes[..len];
            let detach = typed.iter().position(|byte| on_terminal && *byte == DETACH);
            input.write_all(&typed[..detach.unwrap_or(len)])?;
            if detach.is_some() {
                return Ok(CtlExit::Ok);
            }
            typing = len > 0;
        }
    }
}

/// Copies the output until there is no more.
fn show(mut output: BufReader<ClientStream>) -> Result<(), End> {
    loop {
        let bytes = output.fill_buf().map_err(ClientError::BrokenOff)?;
        if bytes.is_empty() {
            return Err(ClientError::BrokenOff(io::Error::other("the console was closed")).into());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        let len = bytes.len();
        output.consume(len);
    }
}
