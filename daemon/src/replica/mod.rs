//! One replica of the VM: carries out the protocol core's commands, and reports events to it.
//!
//! ```text
//!                 control socket      arbiter thread      listener, dialler
//!                       \                  |                  /
//!                        +------> executor (this room) <-----+
//!                                 core: events -> commands -> hands
//!   primary:                     /         |           \                       backup:
//!   keeper --captures--> shipper         release     acks, heartbeats   reader --frames--> receiver --> applier
//!     (owns the machine)         |      (netbuf)          |                                  |
//!                                +--> pairing --> outbox --> writer thread                 sealed --> event
//!   replay mode: keeper --logs--> shipper                              receiver --logs--> keeper (executes them)
//! ```
//!
//! [`Executor`] says which command takes which verbs of its [`Hands`]; `real` are the daemon's hands, and the simulator
//! has its own. The executor is one thread; it never waits for the peer or for the arbiter. `input` translates the
//! rooms' news for the core.

mod arbiter_thread;
mod executor;
mod hands;
mod input;
mod real;
mod record_thread;

pub use arbiter_thread::MakeArbiter;
pub use executor::Executor;
pub use hands::{Closing, Hands, Verification};
pub use input::Input;
pub use real::{Parts, StartError, TellLackBeside};

use crate::role::{Event, Exit, Policy};
use real::RealHands;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The core is given the time at least this often.
const TICK: Duration = Duration::from_millis(2);

/// Runs a replica until it ends, and says how it ended. The caller's thread becomes the executor.
pub fn run(policy: Policy, parts: Parts) -> Result<Exit, StartError> {
    let (mut hands, inputs) = RealHands::new(parts)?;
    let mut executor = Executor::new(policy, &hands);
    let exit = until_exit(&mut executor, &mut hands, &inputs);
    hands.farewell(executor.view());
    Ok(exit)
}

fn until_exit(executor: &mut Executor, hands: &mut RealHands, inputs: &Receiver<Input>) -> Exit {
    let mut next_tick = Instant::now();
    loop {
        if let Some(exit) = executor.exit() {
            return exit;
        }
        let now = Instant::now();
        if now >= next_tick {
            next_tick = now + TICK;
            hands.feed_watchdog();
            executor.take(Event::Tick, hands);
            continue;
        }
        match inputs.recv_timeout(next_tick - now) {
            Ok(input) => {
                // The ticket lives until the event is handled.
                let (event, _ticket) = hands.take_in(input);
                if let Some(event) = event {
                    executor.take(event, hands);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the hands hold a sender themselves"),
        }
    }
}
