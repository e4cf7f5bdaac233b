//! A client of PostgreSQL that knows what it was promised: pgbench's transactions over one connection, each noted once
//! its COMMIT is answered; at the end all of them must be in the history, once, and the database whole.

mod check;
pub mod run;
#[cfg(test)]
mod tests;
pub mod wire;

pub use check::verify;
