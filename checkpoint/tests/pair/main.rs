//! A primary and a backup in one process, joined by bytes: what a history, damage on the way and a take-over leave.

mod damage;
mod history;
mod lazy;
mod log;
mod support;
