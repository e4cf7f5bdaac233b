//! Reads the VM's frames as they come in from the bridge's ports, with the kernel's own time stamps.
//!
//! One packet socket sees every interface of the namespace it runs in, before the bridge does. Only frames that arrive
//! *from* a port are taken; a frame that the bridge sends out through a port does not come from the host behind it.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

use super::frame::{EthernetFrame, MacAddress, SNAP_BYTES, parse};
use super::owners::timespec_ns;

/// Room for what arrives while the reader does not run.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;

/// A frame of the VM.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Which port it came from: the index in the list given to [`Listener::new`].
    pub port: usize,
    /// When the kernel took it in (CLOCK_REALTIME).
    pub at_ns: u64,
    /// What it is.
    pub frame: EthernetFrame,
}

/// An open capture.
pub struct Listener {
    socket: OwnedFd,
    ports: HashMap<usize, usize>,
    source: MacAddress,
}

impl Listener {
    /// Listens on the interfaces named, for frames from `source`.
    pub fn new(interfaces: &[&str], source: MacAddress) -> Result<Self> {
        let mut ports = HashMap::new();
        for (port, interface) in interfaces.iter().enumerate() {
            let index =
                if_nametoindex(*interface).with_context(|| format!("no interface `{interface}` here"))?;
            if ports.insert(usize::try_from(index)?, port).is_some() {
                bail!("interface `{interface}` is given twice");
            }
        }
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .context("cannot open a packet socket (it needs CAP_NET_RAW)")?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)
            .context("cannot set the receive buffer")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("cannot ask for time stamps")?;
        ignore_outgoing(&socket)?;
        Ok(Self { socket, ports, source })
    }

    /// Hands every frame to `take` until `stop` becomes readable.
    pub fn run(&self, stop: BorrowedFd<'_>, mut take: impl FnMut(Heard)) -> Result<()> {
        loop {
            let mut fds =
                [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            let stopping = fds[1].any() == Some(true);
            while let Some(heard) = self.read()? {
                if let Some(heard) = heard {
                    take(heard);
                }
            }
            if stopping {
                return Ok(());
            }
        }
    }

    /// `None`: nothing to read now. `Some(None)`: a frame that is not asked for.
    fn read(&self) -> Result<Option<Option<Heard>>> {
        let mut bytes = [0; SNAP_BYTES];
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            // An interface that goes down reports itself once; the others go on.
            Err(Errno::EINTR | Errno::ENETDOWN) => return Ok(Some(None)),
            Err(error) => return Err(error).context("reading from the packet socket"),
        };
        let length = message.bytes;
        let Some(address) = message.address else { return Ok(Some(None)) };
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(timespec_ns(time)),
            _ => None,
        });
        let Some(&port) = self.ports.get(&address.ifindex()) else { return Ok(Some(None)) };
        if address.pkttype() == libc::PACKET_OUTGOING {
            return Ok(Some(None));
        }
        let at_ns = stamp.context("the kernel gave a frame without a time stamp")?;
        let heard = bytes
            .get(..length)
            .and_then(parse)
            .filter(|frame| frame.source == self.source)
            .map(|frame| Heard { port, at_ns, frame });
        Ok(Some(heard))
    }

    /// Frames that the kernel dropped since the last call, for want of room.
    pub fn dropped(&self) -> Result<u64> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&stats))?;
        // SAFETY: `stats` and `length` outlive the call, and `length` is the size of `stats`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &mut length,
            )
        };
        Errno::result(result).context("cannot read the packet socket's statistics")?;
        Ok(u64::from(stats.tp_drops))
    }
}

/// Spares the copies of what the bridge sends out (Linux 4.20).
fn ignore_outgoing(socket: &OwnedFd) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` outlives the call, and the length given is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on))?,
        )
    };
    Errno::result(result).context("cannot ignore outgoing frames")?;
    Ok(())
}
