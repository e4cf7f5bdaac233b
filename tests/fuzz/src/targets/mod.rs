//! The targets, one file each.

pub(crate) mod arbiter_message;
pub(crate) mod boot_child;
pub(crate) mod boot_disk;
pub(crate) mod boot_file;
pub(crate) mod certificate;
pub(crate) mod config_text;
pub(crate) mod control_request;
pub(crate) mod disk_journal;
pub(crate) mod disk_maps;
pub(crate) mod guest_code;
pub(crate) mod guest_devices;
pub(crate) mod machine_state;
pub(crate) mod peer_stream;
pub(crate) mod protocol_core;
pub(crate) mod qcow2_file;
pub(crate) mod recording_file;
pub(crate) mod wire_frames;
