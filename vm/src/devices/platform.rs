//! The platform device: clock, idle, power, console and identity registers at [`layout::PLATFORM_BASE`], for guests
//! that run at CPL 3 without firmware, port I/O or interrupts. Registers are 8 bytes wide but for the console.
//!
//! [`layout::PLATFORM_BASE`]: crate::layout::PLATFORM_BASE

use super::counters::{Counters, add};
use super::idle::Idle;
use super::serial::Console;
use super::{DeviceEvent, StateError};
use crate::layout::platform::{CLOCK_NS, CONSOLE, IDLE_US, POWER_OFF, RAM_BYTES, RESET, VCPUS};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A guest time beyond this (292 years) is no time that a machine reached, and would let the clock wrap.
const GUEST_TIME_MAX_NS: u64 = i64::MAX as u64;

/// The platform device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    /// Guest time at the capture.
    pub guest_time_ns: u64,
}

pub(crate) struct Platform {
    /// Guest time minus the host's CLOCK_MONOTONIC, modulo 2^64. It only changes when a state is restored, so that the
    /// guest's clock is as monotonic, on one vCPU and between them, as the host's.
    offset_ns: AtomicU64,
    vcpus: u8,
    ram_bytes: u64,
    idle: Arc<Idle>,
    console: Console,
    counters: Arc<Counters>,
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux, and the timespec is ours");
    (now.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec() as u64)
}

impl Platform {
    pub(crate) fn new(
        vcpus: u8,
        ram_bytes: u64,
        idle: Arc<Idle>,
        console: Console,
        counters: Arc<Counters>,
    ) -> Self {
        let offset_ns = AtomicU64::new(monotonic_ns().wrapping_neg());
        Self { offset_ns, vcpus, ram_bytes, idle, console, counters }
    }

    fn guest_time_ns(&self) -> u64 {
        monotonic_ns().wrapping_add(self.offset_ns.load(Ordering::Relaxed))
    }

    /// Reads a register; false when there is none of that width.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let Ok(data) = <&mut [u8; 8]>::try_from(data) else { return false };
        let value = match offset {
            CLOCK_NS => self.guest_time_ns(),
            VCPUS => u64::from(self.vcpus),
            RAM_BYTES => self.ram_bytes,
            _ => return false,
        };
        *data = value.to_le_bytes();
        true
    }

    /// Writes a register. IDLE_US blocks.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceEvent> {
        match (offset, data) {
            (CONSOLE, [_]) => drop(self.console.clone().write(data)),
            (IDLE_US, _) if data.len() == 8 => {
                let mut us = [0; 8];
                us.copy_from_slice(data);
                self.idle.wait(Duration::from_micros(u64::from_le_bytes(us)));
            }
            (POWER_OFF, _) if data.len() == 8 => return Some(DeviceEvent::PoweredOff),
            (RESET, _) if data.len() == 8 => return Some(DeviceEvent::Reset),
            _ => add(&self.counters.unknown_io, 1),
        }
        None
    }

    pub(crate) fn capture(&self) -> PlatformState {
        PlatformState { guest_time_ns: self.guest_time_ns() }
    }

    pub(crate) fn check(state: &PlatformState) -> Result<(), StateError> {
        if state.guest_time_ns > GUEST_TIME_MAX_NS {
            return Err(StateError::GuestTime { guest_time_ns: state.guest_time_ns });
        }
        Ok(())
    }

    /// Guest time goes on from the captured one.
    pub(crate) fn restore(&self, state: &PlatformState) {
        self.offset_ns.store(state.guest_time_ns.wrapping_sub(monotonic_ns()), Ordering::Relaxed);
    }
}
