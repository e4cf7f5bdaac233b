//! One cell that several services keep together: a majority of them decides, so that the loss of a minority changes
//! nothing. It is CASPaxos (Rystsov, "CASPaxos: Replicated State Machines without logs", 2018): a register for each VM,
//! which nodes change in rounds that are ordered by [`Ballot`]s. A node is the [`Proposer`], each service keeps a
//! [`Register`]; both are pure. [`MajorityArbiter`] is a node's way to them.

mod ballot;
mod client;
mod members;
mod proposer;
mod register;
mod roll;
#[cfg(test)]
mod tests;

pub use ballot::Ballot;
pub use client::{MajorityArbiter, MajorityPace};
pub use members::{BadMembers, MEMBERS_MAX, MemberSet};
pub use proposer::{CellIntent, Finding, Proposal, Proposer};
pub use register::{AcceptedCell, MemberAnswer, MemberAsk, Register, SetCell};
pub use roll::{MemberRoll, MemberStanding};
