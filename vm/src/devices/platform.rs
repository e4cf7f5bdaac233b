//! The platform device: clock, idle, power, console and identity registers at [`layout::PLATFORM_BASE`], for guests
//! that run at CPL 3 without firmware, port I/O or interrupts. Registers are 8 bytes wide but for the console.
//!
//! [`layout::PLATFORM_BASE`]: ft_ram::layout::PLATFORM_BASE

use super::counters::{Counters, add};
use super::error::DeviceStateError;
use super::host::DeviceEvent;
use super::idle::Idle;
use super::serial::Console;
use ft_ram::layout::platform::{CLOCK_NS, CONSOLE, IDLE_US, POWER_OFF, RAM_BYTES, RESET, VCPUS};
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
    clock: GuestClock,
    vcpus: u8,
    ram_bytes: u64,
    idle: Arc<Idle>,
    console: Console,
    counters: Arc<Counters>,
}

/// Where guest time comes from.
pub(crate) enum GuestClock {
    /// Guest time minus the host's CLOCK_MONOTONIC, modulo 2^64. It only changes when a state is restored, so that the
    /// guest's clock is as monotonic, on one vCPU and between them, as the host's.
    Host(AtomicU64),
    /// The engine's virtual time, which the engine also keeps across captures.
    Engine(Arc<AtomicU64>),
}

impl GuestClock {
    /// Guest time that begins now.
    pub(crate) fn host() -> Self {
        Self::Host(AtomicU64::new(monotonic_ns().wrapping_neg()))
    }

    fn now_ns(&self) -> u64 {
        match self {
            Self::Host(offset_ns) => monotonic_ns().wrapping_add(offset_ns.load(Ordering::Relaxed)),
            Self::Engine(now_ns) => now_ns.load(Ordering::Relaxed),
        }
    }
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
        clock: GuestClock,
        idle: Arc<Idle>,
        console: Console,
        counters: Arc<Counters>,
    ) -> Self {
        Self { clock, vcpus, ram_bytes, idle, console, counters }
    }

    /// Guest time.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Reads a register; false when there is none of that width.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let Ok(data) = <&mut [u8; 8]>::try_from(data) else { return false };
        let value = match offset {
            CLOCK_NS => self.clock.now_ns(),
            VCPUS => u64::from(self.vcpus),
            RAM_BYTES => self.ram_bytes,
            _ => return false,
        };
        *data = value.to_le_bytes();
        true
    }

    /// Writes a register. IDLE_US blocks, unless the engine keeps time: then it is left to it.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceEvent> {
        match (offset, data) {
            (CONSOLE, [_]) => drop(self.console.clone().write(data)),
            (IDLE_US, _) if data.len() == 8 => {
                let mut us = [0; 8];
                us.copy_from_slice(data);
                let us = u64::from_le_bytes(us);
                match self.clock {
                    GuestClock::Host(_) => _ = self.idle.wait(Duration::from_micros(us)),
                    GuestClock::Engine(_) => return Some(DeviceEvent::Idle { us }),
                }
            }
            (POWER_OFF, _) if data.len() == 8 => return Some(DeviceEvent::PoweredOff),
            (RESET, _) if data.len() == 8 => return Some(DeviceEvent::Reset),
            _ => add(&self.counters.unknown_io, 1),
        }
        None
    }

    pub(crate) fn capture(&self) -> PlatformState {
        PlatformState { guest_time_ns: self.clock.now_ns() }
    }

    /// An engine that keeps time has taken its part of the state before.
    pub(crate) fn check(&self, state: &PlatformState) -> Result<(), DeviceStateError> {
        let PlatformState { guest_time_ns } = *state;
        if guest_time_ns > GUEST_TIME_MAX_NS {
            return Err(DeviceStateError::GuestTime { guest_time_ns });
        }
        match &self.clock {
            GuestClock::Engine(now_ns) if now_ns.load(Ordering::Relaxed) != guest_time_ns => {
                let virtual_ns = now_ns.load(Ordering::Relaxed);
                Err(DeviceStateError::TwoTimes { guest_time_ns, virtual_ns })
            }
            _ => Ok(()),
        }
    }

    /// Guest time goes on from the captured one.
    pub(crate) fn restore(&self, state: &PlatformState) {
        if let GuestClock::Host(offset_ns) = &self.clock {
            offset_ns.store(state.guest_time_ns.wrapping_sub(monotonic_ns()), Ordering::Relaxed);
        }
    }
}
