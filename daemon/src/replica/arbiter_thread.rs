//! The thread that talks to the arbiter. Shared storage can hang for as long as it likes; the rest of the daemon does not
//! wait for it.

use super::Input;
use crate::role::Event;
use ft_arbiter::{Arbiter, Cell};
use std::sync::mpsc::{Sender, channel};

/// What the arbiter is asked.
pub enum Question {
    /// What does the cell say?
    Read,
    /// Compare and set.
    Set {
        /// Generation that the cell must have.
        expected: Option<u64>,
        /// What it becomes.
        new: Cell,
    },
}

/// Starts the thread; it ends when the sender is dropped.
pub fn start(mut arbiter: Box<dyn Arbiter>, inputs: Sender<Input>) -> std::io::Result<Sender<Question>> {
    let (sender, questions) = channel();
    std::thread::Builder::new().name("ftd-arbiter".into()).spawn(move || {
        while let Ok(question) = questions.recv() {
            let event = match question {
                Question::Read => Event::CellRead(arbiter.read()),
                Question::Set { expected, new } => Event::CellSet(arbiter.compare_and_set(expected, new)),
            };
            if inputs.send(Input::Event(event)).is_err() {
                return;
            }
        }
    })?;
    Ok(sender)
}
