//! End-to-end and simulation tests of ftd, and the tools they use: the client that checks every answer ([`kv`]), the
//! proxy that harms the stream between the hosts ([`proxy`]), the witness on the client's wire ([`wire`]), and the
//! benchmark ([`mod@bench`]). [`ledger`] is about what a guest has on its disk, [`load`] loads it;
//! [`bank`] is a client of the PostgreSQL in a guest.
//!
//! The client knows each answer from those before it. A service that has forgotten acknowledged writes is found out:
//!
//! ```
//! use ft_tests::kv::history::{Key, Operation, Verdict};
//!
//! let mut key = Key::new("visits".into());
//! for answer in ["INT 1", "INT 2", "INT 3"] {
//!     assert_eq!(key.check(&Operation::Increment, answer), Verdict::Right);
//! }
//! assert_eq!(key.check(&Operation::Get, "VALUE 1"), Verdict::Lost { writes: 2 });
//! ```

pub mod bad_disk;
pub mod bank;
pub mod bench;
pub mod kv;
pub mod ledger;
pub mod load;
pub mod proxy;
pub mod wire;
