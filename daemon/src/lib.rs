//! ftd: the daemon's library: configuration, roles, arbitration, control.
