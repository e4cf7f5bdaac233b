//! The guest that is built into ftd: a TCP key-value service and a memory load on a bare machine. It runs at CPL 3 from
//! the first instruction, without interrupts: it polls its network card, and gives the processor up when idle.
//!
//! vCPU 0 serves the network; the others run the memory load.

#![no_std]
#![no_main]

extern crate alloc;

#[expect(unused_imports, reason = "the service for Linux guests uses the rest")]
mod kv;
#[path = "../../ram/src/layout.rs"]
#[expect(dead_code, reason = "the host uses the rest")]
mod layout;
mod load;
mod net;
mod platform;
mod rt;
mod service;
mod virtio;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

/// Set when vCPU 0 has prepared what all share.
static READY: AtomicBool = AtomicBool::new(false);

/// Every vCPU's program; called by the entry code with what the machine put into the registers.
///
/// # Safety
/// `cmdline` has `cmdline_bytes` readable bytes; `vcpu` is this vCPU's own number.
unsafe extern "C" fn main(vcpu: u64, cmdline: *const u8, cmdline_bytes: u64) -> ! {
    let vcpus = platform::vcpus().max(1);
    if vcpu > 0 {
        while !READY.load(Ordering::Acquire) {
            platform::idle(1000);
        }
        load::run_worker(load::Worker::new(vcpu as usize, vcpu - 1, vcpus - 1));
    }
    // SAFETY: as the caller promises.
    let cmdline = unsafe { core::slice::from_raw_parts(cmdline, cmdline_bytes as usize) };
    let store_bytes_max = share_out_memory(vcpus);
    READY.store(true, Ordering::Release);

    let settings = match net::Settings::parse(cmdline) {
        Ok(settings) => settings,
        Err(why) => panic!("command line {:?}: {why}", cmdline.escape_ascii()),
    };
    let _ = writeln!(platform::Console, "guest: {vcpus} vCPUs, {settings}");
    let worker = (vcpus == 1).then(|| load::Worker::new(0, 0, 1));
    service::Server::new(&settings, store_bytes_max, worker).run()
}

/// Divides the memory between image and stacks: a quarter, but not above 64 MiB, for the heap, the rest for the load.
/// Returns how many bytes of the heap the store may have.
fn share_out_memory(vcpus: u64) -> usize {
    unsafe extern "C" {
        static image_end: u8;
    }
    const HEAP_MAX: usize = 64 << 20;
    let start = (&raw const image_end) as usize;
    let stacks = vcpus * layout::FREESTANDING_STACK_SIZE;
    let end = platform::ram_bytes().min(layout::LOW_RAM_END).saturating_sub(stacks) as usize;
    let heap = (end.saturating_sub(start) / 4).min(HEAP_MAX) & !(layout::PAGE_SIZE - 1);
    // SAFETY: the memory from the image's end to the stacks is nobody's; it is given away once, in two parts.
    unsafe {
        rt::init_heap(start, start + heap);
        load::init(start + heap, end);
    }
    heap / 2
}
