//! The load generator of the Linux guest with a disk, compiled from the guest's program: here it is tested on a file.

#[path = "../../../scripts/guest/load/disk.rs"]
pub mod disk;
#[path = "../../../scripts/guest/load/request.rs"]
pub mod request;
#[path = "../../../scripts/guest/load/work.rs"]
pub mod work;

#[cfg(test)]
mod tests;
