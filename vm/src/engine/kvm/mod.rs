//! The guest on KVM: the host's abilities ([`host`]), the virtual machine and its slots ([`vm`]), its processors as
//! threads ([`vcpu`]), whose doing their exits are ([`exit`]), their state ([`state`]), the pages that were written
//! ([`dirty`]), their features ([`features`]) and those with a name ([`model`]), their counters over a take-over
//! ([`counter`]), and all of it as the machine commands it ([`engine`]).

mod counter;
pub(crate) mod cpuid;
mod dirty;
pub(crate) mod engine;
pub(crate) mod error;
mod exit;
mod features;
mod host;
mod ioctl;
pub(crate) mod model;
mod run_page;
mod state;
mod vcpu;
mod vm;
