//! Fuzz targets: what ftd does with bytes that the guest, the peer, a disk, a file or a client has made. Each is a
//! function of bytes that panics if something is wrong, and real objects to begin with. The engine that makes inputs is
//! in the binary; the tests run every seed, every finding of earlier days, and some mutations of them.

mod input;
mod targets;

pub use input::FuzzInput;

/// Something that takes bytes from outside.
pub struct FuzzTarget {
    /// Its name, and that of its directories.
    pub name: &'static str,
    /// Takes an input. A panic is a finding, and so is an input that takes long.
    pub run: fn(&[u8]),
    /// Inputs that are made of real objects.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! all {
    ($($name:ident),* $(,)?) => {
        &[$(FuzzTarget {
            name: stringify!($name),
            run: targets::$name::run,
            seeds: targets::$name::seeds,
        }),*]
    };
}

/// All of them.
pub const TARGETS: &[FuzzTarget] = all![
    arbiter_message,
    boot_child,
    boot_disk,
    boot_file,
    certificate,
    config_text,
    control_request,
    disk_journal,
    disk_maps,
    guest_code,
    guest_devices,
    machine_state,
    peer_stream,
    protocol_core,
    qcow2_file,
    recording_file,
    wire_frames,
];

/// The one of this name.
pub fn target(name: &str) -> Option<&'static FuzzTarget> {
    TARGETS.iter().find(|target| target.name == name)
}
