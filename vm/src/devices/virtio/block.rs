//! virtio-block on a raw image, read-only. Requests are bounded in size and served at once from the host's file.
//!
//! A host's disk can be slow, and a notification bring many requests. Once a stop of the machine is asked for, the one
//! under way is the last: the others stay in the guest's ring, which is a part of the machine's state, and are served
//! when the machine goes on, here or elsewhere.

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::Backend;
use crate::devices::counters::{Counters, add, count};
use crate::spec::SECTOR_BYTES;
use ft_ram::GuestMemory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const QUEUE_SIZE: u16 = 128;
/// Header and status each take a descriptor.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SEGMENT_BYTES_MAX: u32 = 32 << 10;
/// No request within the announced limits is longer; it bounds the work of one notification.
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// type, reserved, sector.
const HEADER_BYTES: usize = 16;

pub(crate) struct Block {
    index: usize,
    image: File,
    bytes: u64,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; 16],
    counters: Arc<Counters>,
    /// A stop of the machine is asked for.
    stopping: Arc<AtomicBool>,
    /// Reads of this image that the host refused.
    host_errors: AtomicU64,
    chain: Chain,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Block {
    /// Disk `index`, whose image has `bytes` bytes.
    pub(crate) fn new(
        index: usize,
        image: File,
        bytes: u64,
        counters: Arc<Counters>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let name = format!("ftd-disk-{index}");
        id[..name.len()].copy_from_slice(name.as_bytes());
        // capacity in sectors, size_max, seg_max (virtio 1.2 §5.2.4).
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(bytes / SECTOR_BYTES).to_le_bytes());
        config[8..12].copy_from_slice(&SEGMENT_BYTES_MAX.to_le_bytes());
        config[12..].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        let (host_errors, chain, header, data) = Default::default();
        Self { index, image, bytes, id, config, counters, stopping, host_errors, chain, header, data }
    }

    /// Serves the request in `self.chain`; says how many bytes were written into it.
    fn serve(&mut self, memory: &GuestMemory) -> Result<u32, Malformed> {
        let shape = Malformed::Shape { head: self.chain.head };
        // The status byte is the last writable one, the header the first readable 16.
        let room = self.chain.writable_bytes().checked_sub(1).ok_or(shape)?;
        self.header.clear();
        if self.chain.readable_bytes() > HEADER_BYTES as u64 + REQUEST_BYTES_MAX {
            return Err(shape);
        }
        self.chain.read_all(memory, &mut self.header)?;
        let header = self.header.first_chunk::<HEADER_BYTES>().ok_or(shape)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);

        add(&self.counters.block_requests, 1);
        let (status, written) = match kind {
            VIRTIO_BLK_T_IN => match self.read(memory, sector, room)? {
                true => (VIRTIO_BLK_S_OK, room),
                false => (VIRTIO_BLK_S_IOERR, 0),
            },
            VIRTIO_BLK_T_GET_ID => {
                let bytes = self.id.len().min(room as usize);
                self.chain.write_at(memory, 0, &self.id[..bytes])?;
                (VIRTIO_BLK_S_OK, bytes as u64)
            }
            VIRTIO_BLK_T_FLUSH => (VIRTIO_BLK_S_OK, 0),
            VIRTIO_BLK_T_OUT => (VIRTIO_BLK_S_IOERR, 0),
            _ => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        if status != VIRTIO_BLK_S_OK {
            add(&self.counters.block_errors, 1);
        }
        self.chain.write_at(memory, room as usize, &[status as u8])?;
        // At most REQUEST_BYTES_MAX, so neither the sum nor the conversion can fail.
        Ok((written + 1) as u32)
    }

    /// Reads `bytes` from the image into the chain; false when the request or the host's read fails.
    fn read(&mut self, memory: &GuestMemory, sector: u64, bytes: u64) -> Result<bool, Malformed> {
        let start = sector.checked_mul(SECTOR_BYTES);
        let inside = start.and_then(|start| start.checked_add(bytes)).is_some_and(|end| end <= self.bytes);
        let (Some(start), true) = (start, inside) else { return Ok(false) };
        if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > REQUEST_BYTES_MAX {
            return Ok(false);
        }
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(u64::from(SEGMENT_BYTES_MAX)) as usize;
            self.data.resize(now, 0);
            if let Err(error) = self.image.read_exact_at(&mut self.data, start + done) {
                add(&self.counters.block_host_errors, 1);
                if count(&self.host_errors) {
                    let (disk, offset) = (self.index, start + done);
                    tracing::error!(disk, offset, bytes = now, "cannot read a disk's image: {error}");
                }
                return Ok(false);
            }
            self.chain.write_at(memory, done as usize, &self.data)?;
            done += now as u64;
        }
        Ok(true)
    }
}

impl Backend for Block {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];
    const NAME: &'static str = "block";

    fn features(&self) -> u64 {
        [VIRTIO_BLK_F_RO, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX]
            .iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let ring = &mut rings[queue];
        let requests = ring.available(memory)?;
        for served in 0..requests {
            if served > 0 && self.stopping.load(Ordering::Relaxed) {
                break;
            }
            if !ring.pop(memory, &mut self.chain)? {
                break;
            }
            let written = self.serve(memory)?;
            ring.complete(memory, &self.chain, written)?;
        }
        Ok(requests != 0 && ring.wants_interrupt(memory)?)
    }

    fn serve_left(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        if rings[0].ready() { self.notify(0, rings, memory) } else { Ok(false) }
    }
}
