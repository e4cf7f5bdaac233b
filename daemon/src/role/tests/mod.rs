//! What the simulator taught, as single claims about the core: each test failed before the bug it names was fixed.

mod backup;
mod cell;
mod fenced;
mod hanging;
mod images;
mod primary;
mod proof;
mod rehearsal;
mod saved;
mod start;
mod stop;

use super::*;
use ft_arbiter::{ArbiterError, Cell, CellId, Outcome, Place, Standby, Trouble};
use ft_checkpoint::wire::message::Standing;
use nix::errno::Errno;

const LEASE_US: Micros = 100_000;
const PAIRING_OF_A: u64 = 1_001;
/// The cell that node a founds.
const CELL: CellId = CellId(1_000);

/// A core with its clock.
struct Rig {
    core: Core,
    now: Micros,
    /// What a look at the arbiter shows; none: it does not answer.
    arbiter: Option<Option<Cell>>,
    /// A look is not answered yet.
    looking: bool,
}

fn cell(generation: u64, owner: Option<&str>, standby: Option<(&str, u64)>) -> Cell {
    Cell {
        id: CELL,
        generation,
        owner: owner.map(Into::into),
        standby: standby.map(|(node, pairing)| Standby { node: node.into(), pairing }),
    }
}

/// The operator's request of this test.
const REQUEST: RequestId = 1;

fn stop() -> Event {
    Event::StopRequested { request: REQUEST, vm: Leave::Move }
}

fn host_down() -> Event {
    Event::StopRequested { request: REQUEST, vm: Leave::HostDown { within_us: 50_000 } }
}

fn power_off(within_us: Micros) -> Event {
    Event::StopRequested { request: REQUEST, vm: Leave::PowerOff { within_us } }
}

/// A switchover that may last.
fn switchover() -> Event {
    Event::SwitchoverRequested { request: REQUEST, until: Micros::MAX }
}

/// Why the request was refused, if it was.
fn refusal(commands: &[Command]) -> Option<&RequestRefusal> {
    commands.iter().find_map(|command| match command {
        Command::Answer { request: REQUEST, outcome: Err(why) } => Some(why),
        _ => None,
    })
}

fn silence() -> ArbiterError {
    let trouble = Trouble::Storage { at: "listing", errno: Errno::EIO };
    ArbiterError { place: Place::File("/shared/web.cell".into()), trouble }
}

/// Node a's.
pub(super) fn policy() -> Policy {
    Policy {
        node: "a".into(),
        peer: "b".into(),
        start_as: StartAs::Primary,
        record: None,
        on_disk: OnDisk::Nothing,
        place: "file /shared/web.cell".into(),
        on_fenced: OnFenced::Rejoin,
        boot_lost_after_us: None,
        restart_on_reset: true,
        on_uplink_loss: OnUplinkLoss::Switchover,
        lease_us: LEASE_US,
        failure_timeout_us: 100_000,
        takeover_delay_us: 10_000,
        heartbeat_us: 20_000,
        arbiter_retry_us: 10_000,
        probe_us: 200_000,
        proof_us: 1_000_000,
        patience_us: 500_000,
        rehearsal_us: 60_000_000,
        pairing_wait_us_min: 1_000_000,
        pairing_wait_us_max: 600_000_000,
        nonce: 1_000,
    }
}

impl Rig {
    fn new(node: &str, peer: &str, start_as: StartAs) -> Self {
        Self::with_record(node, peer, start_as, None)
    }

    /// Node a, started again: it has acted on this generation.
    fn recorded(generation: u64) -> Self {
        Self::with_record("a", "b", StartAs::Primary, Some(NodeRecord { cell: CELL, generation }))
    }

    fn with_record(node: &str, peer: &str, start_as: StartAs, record: Option<NodeRecord>) -> Self {
        let policy = Policy { node: node.into(), peer: peer.into(), start_as, record, ..policy() };
        let (core, commands) = Core::new(policy, 0);
        assert_eq!(commands, [Command::ReadCell]);
        Self { core, now: 0, arbiter: Some(None), looking: false }
    }

    /// What follows, but for the looks at the arbiter, which are answered, and what the nodes tell each other of them.
    fn on(&mut self, event: Event) -> Vec<Command> {
        if let Event::CellRead(Ok(cell)) = &event {
            self.arbiter = Some(cell.clone());
        }
        let mut commands = Vec::new();
        self.core.handle(self.now, event, &mut commands);
        while let Some(at) = commands.iter().position(|command| *command == Command::ProbeCell) {
            commands.remove(at);
            self.looking = self.arbiter.is_none();
            if let Some(cell) = self.arbiter.clone() {
                self.core.handle(self.now, Event::CellRead(Ok(cell)), &mut commands);
            }
        }
        commands.retain(|command| !matches!(command, Command::SendStanding { .. } | Command::Record(_)));
        commands
    }

    /// The peer's word of its arbiter, over connection 7.
    fn hear(&mut self, cell: Option<Cell>) -> Vec<Command> {
        self.hear_on(7, cell)
    }

    fn hear_on(&mut self, conn: ConnId, cell: Option<Cell>) -> Vec<Command> {
        let said = self.word(cell);
        self.on(Event::Standing { conn, said })
    }

    /// What the peer says when its arbiter has just answered.
    fn word(&self, cell: Option<Cell>) -> Standing {
        Standing {
            place: "file /other/web.cell".into(),
            named: cell.as_ref().and_then(|cell| cell.standby.as_ref()).map(|standby| standby.pairing),
            cell: cell.map(|cell| (cell.id.0, cell.generation)),
            // The tests' clock begins at 0, which is no date.
            asked_us: Some(self.now.max(1)),
            trouble: None,
            unfit: None,
            asks: false,
            stamp_us: self.now,
        }
    }

    fn tick_after(&mut self, us: Micros) -> Vec<Command> {
        let mut commands = Vec::new();
        let end = self.now + us;
        while self.now < end {
            self.now = end.min(self.now + 5_000);
            commands.extend(self.on(Event::Tick));
        }
        commands
    }

    fn won(&mut self, cell: Cell) -> Vec<Command> {
        self.arbiter = Some(Some(cell.clone()));
        self.on(Event::CellSet(Outcome::Won(cell)))
    }

    fn not_attempted(&mut self) -> Vec<Command> {
        self.on(Event::CellSet(Outcome::NotAttempted(silence())))
    }

    /// Node a, primary, solo in generation 1.
    fn solo() -> Self {
        let mut rig = Self::new("a", "b", StartAs::Primary);
        rig.on(Event::CellRead(Ok(None)));
        assert!(rig.won(cell(1, Some("a"), None)).contains(&Command::Boot));
        rig
    }

    /// Node a, asking for the cell of generation 2 that names b.
    fn enlisting() -> Self {
        let mut rig = Self::solo();
        rig.on(Event::PeerHello { conn: 7, nonce: 9, generation: 0, held: None });
        rig.on(Event::FirstCaptured { pairing: PAIRING_OF_A });
        let commands = rig.on(Event::Ack { conn: 7, epoch: 1, stamp: rig.now });
        assert!(asks(&commands).is_some_and(|new| *new == cell(2, Some("a"), Some(("b", PAIRING_OF_A)))));
        rig
    }

    /// Node a, protected by b in generation 2 over connection 7.
    fn protected() -> Self {
        let mut rig = Self::enlisting();
        let named = cell(2, Some("a"), Some(("b", PAIRING_OF_A)));
        rig.won(named.clone());
        assert_eq!(rig.core.view().state, State::Resyncing, "the backup has not read the cell");
        rig.hear(Some(named));
        assert_eq!(rig.core.view().state, State::Protected);
        rig
    }

    /// Node a, without its peer, asking to be alone in generation 3.
    fn alone() -> Self {
        let mut rig = Self::protected();
        let commands = rig.lose(7);
        assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
        rig
    }

    /// Node b, which has sealed epoch 1 of pairing 5 over connection 7; the primary said that it owns generation 1.
    fn sealed() -> Self {
        let mut rig = Self::new("b", "a", StartAs::Backup);
        rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
        rig.on(Event::Welcomed { conn: 7, generation: 1, pairing: 5, how: PairingStart::Copy });
        rig.hear(Some(cell(1, Some("a"), None)));
        let commands = rig.on(Event::Sealed { conn: 7, pairing: 5, epoch: 1, stamp: 3 });
        assert_eq!(commands, [Command::Rehearse { epoch: 1 }]);
        let commands = rig.on(Event::Rehearsed { pairing: 5 });
        assert_eq!(commands, [Command::SendAck { conn: 7, epoch: 1, stamp: 3 }]);
        rig
    }

    /// As `sealed`, and the primary is lost and every promise over: the cell is being read.
    fn orphaned() -> Self {
        let mut rig = Self::sealed();
        let commands = rig.lose(7);
        assert!(commands.contains(&Command::ReadCell));
        let [Command::Verify { epoch }, ..] = commands[..] else { panic!("{commands:?}") };
        assert_eq!(rig.on(Event::Verified { epoch }), []);
        assert_eq!(rig.tick_after(2 * LEASE_US), []);
        rig
    }

    fn lose(&mut self, conn: ConnId) -> Vec<Command> {
        self.on(Event::PeerGone { conn, why: Gone::Lost("reset".into()) })
    }
}

fn asks(commands: &[Command]) -> Option<&Cell> {
    commands.iter().find_map(|command| match command {
        Command::CompareAndSet { new, .. } => Some(new),
        _ => None,
    })
}

fn exits(commands: &[Command]) -> bool {
    commands.iter().any(|command| matches!(command, Command::Exit(_)))
}

fn releases(commands: &[Command]) -> bool {
    commands.iter().any(|command| matches!(command, Command::Release { .. } | Command::EmitFreely))
}
