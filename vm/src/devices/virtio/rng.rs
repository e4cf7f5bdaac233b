//! virtio-rng: random bytes from the host's getrandom(2).

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::Backend;
use crate::memory::GuestMemory;

/// At most this many bytes for one request; the driver asks again for more.
const REQUEST_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Rng {
    chain: Chain,
}

impl Backend for Rng {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[64];
    const NAME: &'static str = "rng";

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let Self { chain } = self;
        let ring = &mut rings[queue];
        let mut random = [0; REQUEST_MAX];
        let requests = ring.available(memory)?;
        for _ in 0..requests {
            if !ring.pop(memory, chain)? {
                break;
            }
            if !chain.readable.is_empty() {
                return Err(Malformed::Shape { head: chain.head });
            }
            let wanted = chain.writable_bytes().min(REQUEST_MAX as u64) as usize;
            let got = fill_random(&mut random[..wanted]);
            chain.write_at(memory, 0, &random[..got])?;
            ring.complete(memory, chain, got as u32)?;
        }
        Ok(requests != 0 && ring.wants_interrupt(memory)?)
    }
}

/// Fills `bytes` from the kernel; says how many it gave, which is less than all only when a signal came in between.
fn fill_random(bytes: &mut [u8]) -> usize {
    // SAFETY: pointer and length are of one exclusively borrowed slice.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(got).unwrap_or(0)
}
