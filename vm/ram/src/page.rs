//! Numbers of pages.

/// Number of a RAM page: byte offset in the memfd divided by [`PAGE_SIZE`](crate::layout::PAGE_SIZE). 32 bits reach 16
/// TiB.
pub type PageIndex = u32;
