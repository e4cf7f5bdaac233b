//! virtio-rng: random bytes from the host's getrandom(2), or from wherever the engine takes them.

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::Backend;
use crate::devices::host::Random;
use ft_ram::GuestMemory;

/// At most this many bytes for one request; the driver asks again for more.
const REQUEST_MAX: usize = 4096;
const QUEUE_SIZE: u16 = 64;

pub(crate) struct Rng {
    source: Box<dyn Random>,
    chain: Chain,
}

impl Rng {
    pub(crate) fn new(source: Box<dyn Random>) -> Self {
        Self { source, chain: Chain::default() }
    }
}

impl Backend for Rng {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];
    const NAME: &'static str = "rng";

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let Self { source, chain } = self;
        let ring = &mut rings[queue];
        let mut random = [0; REQUEST_MAX];
        let mut served = false;
        // A driver has few requests at a time; one that goes on and on asks again later.
        for _ in 0..QUEUE_SIZE {
            for _ in 0..ring.available(memory)? {
                if !ring.pop(memory, chain)? {
                    break;
                }
                if !chain.readable.is_empty() {
                    return Err(Malformed::Shape { head: chain.head });
                }
                let wanted = chain.writable_bytes().min(REQUEST_MAX as u64) as usize;
                let got = source.fill(&mut random[..wanted]).min(wanted);
                chain.write_at(memory, 0, &random[..got])?;
                ring.complete(memory, chain, got as u32)?;
                served = true;
            }
            if !ring.rearm(memory)? {
                break;
            }
        }
        Ok(served && ring.wants_interrupt(memory)?)
    }
}

/// The kernel's random bytes; fewer than asked for only when a signal came in between.
pub(crate) struct HostRandom;

impl Random for HostRandom {
    fn fill(&mut self, bytes: &mut [u8]) -> usize {
        // SAFETY: pointer and length are of one exclusively borrowed slice.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        usize::try_from(got).unwrap_or(0)
    }
}
