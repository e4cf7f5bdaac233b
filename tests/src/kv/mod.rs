//! The key-value guests seen from outside: a client that knows every right answer, its history check, and the
//! measurements that the demo and the fault tests report.

pub mod connection;
pub mod history;
pub mod measure;
pub mod meter;
#[path = "../../../vm/guest/src/kv/mod.rs"]
pub mod protocol;
pub mod run;
#[path = "../../../scripts/guest/service/serve.rs"]
pub mod serve;
pub mod shared;
pub mod trace;
