//! System calls that this process's threads were refused: a fault of ftd's, or somebody else's code in it.

use ft_confine::{RefusedCall, refused};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells of each kind of refused call once.
#[derive(Default)]
pub struct Refusals(AtomicU64);

impl Refusals {
    /// How many there have been. Those that are new are logged.
    pub fn look(&self) -> Vec<RefusedCall> {
        let calls = refused();
        let kinds = calls.len() as u64;
        if self.0.fetch_max(kinds, Ordering::Relaxed) < kinds {
            for call in &calls {
                tracing::error!(times = call.count, "refused a system call: {call}; {MEANING}");
            }
        }
        calls
    }
}

const MEANING: &str = "this is a fault of ftd's, or somebody makes it run his code";

/// For the operator, if there have been any.
pub fn warning(calls: &[RefusedCall]) -> Option<String> {
    let (last, count) = (calls.last()?, calls.iter().map(|call| call.count).sum::<u64>());
    Some(format!("refused {count} system calls of confined threads, such as: {last}; {MEANING}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_confine::ThreadKind;

    #[test]
    fn a_warning_counts_them_all_and_names_one() {
        assert_eq!(warning(&[]), None);
        let call = |kind, number, count| RefusedCall { kind, number, count };
        let calls = [call(ThreadKind::Disk, 257, 2), call(ThreadKind::Link, 41, 1)];
        let text = warning(&calls).unwrap();
        assert!(
            text.starts_with("refused 3 system calls of confined threads, such as: a thread for the peer's")
        );
        assert!(text.contains("system call 41 (socket)"), "{text}");
    }
}
