//! A primary and a backup in one process, joined by bytes: their state after a history, after damage on the
//! way, and after a take-over.

mod damage;
mod disks;
mod history;
mod holes;
mod kept;
mod lazy;
mod log;
mod scrub;
mod support;
