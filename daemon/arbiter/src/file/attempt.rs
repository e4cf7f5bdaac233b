//! An operation of the file arbiter as a state machine. Each step asks for one call on the storage and waits for the
//! answer, until the operation has its result. The driver decides when a call is made, and whether its answer comes
//! back.
//!
//! The steps are straight-line code in a future that waits for nothing but these answers. The compiler turns the future
//! into the state machine.

use super::directory::{Answer, Call};
use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// An operation under way. Dropped between two steps, it is a process that died there.
pub struct Attempt<T> {
    desk: Rc<Desk>,
    steps: Pin<Box<dyn Future<Output = T>>>,
}

/// What an operation needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// The answer to this call.
    Call(Call),
    /// Nothing: this is its result.
    Done(T),
}

/// Where the steps leave their call and find its answer.
#[derive(Debug, Default)]
pub(super) struct Desk {
    call: RefCell<Option<Call>>,
    answer: RefCell<Option<Answer>>,
}

impl Desk {
    /// Asks for a call and waits for its answer.
    pub(super) async fn perform(&self, call: Call) -> Answer {
        *self.call.borrow_mut() = Some(call);
        poll_fn(|_| self.answer.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)).await
    }
}

impl<T> Attempt<T> {
    pub(super) fn new<F: Future<Output = T> + 'static>(steps: impl FnOnce(Rc<Desk>) -> F) -> Self {
        let desk = Rc::new(Desk::default());
        Self { steps: Box::pin(steps(Rc::clone(&desk))), desk }
    }

    /// Begins the operation.
    ///
    /// # Panics
    ///
    /// If it has begun already.
    pub fn begin(&mut self) -> Next<T> {
        assert!(self.desk.call.borrow().is_none(), "an operation begins once");
        self.advance()
    }

    /// Goes on with the answer to the call that was asked for last.
    ///
    /// # Panics
    ///
    /// If nothing was asked for, or if the answer is one to another kind of call.
    pub fn resume(&mut self, answer: Answer) -> Next<T> {
        assert!(self.desk.call.borrow_mut().take().is_some(), "an answer follows a call");
        *self.desk.answer.borrow_mut() = Some(answer);
        self.advance()
    }

    fn advance(&mut self) -> Next<T> {
        match self.steps.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Next::Done(result),
            Poll::Pending => {
                let call = self.desk.call.borrow().clone();
                Next::Call(call.expect("the steps wait for nothing but the answer to a call"))
            }
        }
    }
}

impl<T> fmt::Debug for Attempt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("desk", &self.desk).finish_non_exhaustive()
    }
}
