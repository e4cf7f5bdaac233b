//! Waiting for what may take longer than systemd's watchdog allows.

use super::HandsError;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often the watchdog is fed at least: it tells systemd as often as it has to.
const FEED_EVERY: Duration = Duration::from_millis(50);

/// Waits for an answer, and feeds the watchdog meanwhile.
pub(super) fn wait_feeding<T>(answer: &Receiver<T>, feed: impl Fn()) -> Result<T, HandsError> {
    loop {
        match answer.recv_timeout(FEED_EVERY) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => feed(),
            Err(RecvTimeoutError::Disconnected) => return Err(HandsError::KeeperGone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn the_watchdog_is_fed_until_the_answer_is_there() {
        let (reply, answer) = sync_channel(1);
        let fed = Cell::new(0);
        let answered = wait_feeding(&answer, || {
            fed.set(fed.get() + 1);
            if fed.get() == 3 {
                reply.send("booted").unwrap();
            }
        });
        assert_eq!((answered.unwrap(), fed.get()), ("booted", 3));
    }

    #[test]
    fn a_keeper_that_is_gone_is_not_waited_for() {
        let (reply, answer) = sync_channel::<()>(1);
        drop(reply);
        assert!(matches!(wait_feeding(&answer, || ()), Err(HandsError::KeeperGone)));
    }
}
