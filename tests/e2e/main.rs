//! End-to-end tests: the programs as an operator runs them, on two hosts that share one kernel.
//!
//! They need root, /dev/kvm, TAP devices and `ip`; where these are missing each test says that it was skipped. With
//! FTD_TEST_ENGINE=soft the VMs run on the software engine, which needs no /dev/kvm, and with FTD_TEST_MODE=replay on
//! that engine in replay mode. The programs lie next to the test, or in FTD_BIN_DIR.

mod arbiter;
mod bulk;
mod cold_start;
mod control;
mod copy;
mod disk_overlay;
mod disk_return;
mod disk_verify;
mod disks;
mod etcd;
mod fixture;
mod guest;
mod image;
mod loss;
mod metrics;
mod network;
mod peer;
mod recording;
mod refusal;
mod rehearsal;
mod remote;
mod replay;
mod scrub;
mod service;
mod services;
mod survey;
mod switchover;
mod time;
mod tls;
