//! The daemon's face to its operator: a Unix socket with JSON lines (`api`, `server`, and `desk` behind it), the client
//! for it (`client`, `show`), metrics over HTTP, and signals.

pub mod api;
mod asking;
pub mod client;
mod desk;
pub mod http;
pub mod server;
pub mod show;
mod signals;
mod wish;

pub use asking::Asking;
pub use desk::Desk;
pub use signals::{reload_on_signals, stop_on_signals};
pub use wish::{Tuning, Wish, WishError, WishReply};
