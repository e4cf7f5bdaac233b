//! A TAP interface: the VM's cable on this host, non-blocking. Before each frame, in either direction, stands a
//! virtio-net header (IFF_VNET_HDR) that says what is left to be done to it. What is left in frames from the VM the
//! kernel does, or leaves to the card that they go out by. It leaves in frames for the VM only what
//! [`Tap::set_offloads`] says.
//!
//! An existing interface is used as it is, but for headers and offloads, which are this user's alone: an administrator
//! may have created it for the daemon's user and put it on a bridge. Otherwise the interface is created, which needs
//! CAP_NET_ADMIN, and lives as long as the `Tap`. One that is deleted meanwhile can be attached to again when there is
//! another of its name.

use crate::buffer::Emit;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::User;
use parking_lot::{Mutex, RwLock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use thiserror::Error;

const CLONE_DEVICE: &str = "/dev/net/tun";
/// Bytes of `virtio_net_hdr_v1`, little-endian as the guest is. All zero: the frame is complete.
pub const HEADER_BYTES: usize = 12;
/// Longest interface name: IFNAMSIZ without the terminating zero.
pub const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// Why there is no TAP.
#[derive(Debug, Error)]
pub enum TapError {
    /// Not a name the kernel takes.
    #[error(
        "interface name '{name}' is not usable: 1 to {NAME_BYTES_MAX} bytes, no '/', ':', '%' or white space, not '.' \
         or '..'"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The TUN driver is missing.
    #[error("{CLONE_DEVICE} is missing; load the tun module, or give the container that device")]
    NoDriver,
    /// Not allowed to open the driver.
    #[error("TAP interface '{name}': no right to open {CLONE_DEVICE}; give it the mode 0666, as udev does")]
    NoRightToDriver {
        /// The interface.
        name: String,
    },
    /// Not allowed to attach the interface, or to make it.
    #[error(
        "TAP interface '{name}' {}; this process is {}, without CAP_NET_ADMIN: make the interface ahead, that \
         user's, and up: ip tuntap add {name} mode tap user {}; ip link set {name} up. Or, in a .netdev file of \
         systemd-networkd: [Tap] User={}",
        if *exists { "belongs to another user" } else { "is not there" },
        own_user(), own_name(), own_name()
    )]
    NoRights {
        /// The interface.
        name: String,
        /// There is one of that name.
        exists: bool,
    },
    /// Not allowed to change the interface.
    #[error("TAP interface '{name}': {at}: no right to, without CAP_NET_ADMIN: {remedy}")]
    NoRightToChange {
        /// The interface.
        name: String,
        /// Which step was refused.
        at: &'static str,
        /// The command that does it.
        remedy: String,
    },
    /// There is none of that name any more.
    #[error("there is no TAP interface '{name}'")]
    Gone {
        /// The interface.
        name: String,
    },
    /// Another process is attached to it.
    #[error("TAP interface '{name}' is in use by another process")]
    InUse {
        /// The interface.
        name: String,
    },
    /// The kernel's TAPs cannot carry headers.
    #[error(
        "TAP interface '{name}' cannot carry virtio-net headers of {HEADER_BYTES} bytes ({at}: {source})"
    )]
    NoHeaders {
        /// The interface.
        name: String,
        /// The step that failed.
        at: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is such an interface, of another kind.
    #[error("interface '{name}' exists and is not a single-queue TAP interface")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// Anything else.
    #[error("TAP interface '{name}': {at}: {source}")]
    Io {
        /// The interface.
        name: String,
        /// The step that failed.
        at: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Whether the kernel takes `name` for an interface.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace())
}

/// What may be left to be done to a frame for the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapOffloads {
    /// Its checksum.
    pub checksum: bool,
    /// TCP over IPv4 is still to be cut into frames.
    pub tso4: bool,
    /// TCP over IPv6 is.
    pub tso6: bool,
    /// TCP that tells of congestion (ECN) is.
    pub ecn: bool,
}

impl TapOffloads {
    /// As TUNSETOFFLOAD takes it.
    fn flags(self) -> libc::c_uint {
        let Self { checksum, tso4, tso6, ecn } = self;
        let each = [
            (checksum, libc::TUN_F_CSUM),
            (tso4, libc::TUN_F_TSO4),
            (tso6, libc::TUN_F_TSO6),
            (ecn && (tso4 || tso6), libc::TUN_F_TSO_ECN),
        ];
        each.iter().filter(|(is_left, _)| *is_left).fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// An attached TAP interface. Frames may be sent by any thread while one receives.
#[derive(Debug)]
pub struct Tap {
    name: String,
    /// Another one after each [`Tap::reattach`].
    file: RwLock<Arc<File>>,
    /// What the file was, or will be, told. Locked before `file`.
    offloads: Mutex<TapOffloads>,
    /// What the interface carries at least; 0 until it is said.
    mtu: AtomicU16,
    wake: Arc<EventFd>,
}

/// Ends a [`Tap::receive`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Makes the current or the next `receive` return `None`.
    pub fn wake(&self) {
        // It fails only when the counter would overflow, and then the receiver is awake anyway.
        let _ = self.0.write(1);
    }
}

impl Tap {
    /// Attaches to the TAP interface `name`, or creates it.
    pub fn open(name: &str) -> Result<Self, TapError> {
        if !is_interface_name(name) {
            return Err(TapError::Name { name: name.to_owned() });
        }
        let file = RwLock::new(Arc::new(attach(name)?));
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(|errno| {
            TapError::Io { name: name.to_owned(), at: "creating an eventfd", source: errno.into() }
        })?;
        Ok(Self {
            name: name.to_owned(),
            file,
            offloads: Mutex::default(),
            mtu: AtomicU16::new(0),
            wake: Arc::new(wake),
        })
    }

    /// Says what may be left to be done to frames for the VM from now on: at first nothing. It also holds for another
    /// interface that is attached to later. Frames that the kernel has in its queue are as they were.
    pub fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        let mut told = self.offloads.lock();
        if *told == offloads {
            return Ok(());
        }
        *told = offloads;
        tell_offloads(&self.file(), offloads).map_err(io::Error::from)
    }

    /// Attaches anew, after the interface was deleted, to another one of its name; creates none.
    pub fn reattach(&self) -> Result<(), TapError> {
        nix::net::if_::if_nametoindex(self.name.as_str())
            .map_err(|_| TapError::Gone { name: self.name.clone() })?;
        let file = attach(&self.name)?;
        let offloads = self.offloads.lock();
        tell_offloads(&file, *offloads).map_err(|errno| TapError::Io {
            name: self.name.clone(),
            at: "setting offloads",
            source: errno.into(),
        })?;
        *self.file.write() = Arc::new(file);
        drop(offloads);
        // Whether long frames get through is for who looks at the way; short ones are to, in any case.
        let _ = self.set_mtu(self.mtu.load(Ordering::Relaxed));
        self.set_up()
    }

    /// The name that the interface has now, if there still is one: it may have been renamed, or deleted.
    #[must_use]
    pub fn attached_to(&self) -> Option<String> {
        let mut request = interface_request("");
        // SAFETY: TUNGETIFF fills in the ifreq that `request` is, and keeps no pointer to it.
        let result = unsafe { libc::ioctl(self.file().as_raw_fd(), libc::TUNGETIFF, &mut request) };
        Errno::result(result).ok()?;
        let name: Vec<u8> =
            request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
        Some(String::from_utf8_lossy(&name).into_owned())
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&self.file.read())
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the interface carry packets of so many bytes, also one that is attached to later: a smaller MTU is raised,
    /// which needs CAP_NET_ADMIN.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        self.mtu.store(mtu, Ordering::Relaxed);
        let io_error = |at| self.io_error(at);
        let socket = self.socket()?;
        let mut request = interface_request(&self.name);
        // SAFETY: SIOCGIFMTU fills in the MTU of the ifreq that `request` is.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })
            .map_err(io_error("SIOCGIFMTU"))?;
        // SAFETY: SIOCGIFMTU has just initialised the MTU.
        if unsafe { request.ifr_ifru.ifru_mtu } >= mtu.into() {
            return Ok(());
        }
        request.ifr_ifru.ifru_mtu = mtu.into();
        // SAFETY: SIOCSIFMTU reads the ifreq that `request` is.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &request) })
            .map_err(self.change_error("raising its MTU", format!("mtu {mtu}")))?;
        Ok(())
    }

    fn io_error(&self, at: &'static str) -> impl Fn(Errno) -> TapError + '_ {
        move |errno| TapError::Io { name: self.name.clone(), at, source: errno.into() }
    }

    /// An error of a step that `ip link set NAME SETTING` does as well.
    fn change_error(&self, at: &'static str, setting: String) -> impl Fn(Errno) -> TapError + '_ {
        move |errno| match errno {
            Errno::EPERM | Errno::EACCES => {
                let remedy = format!("ip link set {} {setting}", self.name);
                TapError::NoRightToChange { name: self.name.clone(), at, remedy }
            }
            errno => self.io_error(at)(errno),
        }
    }

    /// What interfaces are asked by.
    fn socket(&self) -> Result<OwnedFd, TapError> {
        // SAFETY: no pointer is passed; the descriptor returned is owned by nobody else.
        unsafe {
            let fd = Errno::result(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))
                .map_err(self.io_error("opening a socket to set it up"))?;
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Brings the interface up (`ip link set NAME up`); needs CAP_NET_ADMIN unless it is up already.
    pub fn set_up(&self) -> Result<(), TapError> {
        let io_error = |at| self.io_error(at);
        let socket = self.socket()?;
        let mut request = interface_request(&self.name);
        // SAFETY: SIOCGIFFLAGS fills in the flags of the ifreq that `request` is.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })
            .map_err(io_error("SIOCGIFFLAGS"))?;
        // SAFETY: SIOCGIFFLAGS has just initialised the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        if flags & libc::IFF_UP as libc::c_short != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        // SAFETY: SIOCSIFFLAGS reads the ifreq that `request` is.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
            .map_err(self.change_error("bringing it up", "up".into()))?;
        Ok(())
    }

    /// What ends a `receive`.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(self.wake.clone())
    }

    /// Waits for one frame and reads it, behind its header, into `buffer` (longer ones are cut); `None` when woken by a
    /// [`Waker`].
    /// After an error the interface may be gone: see [`Tap::reattach`].
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let file = self.file();
        loop {
            match (&*file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut ready = [
                PollFd::new(file.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if ready[1].any() == Some(true) {
                // Taken back, so that the next call waits again.
                let _ = self.wake.read();
                return Ok(None);
            }
        }
    }
}

impl Emit for Tap {
    fn emit(&self, packet: &[u8]) -> io::Result<()> {
        // The kernel takes a frame whole or not at all.
        (&*self.file()).write(packet).map(drop)
    }

    fn wait_room(&self, timeout: Duration) {
        let file = self.file();
        let mut ready = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
        // The outcome does not matter: the caller tries again in any case.
        let _ = poll(&mut ready, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO));
    }
}

/// Attaches to the TAP interface `name`, or creates it, for frames with headers, and turns off offloads that were left
/// on.
fn attach(name: &str) -> Result<File, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver,
            Some(libc::EACCES | libc::EPERM) => TapError::NoRightToDriver { name: name.to_owned() },
            _ => TapError::Io { name: name.to_owned(), at: "opening /dev/net/tun", source },
        })?;
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and keeps no pointer to it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    Errno::result(result).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => {
            TapError::NoRights { name: name.to_owned(), exists: nix::net::if_::if_nametoindex(name).is_ok() }
        }
        Errno::EBUSY => TapError::InUse { name: name.to_owned() },
        Errno::EINVAL => TapError::NotATap { name: name.to_owned() },
        errno => TapError::Io { name: name.to_owned(), at: "TUNSETIFF", source: errno.into() },
    })?;
    let no_headers = |at| {
        let name = name.to_owned();
        move |errno: Errno| TapError::NoHeaders { name, at, source: errno.into() }
    };
    let bytes = HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `bytes` is.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) })
        .map_err(no_headers("TUNSETVNETHDRSZ"))?;
    tell_offloads(&file, TapOffloads::default()).map_err(no_headers("turning offloads off"))?;
    Ok(file)
}

/// The name of this process's user, or its number.
fn own_name() -> String {
    let uid = nix::unistd::geteuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn own_user() -> String {
    format!("user '{}' (uid {})", own_name(), nix::unistd::geteuid())
}

fn tell_offloads(file: &File, offloads: TapOffloads) -> Result<(), Errno> {
    let flags = libc::c_ulong::from(offloads.flags());
    // SAFETY: TUNSETOFFLOAD takes a number.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) }).map(drop)
}

/// An interface request that names `name`, which is at most [`NAME_BYTES_MAX`] long, and is zero otherwise.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(NAME_BYTES_MAX).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}
