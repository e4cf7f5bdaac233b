//! Log lines about strangers, who may come as often as they like: what was said a moment ago is counted, not repeated.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The same is said at most this often.
const AGAIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Complaints(Mutex<Option<Last>>);

struct Last {
    text: String,
    said: Instant,
    unsaid: u64,
}

/// What is to be said of a complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    /// It is new, or was said long ago; this many like the last one were not said.
    Aloud { unsaid: u64 },
    /// It was said a moment ago.
    Silent,
}

impl Complaints {
    /// How to say this.
    pub(super) fn voice(&self, text: &str, now: Instant) -> Voice {
        let mut last = self.0.lock();
        match &mut *last {
            Some(last) if last.text == text && now.saturating_duration_since(last.said) < AGAIN => {
                last.unsaid += 1;
                Voice::Silent
            }
            before => {
                let unsaid = before.as_ref().map_or(0, |last| last.unsaid);
                *before = Some(Last { text: text.to_owned(), said: now, unsaid: 0 });
                Voice::Aloud { unsaid }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_counted_and_what_is_new_is_said() {
        let (complaints, began) = (Complaints::default(), Instant::now());
        let after = |text, s| complaints.voice(text, began + Duration::from_secs(s));
        assert_eq!(after("a stranger", 0), Voice::Aloud { unsaid: 0 });
        assert_eq!(after("a stranger", 3), Voice::Silent);
        assert_eq!(after("a stranger", 9), Voice::Silent);
        assert_eq!(after("a stranger", 11), Voice::Aloud { unsaid: 2 });
        assert_eq!(after("another", 12), Voice::Aloud { unsaid: 0 });
    }
}
