//! The daemon's face to its operator: a Unix socket with JSON lines, the client for it, and metrics over HTTP.

pub mod api;
pub mod client;
pub mod http;
pub mod server;
pub mod show;
