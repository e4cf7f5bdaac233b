//! The daemon's face to its operator: a Unix socket with JSON lines (`api`, `server`, and `desk` behind it), the same
//! in TLS for operators on other machines (`remote`), who may do what their certificate says (`caller`), the client for
//! both (`client`, `show`), metrics over HTTP, and signals.

pub mod api;
mod asking;
pub mod caller;
pub mod client;
mod clients;
mod desk;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod http;
pub mod remote;
mod secured;
pub mod server;
pub mod show;
mod signals;
mod wish;

pub use asking::Asking;
pub use clients::clients_thread;
pub use desk::Desk;
pub use signals::{reload_on_signals, stop_on_signals};
pub use wish::{Tuning, Wish, WishError, WishReply};
