//! The view from outside: the hosts that spoke for the VM on the client's bridge, and the hosts that had the right to.
//!
//! [`capture`] reads the frames that arrive from each host's port, [`speakers`] condenses them into the sequence of
//! speakers, [`owners`] records the history of the arbiter's cell, and [`check`] holds one against the other. Nothing
//! here uses the daemon's own code, for a witness that shares the bug sees nothing; but [`asked`] does, since a cell in
//! a service or in etcd is seen by asking for it.

pub mod asked;
pub mod capture;
pub mod check;
pub mod frame;
pub mod owners;
pub mod speakers;
