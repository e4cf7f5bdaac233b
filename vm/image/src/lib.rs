//! What lies in a disk to be booted: its partitions, their file systems, and the boot entry in them that the guest's
//! own boot loader would take. Bytes in, bytes out; nothing is written.
//!
//! ```text
//!   disk ── table ──────────> volumes ─────────────── entry ──────────────────────────> kernel, initrd, command line
//!           GPT, MBR, none    ext4 with its journal,  Boot Loader Specification,
//!                             vfat                    grub.cfg, the kernel in /boot
//! ```
//!
//! The disk is the guest's, and anything may be in it. Sizes, depths and counts are bounded, and so is all that is read
//! together; whoever calls this runs it where neither a crash nor a loop does harm.

mod disk;
mod entry;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod volume;

pub use disk::ReadAt;
pub use entry::{BootEntry, BootLimits, BootOrigin, BootSearchError, find};
pub use table::{GptFault, PartitionTableError};
pub use volume::{FileError, Jbd2Error, VolumeError};
