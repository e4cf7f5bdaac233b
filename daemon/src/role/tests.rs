//! Lessons of the simulator, as single claims about the core. Each test failed before the bug it names was fixed.

use super::*;
use ft_arbiter::{ArbiterError, Cell, Outcome, Place, Standby, Trouble};
use nix::errno::Errno;

const LEASE_US: Micros = 100_000;
const PAIRING_OF_A: u64 = 1_001;

/// A core with its clock.
struct Rig {
    core: Core,
    now: Micros,
}

fn cell(generation: u64, owner: Option<&str>, standby: Option<(&str, u64)>) -> Cell {
    Cell {
        generation,
        owner: owner.map(Into::into),
        standby: standby.map(|(node, pairing)| Standby { node: node.into(), pairing }),
    }
}

fn silence() -> ArbiterError {
    let trouble = Trouble::Storage { at: "listing", errno: Errno::EIO };
    ArbiterError { place: Place::File("/shared/web.cell".into()), trouble }
}

impl Rig {
    fn new(node: &str, peer: &str, start_as: StartAs) -> Self {
        let policy = Policy {
            node: node.into(),
            peer: peer.into(),
            start_as,
            fresh: false,
            restart_on_reset: true,
            lease_us: LEASE_US,
            failure_timeout_us: 100_000,
            takeover_delay_us: 10_000,
            heartbeat_us: 20_000,
            arbiter_retry_us: 10_000,
            patience_us: 500_000,
            nonce: 1_000,
        };
        let (core, commands) = Core::new(policy, 0);
        assert_eq!(commands, [Command::ReadCell]);
        Self { core, now: 0 }
    }

    fn on(&mut self, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        self.core.handle(self.now, event, &mut commands);
        commands
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
        rig.on(Event::PeerHello { conn: 7, generation: 0, held: None });
        rig.on(Event::FirstCaptured { pairing: PAIRING_OF_A });
        let commands = rig.on(Event::Ack { conn: 7, epoch: 1, stamp: rig.now });
        assert!(asks(&commands).is_some_and(|new| *new == cell(2, Some("a"), Some(("b", PAIRING_OF_A)))));
        rig
    }

    /// Node a, protected by b in generation 2 over connection 7.
    fn protected() -> Self {
        let mut rig = Self::enlisting();
        rig.won(cell(2, Some("a"), Some(("b", PAIRING_OF_A))));
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
        rig.on(Event::Welcomed { conn: 7, generation: 1, pairing: 5, how: Welcome::Copy });
        let commands = rig.on(Event::Sealed { conn: 7, pairing: 5, epoch: 1, stamp: 3 });
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

#[test]
fn a_cell_read_before_the_peer_came_back_is_not_acted_on_after_it_is_lost_again() {
    let mut rig = Rig::orphaned();
    rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 5, how: Welcome::ResumeAfter(1) });
    rig.on(Event::Heartbeat { conn: 8, stamp: 9 });
    rig.lose(8);
    // The promise that went with the echo is fresh: the late answer must not lead to a take-over.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert_eq!(asks(&commands), None);
    assert_eq!(asks(&rig.tick_after(LEASE_US)), None);
    // Nor to a discard of what the cell came to name in the meantime.
    let mut rig = Rig::orphaned();
    rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 6, how: Welcome::Copy });
    rig.on(Event::Sealed { conn: 8, pairing: 6, epoch: 1, stamp: 9 });
    rig.lose(8);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), None)))));
    assert!(!commands.contains(&Command::Discard));
}

#[test]
fn a_backup_keeps_what_it_sealed_until_the_cell_has_moved_past_its_welcome() {
    let mut rig = Rig::orphaned();
    // Generation 1 is that of the welcome: the request that names us may be on its way.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(commands, []);
    assert_eq!(rig.tick_after(20_000), [Command::ReadCell]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)));

    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard));
}

#[test]
fn nothing_is_released_while_the_cell_is_being_given_up() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, None, None)));
    assert!(!releases(&rig.on(Event::Ack { conn: 7, epoch: 2, stamp: rig.now })));
    // Nor when the peer is lost in the middle of it, before it was ever named.
    let mut sealing = Rig::solo();
    sealing.on(Event::PeerHello { conn: 7, generation: 0, held: None });
    sealing.on(Event::FirstCaptured { pairing: PAIRING_OF_A });
    sealing.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(!releases(&sealing.lose(7)));
    // Once it is certain that the cell was not given up, the permission counts again.
    rig.not_attempted();
    assert!(releases(&rig.on(Event::Echo { conn: 7, stamp: rig.now })));
}

#[test]
fn a_vm_that_is_shut_down_stands_still_before_the_cell_is_given_up() {
    let mut rig = Rig::solo();
    let commands = rig.on(Event::StopRequested);
    let stop = commands.iter().position(|command| *command == Command::StopVm);
    let ask = commands.iter().position(|command| matches!(command, Command::CompareAndSet { .. }));
    assert!(stop.is_some() && stop < ask, "{commands:?}");
}

#[test]
fn a_stop_whose_switchover_loses_the_peer_still_stops() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    rig.on(Event::FinalCaptured { epoch: 2 });
    let commands = rig.lose(7);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)), "{commands:?}");
    assert!(exits(&rig.won(cell(4, None, None))));
}

#[test]
fn a_stop_waits_for_the_cell_that_may_name_this_node_alone() {
    let mut rig = Rig::alone();
    assert!(!exits(&rig.on(Event::StopRequested)));
    // It does name us alone: the VM is ended in order.
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)));

    let mut rig = Rig::alone();
    rig.on(Event::StopRequested);
    // It still names the backup. Nobody knows whether that one can go on: this copy is kept.
    assert!(!exits(&rig.not_attempted()));
    assert!(!exits(&rig.tick_after(10 * LEASE_US)));
    // The backup is back: the VM moves.
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    rig.not_attempted();
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held });
    assert!(commands.contains(&Command::FinalCheckpoint), "{commands:?}");
}

#[test]
fn a_stop_that_cannot_move_the_vm_leaves_it_running() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    rig.on(Event::FinalCaptured { epoch: 1 });
    let why = "the arbiter does not answer".to_string();
    let commands = rig.on(Event::SwitchoverDeclined { conn: 7, why });
    assert!(commands.contains(&Command::Thaw) && !exits(&commands), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Protected);
}

#[test]
fn a_backup_that_is_to_stop_keeps_its_state_until_the_cell_does_not_name_it() {
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    let mut rig = Rig::sealed();
    let commands = rig.on(Event::StopRequested);
    assert!(matches!(
        commands[..],
        [Command::SendBye { conn: 7, .. }, Command::DropLink { conn: 7 }, Command::ReadCell]
    ));
    assert_eq!(rig.on(named()), [], "the primary may be dying at this moment");
    assert_eq!(rig.tick_after(20_000), [Command::ReadCell]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");

    // A cell that never named it says nothing; a primary that offers a full copy does.
    let mut rig = Rig::sealed();
    rig.on(Event::StopRequested);
    rig.tick_after(600_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(commands, [Command::Dial]);
    let commands = rig.on(Event::Welcomed { conn: 8, generation: 1, pairing: 6, how: Welcome::Copy });
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");

    // A primary that never goes on without it is dead, and this is the last copy.
    let mut rig = Rig::sealed();
    rig.on(Event::StopRequested);
    rig.tick_after(600_000);
    let commands = rig.on(named());
    assert!(commands.contains(&Command::Verify { epoch: 1 }) && !exits(&commands), "{commands:?}");

    // So is the copy of an orphan.
    let mut rig = Rig::orphaned();
    assert_eq!(rig.on(Event::StopRequested), []);
    assert!(asks(&rig.on(named())).is_some());
}

#[test]
fn a_switchover_is_taken_only_when_what_is_held_is_verified() {
    let mut rig = Rig::sealed();
    let commands = rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    assert_eq!(commands, [Command::Verify { epoch: 1 }]);
    let echo = Command::SendEcho { conn: 7, stamp: 9 };
    assert_eq!(rig.on(Event::Heartbeat { conn: 7, stamp: 9 }), [echo], "the primary hears that it lives");
    assert_eq!(rig.on(Event::Verified { epoch: 1 }), [Command::ReadCell]);
    assert_eq!(rig.on(Event::Heartbeat { conn: 7, stamp: 10 }), [], "it may have asked for the cell");

    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    let commands = rig.on(Event::StateLost("diverged".into()));
    assert!(commands.contains(&Command::Discard), "{commands:?}");
}

#[test]
fn what_the_host_fails_ends_the_process_and_leaves_the_cell_alone() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::MachineFailed("no memory".into()));
    assert!(commands[0] == Command::StopVm && exits(&commands) && asks(&commands).is_none(), "{commands:?}");
}

#[test]
fn a_vm_that_never_ran_leaves_a_cell_that_names_nobody() {
    let mut rig = Rig::solo();
    let commands = rig.on(Event::BootFailed("no kernel".into()));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)), "{commands:?}");
    rig.not_attempted();
    assert!(asks(&rig.tick_after(10 * LEASE_US)).is_some(), "however long the arbiter is away");
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn a_peer_that_never_fits_ends_a_backup_that_holds_nothing() {
    let misfit = || Event::DialFailed { why: "another memory size".into(), permanent: true };
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(rig.on(Event::DialFailed { why: "no answer".into(), permanent: false }), []);
    assert!(exits(&rig.on(misfit())));
    assert!(!exits(&Rig::orphaned().on(misfit())), "it may have to go on with the VM");
}

#[test]
fn an_ack_that_cannot_be_ends_the_connection() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::AckRefused { conn: 7, why: "epoch 9 was never sent".into() });
    assert!(commands.contains(&Command::DropLink { conn: 7 }) && !releases(&commands), "{commands:?}");
}

#[test]
fn a_vm_that_is_over_is_booted_when_the_operator_starts_the_other_node() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("b"), None)))));
    rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) });
    assert_eq!(rig.tick_after(LEASE_US), [], "not by itself");
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 3, held: None });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }, Command::ReadCell]), "{commands:?}");
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert_eq!(commands, [Command::StopDialling, Command::ReadCell]);
    rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert!(rig.won(cell(4, Some("a"), None)).contains(&Command::Boot));
}

#[test]
fn a_switchover_goes_on_when_a_lapsed_permit_is_renewed() {
    let mut rig = Rig::protected();
    rig.on(Event::SwitchoverRequested);
    rig.on(Event::FinalCaptured { epoch: 2 });
    rig.tick_after(LEASE_US / 2);
    rig.on(Event::Heard { conn: 7 });
    rig.tick_after(LEASE_US / 2 + 1);
    // The ack answers an old stamp: its permission is over.
    rig.on(Event::Ack { conn: 7, epoch: 2, stamp: 0 });
    let commands = rig.on(Event::Echo { conn: 7, stamp: rig.now });
    assert!(commands.contains(&Command::SendOffer { conn: 7, epoch: 2 }), "{commands:?}");
}

#[test]
fn a_failed_take_over_ends_the_process() {
    let mut rig = Rig::orphaned();
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let commands = rig.won(cell(3, Some("b"), None));
    assert!(commands.contains(&Command::TakeOver { epoch: 1, generation: 3 }));
    assert!(exits(&rig.on(Event::TakeOverFailed("no memory".into()))));
}

#[test]
fn a_backup_that_comes_back_is_told_that_it_is_paired() {
    let mut rig = Rig::alone();
    rig.not_attempted();
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held });
    assert!(commands.contains(&Command::SendPaired { conn: 8, generation: 2 }), "{commands:?}");
}

#[test]
fn a_backup_dials_on_when_it_cannot_take_a_welcome() {
    let mut rig = Rig::sealed();
    rig.lose(7);
    let commands =
        rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 99, how: Welcome::ResumeAfter(1) });
    assert_eq!(commands, [Command::Dial]);
}

#[test]
fn a_backup_that_wins_while_it_is_to_stop_keeps_the_vm_and_welcomes_a_backup() {
    let mut rig = Rig::orphaned();
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(!exits(&rig.on(Event::StopRequested)));
    rig.won(cell(3, Some("b"), None));
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held: None });
    assert!(matches!(commands[..], [Command::Welcome { conn: 8, generation: 3, .. }]), "{commands:?}");
}

#[test]
fn a_checkpoint_sealed_as_its_connection_ended_is_held() {
    let mut rig = Rig::sealed();
    rig.lose(7);
    let sealed = Event::Sealed { conn: 7, pairing: 5, epoch: 2, stamp: 4 };
    assert_eq!(rig.on(sealed), [Command::Verify { epoch: 2 }]);
    rig.on(Event::Verified { epoch: 2 });
    rig.tick_after(2 * LEASE_US);
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let commands = rig.won(cell(3, Some("b"), None));
    assert!(commands.contains(&Command::TakeOver { epoch: 2, generation: 3 }), "{commands:?}");
}

#[test]
fn a_good_bye_does_not_discard_a_state_that_the_cell_is_being_asked_for() {
    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    rig.on(Event::Verified { epoch: 1 });
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let commands = rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) });
    assert!(!commands.contains(&Command::Discard));
    assert!(rig.won(cell(3, Some("b"), None)).contains(&Command::TakeOver { epoch: 1, generation: 3 }));
}

#[test]
fn a_stop_while_founding_leaves_a_cell_that_names_nobody() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(None)));
    assert!(!exits(&rig.on(Event::StopRequested)));
    let commands = rig.won(cell(1, Some("a"), None));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)));
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn a_guest_that_resets_while_it_is_to_stop_is_not_booted_again() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    let commands = rig.on(Event::GuestEnded(GuestEnd::Reset));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)));
    assert!(exits(&rig.won(cell(4, None, None))));
}

#[test]
fn the_cell_is_read_at_once_but_asked_for_only_when_every_promise_is_over() {
    let mut rig = Rig::sealed();
    assert!(rig.lose(7).contains(&Command::ReadCell));
    rig.on(Event::Verified { epoch: 1 });
    assert_eq!(rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))))), []);
    assert_eq!(rig.tick_after(LEASE_US), []);
    let commands = rig.tick_after(LEASE_US);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)));
}

#[test]
fn a_welcome_that_comes_while_the_cell_is_asked_for_is_not_followed() {
    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some());
    let follows = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Follow { .. }));
    assert!(!follows(&rig.on(Event::Welcomed {
        conn: 8,
        generation: 2,
        pairing: 5,
        how: Welcome::ResumeAfter(1)
    })));
    rig.won(cell(3, Some("b"), None));
    // It runs the VM now: what was welcomed before must not take the machine down.
    assert!(!follows(&rig.on(Event::Welcomed { conn: 9, generation: 2, pairing: 6, how: Welcome::Copy })));
}

#[test]
fn a_broken_pairing_is_never_resumed() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "no memory".into() });
    assert!(commands.contains(&Command::DropLink { conn: 7 }));
    rig.not_attempted();
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    // Alone by the cell's leave, it begins anew, and what follows can be resumed again.
    rig.tick_after(20_000);
    assert!(rig.won(cell(3, Some("a"), None)).contains(&Command::EndPairing));
    let commands = rig.on(Event::PeerHello { conn: 9, generation: 3, held });
    let how = Welcome::Copy;
    let welcome = Command::Welcome { conn: 9, pairing: PAIRING_OF_A + 1, generation: 3, how };
    assert_eq!(commands, [welcome]);
    rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "news of the past".into() });
    assert_eq!(rig.core.view().state, State::Resyncing);
}

#[test]
fn a_pairing_that_breaks_while_the_peer_is_away_is_not_resumed_either() {
    let mut rig = Rig::alone();
    rig.not_attempted();
    rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "no memory".into() });
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
}

#[test]
fn a_backup_that_lost_its_state_says_so_contests_for_nothing_and_follows_anew() {
    let mut rig = Rig::sealed();
    let why = || "diverged".to_string();
    let commands = rig.on(Event::StateLost(why()));
    let bye = Command::SendBye { conn: 7, why: why() };
    assert_eq!(commands, [bye, Command::DropLink { conn: 7 }, Command::Discard, Command::Dial]);
    assert_eq!(rig.tick_after(10 * LEASE_US), [], "it asks for nothing");
    assert_eq!(rig.on(Event::StateLost(why())), [], "there is nothing to lose any more");
    let welcome = Event::Welcomed { conn: 8, generation: 3, pairing: 6, how: Welcome::Copy };
    assert_eq!(rig.on(welcome), [Command::Follow { conn: 8, pairing: 6, how: Welcome::Copy }]);
}

#[test]
fn a_backup_asks_for_the_cell_only_when_all_that_it_holds_is_verified() {
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(named());
    assert_eq!(rig.tick_after(10 * LEASE_US), [], "it is not verified");
    // News that was under way as the connection ended.
    let sealed = Event::Sealed { conn: 7, pairing: 5, epoch: 2, stamp: 0 };
    assert_eq!(rig.on(sealed), [Command::Verify { epoch: 2 }]);
    assert_eq!(rig.on(Event::Verified { epoch: 1 }), [], "more is held since");
    assert!(asks(&rig.on(Event::Verified { epoch: 2 })).is_some());

    // Of two answers the older one may come last.
    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(Event::Verified { epoch: 1 });
    rig.on(Event::Verified { epoch: 0 });
    rig.on(named());
    assert!(asks(&rig.tick_after(10 * LEASE_US)).is_some());

    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(named());
    assert_eq!(rig.on(Event::StateLost("diverged".into())), [Command::Discard, Command::Dial]);
    assert_eq!(rig.tick_after(10 * LEASE_US), [], "it asks for nothing");
}

#[test]
fn a_peer_is_suspected_when_it_falls_silent_or_its_connection_breaks_not_when_it_leaves() {
    let times = |event: fn(&mut Rig)| {
        [Rig::protected(), Rig::sealed()].map(|mut rig| {
            event(&mut rig);
            rig.core.view().suspicions
        })
    };
    assert_eq!(times(|rig| drop(rig.lose(7))), [1, 1]);
    assert_eq!(times(|rig| drop(rig.tick_after(150_000))), [1, 1]);
    let bye = |rig: &mut Rig| drop(rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("stopping".into()) }));
    assert_eq!(times(bye), [0, 0]);
    let stranger = |rig: &mut Rig| drop(rig.on(Event::PeerGone { conn: 9, why: Gone::Lost("reset".into()) }));
    assert_eq!(times(stranger), [0, 0]);
}

/// Cells that no node may believe that has seen generation 2.
fn gone_back() -> [Option<Cell>; 3] {
    [None, Some(cell(1, Some("a"), None)), Some(cell(1, None, None))]
}

#[test]
fn a_cell_that_went_back_fences_no_primary() {
    for found in gone_back() {
        let mut rig = Rig::alone();
        assert_eq!(rig.on(Event::CellSet(Outcome::Lost(found))), []);
        assert_eq!(rig.core.view().state, State::Waiting);
        let again = rig.tick_after(20_000);
        assert!(asks(&again).is_some_and(|new| *new == cell(3, Some("a"), None)), "{again:?}");
        assert!(rig.won(cell(3, Some("a"), None)).contains(&Command::EmitFreely));
    }
}

#[test]
fn a_cell_that_went_back_settles_no_doubt() {
    for found in gone_back() {
        let mut rig = Rig::alone();
        rig.on(Event::CellSet(Outcome::Unknown(silence())));
        assert_eq!(rig.on(Event::CellSet(Outcome::Lost(found))), []);
        // Nothing certain is known of the first request: the backup that comes back must wait.
        let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held: None });
        assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    }
}

#[test]
fn a_cell_that_went_back_makes_no_backup_discard_what_it_holds() {
    for found in gone_back() {
        let mut rig = Rig::sealed();
        rig.on(Event::Paired { conn: 7, generation: 2 });
        rig.lose(7);
        assert_eq!(rig.on(Event::CellRead(Ok(found.clone()))), []);
        assert!(rig.tick_after(20_000).contains(&Command::ReadCell));
        let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
        assert_eq!(asks(&commands), None, "not verified, and promised");
        rig.on(Event::Verified { epoch: 1 });
        let commands = rig.tick_after(2 * LEASE_US);
        assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)), "{commands:?}");
        assert_eq!(
            rig.on(Event::CellSet(Outcome::Lost(found))),
            [Command::Verify { epoch: 1 }, Command::Dial]
        );
    }
}

#[test]
fn a_cell_that_went_back_is_founded_by_nobody_who_saw_it_before() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, Some("a"), None)));
    assert_eq!(rig.on(Event::CellSet(Outcome::Lost(None))), []);
    let again = rig.tick_after(20_000);
    assert!(asks(&again).is_some_and(|new| *new == cell(4, Some("a"), None)), "{again:?}");
}
