//! The thread that talks to the arbiter. Shared storage can hang for any length of time; the rest of the daemon does
//! not wait for it.

use crate::outlet::Outlet;
use ft_arbiter::{Arbiter, ArbiterError, Cell, Outcome};
use std::sync::mpsc::{Sender, channel};

/// What the arbiter is asked.
pub enum Question {
    /// What does the cell say?
    Read,
    /// What does it say, and could it be set?
    Probe,
    /// Compare and set.
    Set {
        /// Generation that the cell must have.
        expected: Option<u64>,
        /// What it becomes.
        new: Cell,
    },
}

/// What it answers.
pub enum CellNews {
    /// The cell, or why it could not be read.
    Read(Result<Option<Cell>, ArbiterError>),
    /// What became of a compare-and-set.
    Set(Outcome),
}

/// Starts the thread; it ends when the sender is dropped.
pub fn start(mut arbiter: Box<dyn Arbiter>, answers: Outlet<CellNews>) -> std::io::Result<Sender<Question>> {
    let (sender, questions) = channel();
    std::thread::Builder::new().name("ftd-arbiter".into()).spawn(move || {
        while let Ok(question) = questions.recv() {
            let answer = match question {
                Question::Read => CellNews::Read(arbiter.read()),
                Question::Probe => CellNews::Read(arbiter.probe()),
                Question::Set { expected, new } => CellNews::Set(arbiter.compare_and_set(expected, new)),
            };
            if answers.tell(answer).is_err() {
                return;
            }
        }
    })?;
    Ok(sender)
}
