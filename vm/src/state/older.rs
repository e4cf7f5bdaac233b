//! What version 4 of the state cannot say. There no network card offers offloads, so that frames have no header; and
//! only disks tell, and are told, how far they want to be left alone (EVENT_IDX).

use super::{EngineState, MachineState, STATE_OLDEST, StateError};
use crate::devices::{NET_HEADER_BYTES, VirtioState, plain_packet};
use virtio_bindings::bindings::virtio_config::{VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_bindings::virtio_ids::{VIRTIO_ID_NET, VIRTIO_ID_RNG};

/// What every device of version 4 offers.
const COMMON: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The state as version 4 has it, if nothing is lost by that.
pub(super) fn from_newer(state: &MachineState) -> Result<MachineState, StateError> {
    let lost = |field| StateError::NotCarried { field, version: STATE_OLDEST };
    let MachineState { spec, engine, devices, .. } = state;
    if !devices.virtio.iter().all(is_known) {
        return Err(lost("features of a network card or rng"));
    }
    let mut engine = engine.clone();
    if let EngineState::Soft(soft) = &mut engine {
        for packet in &mut soft.outbox {
            let plain = packet.strip_prefix(&[0; NET_HEADER_BYTES]).map(<[u8]>::to_vec);
            *packet = plain.ok_or(lost("offloads of a frame that waits to be sent"))?;
        }
    }
    Ok(MachineState {
        spec: spec.clone(),
        engine,
        devices: devices.clone(),
        #[cfg(feature = "next-version")]
        mark: state.mark,
    })
}

/// Version 4 has the features that the driver took.
fn is_known(device: &VirtioState) -> bool {
    let own = match device.device_id {
        VIRTIO_ID_NET => 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU,
        VIRTIO_ID_RNG => 0,
        _ => return true,
    };
    device.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 || device.driver_features & !(COMMON | own) == 0
}

/// A state that came as version 4.
pub(super) fn to_newer(mut state: MachineState) -> MachineState {
    if let EngineState::Soft(soft) = &mut state.engine {
        for frame in &mut soft.outbox {
            *frame = plain_packet(frame);
        }
    }
    state
}
