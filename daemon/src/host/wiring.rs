//! The host's side of the machine, made from the configuration: TAP, output buffer, console, disk images.

use super::check::{HostError, NoConsole};
use super::console::ConsoleHub;
use super::network::Cable;
use super::pump::{self, Socket};
use crate::boot::Booted;
use crate::config::{Config, DiskConfig, MachineConfig, NetConfig};
use crate::disks::{BesideError, Disks, NoStore, open_image};
use crate::role::NodeRecord;
use ft_disk::{Access, Caching, DiskImageError, ImageStore, RawImage, image_bytes};
use ft_netbuf::{Announcement, Bounds, Emit, OutputBuffer, Tap, TapOffloads, Transmitted, Waker};
use ft_vm::devices::{Disk, FrameSink, Offloads, PACKET_BYTES_MAX, Transmit, Wiring, plain_packet};
use ft_vm::machine::Machine;
use ft_vm::spec::MachineSpec;
use std::sync::Arc;
use std::time::Duration;

/// Makes the host side of a machine's devices.
pub type MakeWiring = Box<dyn Fn() -> Result<Wiring, WiringError> + Send>;
/// The same for a machine that nobody hears.
pub type ScratchWiring = Box<dyn Fn() -> Result<Wiring, WiringError> + Send + Sync>;
/// Is told about every new machine, so that its network port and console can be reached; and when it is gone.
pub type Attach = Box<dyn Fn(Option<&Machine>) + Send>;

/// Why a machine has no host side.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// A disk image cannot be opened, or somebody else uses it.
    #[error(transparent)]
    Image(#[from] DiskImageError),
}

/// What the replica needs of the host.
pub struct Host {
    /// The machine, as both hosts describe it.
    pub spec: MachineSpec,
    /// What it boots.
    pub boot: Booted,
    /// Makes the host side of its devices.
    pub wiring: MakeWiring,
    /// The same for a machine that nobody hears: its frames and its console go nowhere, and nothing is behind its
    /// writable disks.
    pub scratch_wiring: ScratchWiring,
    /// Its writable disks, if it has any.
    pub disks: Option<Arc<Disks>>,
    /// Told about every machine that comes and goes.
    pub attach: Attach,
    /// Output commit.
    pub output: OutputBuffer,
    /// Announces the VM on its network, when it begins to run here.
    pub announce: Arc<dyn Fn() + Send + Sync>,
    /// The ways of its cards to their networks, to be watched.
    pub cables: Vec<(Cable, Arc<Tap>)>,
}

/// The announcement goes out again after these pauses: each frame may be lost.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_millis(1000)];

/// Opens everything on this host that the machine will be wired to. Nothing runs yet. What this node has on record of
/// the cell is what stamps of its disks are made with.
pub fn prepare_host(config: &Config, record: Option<NodeRecord>) -> Result<(Host, ConsoleHub), HostError> {
    let machine = &config.machine;
    let spec = config.machine_spec()?;
    let images = machine.disks.clone();
    let disks = Disks::open(config)?;
    if let (Some(disks), Some(record)) = (&disks, record) {
        disks.follower().know_cell(record.cell);
    }
    let console = ConsoleHub::start(&machine.console)?;
    let replication = &config.replication;
    let bounds = Bounds {
        frames: replication.hold_frames as usize,
        bytes: (replication.hold_mib as usize) << 20,
        frame_bytes: PACKET_BYTES_MAX,
    };
    let Cards { cables, sockets, wakers } = Cards::open(machine)?;
    let taps: Vec<_> = cables.iter().map(|(_, tap)| Arc::clone(tap)).collect();
    let wires = taps.iter().map(|tap| Box::new(Arc::clone(tap)) as Box<dyn Emit>).collect();
    let output = OutputBuffer::new(wires, bounds);
    output.on_room(move || wakers.iter().for_each(Waker::wake));
    output.mute();
    let frames: Arc<dyn FrameSink> = Arc::new(HoldingSink { output: output.clone(), taps });

    let hub = console.clone();
    let scratch_images = images.clone();
    let replicated = disks.clone();
    let wiring = Box::new(move || {
        let disks = wire_disks(&images, replicated.as_deref())?;
        Ok(Wiring { frames: Some(Arc::clone(&frames)), console: Box::new(hub.clone()), disks })
    });
    let scratch_wiring = Box::new(move || {
        Ok(Wiring { frames: None, console: Box::new(NoConsole), disks: wire_disks(&scratch_images, None)? })
    });
    let hub = console.clone();
    #[cfg(feature = "next-version")]
    let mark = machine.mark;
    let attached = disks.clone();
    let attach = Box::new(move |machine: Option<&Machine>| {
        #[cfg(feature = "next-version")]
        if let Some(machine) = machine {
            machine.mark(mark);
        }
        for (number, socket) in (0..).zip(&sockets) {
            socket.plug(machine.and_then(|machine| machine.net(number)));
        }
        if let Some(disks) = &attached {
            disks.plug(machine);
        }
        hub.plug(machine.map(Machine::console));
    });
    let announce = announcer(output.clone(), &machine.nets);
    let boot = Booted::new(config, disks.clone());
    Ok((Host { spec, boot, wiring, scratch_wiring, disks, attach, output, announce, cables }, console))
}

/// A machine's disks. Without the writable ones there is nothing behind those.
fn wire_disks(disks: &[DiskConfig], replicated: Option<&Disks>) -> Result<Vec<Disk>, DiskImageError> {
    let wire = |(number, disk): (u16, &DiskConfig)| {
        if disk.read_only {
            return Ok(disk_of(disk, RawImage::open(&disk.image, Access::ReadOnly)?));
        }
        match replicated.map(|replicated| replicated.disk(number)).transpose()?.flatten() {
            Some(disk) => Ok(disk),
            None => Ok(Disk::new(NoStore { bytes: image_bytes(&disk.image)? })),
        }
    };
    (0..).zip(disks).map(wire).collect()
}

/// Opens the images of a machine's disks, and locks them.
pub(super) fn open_disks(config: &Config) -> Result<Vec<Disk>, BesideError> {
    let open = |(number, disk): (u16, &DiskConfig)| {
        let image = match disk.read_only {
            true => RawImage::open(&disk.image, Access::ReadOnly)?,
            false => open_image(config, number, disk)?,
        };
        Ok(disk_of(disk, image))
    };
    (0..).zip(&config.machine.disks).map(open).collect()
}

fn disk_of(disk: &DiskConfig, image: RawImage) -> Disk {
    if let (Caching::Cached { why }, Access::Writable) = (image.caching(), image.access()) {
        let image = disk.image.display();
        tracing::info!(%image, "a disk's writes go through this host's page cache: {why}");
    }
    let on_io_error = disk.on_io_error();
    Disk { on_io_error, ..Disk::new(ImageStore::new(image, disk.io_engine)) }
}

/// Announces the VM at once and a few times again. Through the output buffer: a replica that may not speak (any more)
/// does not announce itself either.
fn announcer(output: OutputBuffer, cards: &[NetConfig]) -> Arc<dyn Fn() + Send + Sync> {
    let packets = (0..).zip(cards).flat_map(|(card, net)| {
        let frames = Announcement::new(net.mac.0, &net.addresses);
        frames.frames().iter().map(|frame| (card, plain_packet(frame))).collect::<Vec<_>>()
    });
    let packets: Arc<[(u8, Vec<u8>)]> = packets.collect();
    Arc::new(move || {
        if packets.is_empty() {
            return;
        }
        let say = {
            let (output, packets) = (output.clone(), Arc::clone(&packets));
            move || {
                for (card, packet) in &*packets {
                    // A buffer without room is busy with the VM's own frames, which announce it as well.
                    let _ = output.transmit(*card, packet);
                }
            }
        };
        say();
        let again = std::thread::Builder::new().name("ftd-announce".into()).spawn(move || {
            for pause in ANNOUNCE_AGAIN {
                std::thread::sleep(pause);
                say();
            }
        });
        if let Err(e) = again {
            tracing::warn!(
                "cannot start a thread to announce the VM's addresses again: announced only once: {e}"
            );
        }
    })
}

/// The guest's frames go through output commit.
struct HoldingSink {
    output: OutputBuffer,
    /// The TAP of each card.
    taps: Vec<Arc<Tap>>,
}

impl FrameSink for HoldingSink {
    fn transmit(&self, card: u8, packet: &[u8]) -> Transmit {
        match self.output.transmit(card, packet) {
            Transmitted::Taken => Transmit::Taken,
            Transmitted::Full => Transmit::Full,
        }
    }

    fn set_offloads(&self, card: u8, offloads: Offloads) {
        if let Some(tap) = self.taps.get(usize::from(card)) {
            set_offloads(tap, offloads);
        }
    }
}

/// Has the TAP leave in frames for the guest what its driver does itself. Where that fails, frames are complete.
pub(crate) fn set_offloads(tap: &Tap, offloads: Offloads) {
    let Offloads { checksum, tso4, tso6, ecn } = offloads;
    if let Err(e) = tap.set_offloads(TapOffloads { checksum, tso4, tso6, ecn }) {
        tracing::warn!(tap = tap.name(), "cannot set what the VM takes in frames for it ({offloads:?}): {e}");
    }
}

/// The host's side of a VM's network cards, in their order.
struct Cards {
    cables: Vec<(Cable, Arc<Tap>)>,
    sockets: Vec<Socket>,
    /// Each has the guest's frames of its card offered again.
    wakers: Vec<Waker>,
}

impl Cards {
    /// Opens their TAPs, and begins to take in frames.
    fn open(machine: &MachineConfig) -> Result<Self, HostError> {
        let mut cards = Self { cables: Vec::new(), sockets: Vec::new(), wakers: Vec::new() };
        for cable in machine.cables() {
            let tap = Arc::new(Tap::open(&cable.tap)?);
            tap.set_up()?;
            // Where that is refused, the watch names the TAP.
            let _ = tap.set_mtu(cable.mtu);
            let socket = Socket::default();
            cards.wakers.push(pump::start(Arc::clone(&tap), socket.clone()).map_err(HostError::Thread)?);
            cards.sockets.push(socket);
            cards.cables.push((cable, tap));
        }
        Ok(cards)
    }
}
