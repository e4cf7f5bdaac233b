//! ft-checkpoint: from a captured epoch to a sealed checkpoint on the backup.
//!
//! Data flows one way. Primary: [`arena::Capture`] (copied in the pause) -> [`encoder::Encoder`] -> frames on the wire,
//! kept in [`owed::Owed`] until acked. Backup: frames -> [`receiver::Receiver`] (decode, verify, seal) ->
//! [`backlog::Applier`] (into the RAM image), and at take-over [`lazy::LazyApply`]. There are no sockets and, but for
//! the take-over's handler, no threads here: everything works over `std::io` and plain structs, and the daemon owns the
//! threads and the roles.
//!
//! The stream of one pairing (a full copy and what follows it):
//!
//! ```text
//! primary                                        backup
//!   Hello / Welcome / Refuse  <---------------->   (wire::handshake)
//!   CopyBegin{pairing} ------------------------>   nothing is held any more
//!                      <------ PageHashes{first..}   what is still in the image, a window ahead
//!   CopyPages* (whole RAM, then re-dirtied) --->   straight into the image
//!   Disk* (as the guest changes a disk) -------->   ahead of the checkpoint that it is a part of
//!   EpochBegin Pages* State* EpochEnd{digest} ->   decoded aside, verified, sealed
//!                                 <------ Ack{epoch}   ...and applied later, in order
//!   Paired{generation} ------------------------>   the cell names this pairing: may contest from now on
//!   EpochBegin ...                                 epochs without end
//!   or Log* LogEnd ...                             replay mode: epochs of the event log, to be executed
//! ```
//!
//! After a reconnect the backup says which pairing and epoch it holds; if the primary still owes the next epoch it
//! sends the kept payloads again (with fresh headers), otherwise a new pairing starts.
//!
//! A page's way, with the wire in memory:
//!
//! ```
//! use ft_checkpoint::arena::Capture;
//! use ft_checkpoint::copy::FullCopy;
//! use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
//! use ft_checkpoint::receiver::{Limits, Received, Receiver};
//! use ft_checkpoint::wire::{FrameReader, FrameWriter, vm_id};
//! use ft_ram::GuestRam;
//!
//! // The primary: a full copy of the guest's memory...
//! let guest = GuestRam::new(16 << 20)?.view()?;
//! let mut wire = FrameWriter::new(Vec::new(), vm_id("web"), 1);
//! let mut encoder = Encoder::new(guest.pages(), 1 << 20);
//! let mut copy = FullCopy::begin(&mut encoder, 0x17, &guest, &mut wire)?;
//! copy.step(&mut encoder, &guest, guest.pages(), &mut wire)?;
//!
//! // ...and a checkpoint: what the guest has changed since, and the machine's state.
//! guest.write_page(5, &[7; 4096]);
//! let mut capture = Capture::new(guest.pages() as usize);
//! (capture.epoch, capture.pages, capture.state) = (1, vec![5], b"registers".to_vec());
//! capture.copy_pages(&guest)?;
//! encoder.encode(&capture, EncodedCheckpoint::default(), &mut wire)?.sent?;
//!
//! // The backup: holds nothing until the last frame proves that all is there.
//! let ram = GuestRam::new(16 << 20)?;
//! let mut receiver = Receiver::new(ram.view()?, Limits::of_memory(ram.pages()));
//! receiver.connected(1);
//! let bytes = wire.into_inner();
//! let mut frames = FrameReader::new(&bytes[..]);
//! let mut sealed = None;
//! while let Ok(frame) = frames.read() {
//!     assert!(receiver.held().is_none());
//!     if let Received::Sealed { pairing, epoch, .. } = receiver.on_frame(&frame)? {
//!         sealed = Some((pairing, epoch));
//!     }
//! }
//! assert_eq!(sealed, Some((0x17, 1)));
//!
//! // It goes on from there.
//! let mut sealed = receiver.into_sealed().unwrap_or_else(|_| panic!("it is sealed"));
//! sealed.apply_all();
//! let mut page = [0; 4096];
//! ram.view()?.read_page(5, &mut page);
//! assert_eq!((page, &sealed.state[..]), ([7; 4096], &b"registers"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arena;
pub mod backlog;
pub mod bench_support;
pub mod compare;
mod copiers;
pub mod copy;
pub mod digest;
pub mod encoder;
pub mod image;
pub mod lazy;
pub mod owed;
pub mod page;
pub mod receiver;
pub mod recording;
pub mod saved;
pub mod scrub;
pub mod shadow;
pub mod wire;
