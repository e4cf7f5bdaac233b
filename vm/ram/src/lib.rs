//! A guest's memory, on which everything else stands: its RAM and the numbers of its pages ([`GuestRam`],
//! [`PageIndex`]), the record of the VMM's own writes, and the guest-physical address map ([`layout`]).
//!
//! ```
//! use ft_ram::layout::PAGE_SIZE;
//! use ft_ram::{GuestRam, PageIndex};
//! use vm_memory::{Bytes, GuestAddress};
//!
//! let ram = GuestRam::new(16 << 20)?;
//! ram.memory().write_obj(7_u64, GuestAddress(0x5008))?;
//!
//! // What was written through the guest's mapping is known by page...
//! let mut dirty: Vec<PageIndex> = Vec::new();
//! ram.take_vmm_dirty(|page| dirty.push(page));
//! assert_eq!(dirty, [5]);
//!
//! // ...and a page is copied through a mapping apart from it.
//! let mut page = [0; PAGE_SIZE];
//! ram.view()?.read_page(5, &mut page);
//! assert_eq!(page[8], 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backing;
mod bitmap;
mod error;
pub mod layout;
mod memory;
mod page;
mod resident;
mod view;
mod written;

pub use backing::Backing;
pub use error::MemoryError;
pub use memory::{GuestMemory, GuestRam, Slot};
pub use page::PageIndex;
pub use view::{PageRun, RamView};
