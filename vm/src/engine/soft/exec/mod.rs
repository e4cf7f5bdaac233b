//! The instructions. `lower` turns a decoded instruction into an [`Op`]; each file knows one family.
//!
//! [`Op`]: super::op::Op

pub(crate) mod fpu;
pub(crate) mod system;
