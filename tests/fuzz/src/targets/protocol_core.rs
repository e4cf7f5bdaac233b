//! The protocol core of one node, and events in any order. An input is two bytes of settings, and steps of four bytes
//! each: what happens, and with which values. The arbiter answers as the cell is, with the loss of an answer, or with
//! a cell that cannot be; the peer, the operator, the guest and the host say anything at any time. What holds
//! whatever comes is in [`claims`].

mod claims;

use self::claims::{Gate, Node};
use ft_arbiter::{ArbiterError, Cell, CellId, Outcome, Place, Standby, Trouble};
use ft_checkpoint::wire::message::Standing;
use ftd::role::{
    Event, Gone, GuestEnd, Held, ImageTrouble, Leave, Micros, NodeRecord, OnDisk, OnFenced, OnUplinkLoss,
    PairingStart, Policy, Reach, Saved, Start, StartAs, Times, Whose,
};

const STEPS_MAX: usize = 400;
const ID: CellId = CellId(0xce11);
const ME: &str = "alpha";
const PEER: &str = "beta";
/// The pairing that an image or a cell from before has.
const OLD_PAIRING: u64 = 7;
const MS: Micros = 1_000;
const TIMES_MS: [Micros; 8] = [0, 1, 5, 30, 200, 1_000, 6_000, 61_000];

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let Some((&[settings, found], steps)) = input.split_first_chunk() else { return };
    let mut node = Node::start(policy(settings, found), cell(found));
    for step in steps.chunks_exact(4).take(STEPS_MAX) {
        let [what, a, b, c] = [step[0], step[1], step[2], step[3]];
        if let Some(event) = event(&mut node, what, [a, b, c]) {
            node.take(event);
        }
        if node.has_ended {
            return;
        }
    }
}

fn policy(settings: u8, found: u8) -> Policy {
    let is = |bit: u8| settings & bit != 0;
    let generation = 4 - u64::from(found >> 6 & 1);
    let image = Saved { cell: ID, generation: 4, held: Held { pairing: OLD_PAIRING, epoch: 9 } };
    Policy {
        node: ME.into(),
        peer: PEER.into(),
        start_as: if is(1) { StartAs::Backup } else { StartAs::Primary },
        record: (found & 0x20 != 0).then_some(NodeRecord { cell: ID, generation }),
        on_disk: if is(2) { OnDisk::Image(image) } else { OnDisk::Nothing },
        place: "a directory".into(),
        boot_lost_after_us: is(4).then_some(60_000 * MS),
        on_fenced: if is(8) { OnFenced::Exit } else { OnFenced::Rejoin },
        restart_on_reset: !is(16),
        on_uplink_loss: if is(32) { OnUplinkLoss::Switchover } else { OnUplinkLoss::Stay },
        lease_us: 25 * MS,
        failure_timeout_us: 300 * MS,
        takeover_delay_us: 5 * MS,
        heartbeat_us: 5 * MS,
        arbiter_retry_us: 200 * MS,
        probe_us: 2_000 * MS,
        proof_us: 10_000 * MS,
        patience_us: 30_000 * MS,
        rehearsal_us: 60_000 * MS,
        pairing_wait_us_min: 1_000 * MS,
        pairing_wait_us_max: 60_000 * MS,
        nonce: 1 << 32,
    }
}

/// The cell that the node finds.
fn cell(found: u8) -> Option<Cell> {
    let with = |owner: Option<&str>, standby: Option<&str>| {
        let standby = standby.map(|node| Standby { node: node.into(), pairing: OLD_PAIRING });
        Some(Cell { id: ID, generation: 4, owner: owner.map(str::to_owned), standby })
    };
    match found % 8 {
        0 => None,
        1 | 2 => with(None, None),
        3 => with(Some(ME), None),
        4 => with(Some(ME), Some(PEER)),
        5 => with(Some(PEER), None),
        6 => with(Some(PEER), Some(ME)),
        _ => with(Some("gamma"), None),
    }
}

/// What happens in a step. None: that cannot happen now.
fn event(node: &mut Node, what: u8, [a, b, c]: [u8; 3]) -> Option<Event> {
    let why = || "so it is".to_owned();
    match what % 48 {
        0..6 => {
            node.pass(TIMES_MS[usize::from(a) % 8] * MS + u64::from(b));
            Some(Event::Tick)
        }
        6..10 => answer(node, a),
        10 => {
            let owner = (a & 3 != 0).then(|| PEER.to_owned());
            let standby = (b & 1 != 0 && owner.is_some())
                .then(|| Standby { node: ME.into(), pairing: node.pairing(c) });
            node.cell_moves(owner, standby);
            None
        }
        11 => node.late_set(),
        12..26 => of_link(node, what % 48, [a, b, c]),
        26..37 => of_state(node, what % 48, [a, b, c]),
        37 => Some(Event::SwitchoverRequested { request: node.request(), until: node.later(a) }),
        38 | 39 => {
            let within_us = u64::from(b) * 100 * MS;
            let leave = [Leave::Move, Leave::PowerOff { within_us }, Leave::HostDown { within_us }];
            Some(Event::StopRequested { request: node.request(), vm: leave[usize::from(a) % 3] })
        }
        40 | 41 => {
            let how = [Start::Ended, Start::Fresh, Start::From(PEER.into()), Start::From("gamma".into())];
            let how = how[usize::from(a) % 4].clone();
            node.is_released |= matches!(how, Start::From(_));
            Some(Event::StartRequested { request: node.request(), how, until: node.later(b) })
        }
        42 => {
            let reach = [Reach::Unknown, Reach::Open, Reach::CutOff][usize::from(a) % 3];
            let whose = if b & 1 == 0 { Whose::Ours } else { Whose::Peers };
            Some(Event::NetworkSeen { whose, reach })
        }
        43 => Some(Event::DiskSeen { stands: a & 1 != 0 }),
        44 => Some(Event::ImagesCompared { differ: (a & 1 != 0).then(why) }),
        45 => Some(Event::PeerReplaced { node: PEER.into() }),
        46 => {
            let failure_timeout_us = [100 * MS, 300 * MS, 5_000 * MS][usize::from(a) % 3];
            Some(Event::Retimed(Times { failure_timeout_us, takeover_delay_us: u64::from(b) * MS }))
        }
        _ => guest_end(node, a),
    }
}

/// The arbiter answers what it was asked; or the storage of the record fails, or does what it owes.
fn answer(node: &mut Node, how: u8) -> Option<Event> {
    if how & 0x40 != 0 {
        node.disk_fails = how & 1 != 0;
        return node.behind.filter(|_| how & 1 == 0).map(Event::Recorded);
    }
    let error =
        || ArbiterError { place: Place::File("/shared".into()), trouble: Trouble::NoAnswer { seconds: 2 } };
    if node.asked.is_reading() {
        node.asked.is_answered();
        let cell = node.truth.clone();
        return Some(Event::CellRead(match (how % 8, cell) {
            (0..5, cell) => Ok(cell),
            (5, Some(cell)) => Ok(Some(Cell { id: CellId(1), ..cell })),
            // An older copy is in its place.
            (6, _) => Ok(node.before.clone()),
            _ => Err(error()),
        }));
    }
    let (expected, new) = node.asked.set()?;
    node.asked.is_answered();
    Some(Event::CellSet(match how % 8 {
        0..5 => node.set(expected, new),
        5 => {
            let _ = node.set(expected, new);
            Outcome::Unknown(error())
        }
        6 => Outcome::Unknown(error()),
        _ => Outcome::NotAttempted(error()),
    }))
}

/// What comes over a connection, or becomes of it.
fn of_link(node: &mut Node, what: u8, [a, b, c]: [u8; 3]) -> Option<Event> {
    let (conn, epoch) = (node.conn(a), u64::from(b));
    let why = "so it is".to_owned();
    let generation = node.core.generation();
    Some(match what {
        12 => {
            let held = (b & 1 != 0).then(|| Held { pairing: node.pairing(c), epoch: u64::from(b >> 1) });
            let generation = if a & 0x80 == 0 { generation } else { generation + u64::from(a & 3) };
            Event::PeerHello { conn: node.connect(), nonce: u64::from(a >> 2 & 1), generation, held }
        }
        13 | 14 => {
            let how =
                if b & 1 == 0 { PairingStart::Copy } else { PairingStart::ResumeAfter(u64::from(b >> 1)) };
            let pairing = if how == PairingStart::Copy { u64::from(c) } else { node.pairing(c) };
            let generation = generation.max(4) + u64::from(a >> 7);
            Event::Welcomed { conn: node.connect(), generation, pairing, how }
        }
        15 => Event::DialFailed { why, permanent: a & 1 != 0, answered: b & 1 != 0 },
        16 => {
            let gone = [Gone::Lost(why.clone()), Gone::Unable(why.clone()), Gone::Bye(why)];
            Event::PeerGone { conn, why: gone[usize::from(b) % 3].clone() }
        }
        17 => Event::Heard { conn },
        18 => {
            let cell = (b & 3 != 0)
                .then(|| (if b & 3 == 1 { 1 } else { node.id().0 }, generation + u64::from(b >> 6)));
            let said = Standing {
                place: "a directory".into(),
                cell,
                named: (b & 4 != 0).then(|| node.pairing(c)),
                asked_us: (b & 8 != 0).then(|| node.stamp(c)),
                trouble: (b & 16 != 0).then(|| why.clone()),
                unfit: (b & 32 != 0).then(|| (why, node.stamp(c))),
                asks: a & 8 != 0,
                stamp_us: node.stamp(c.rotate_left(4)),
            };
            Event::Standing { conn, said }
        }
        19 => Event::Ack { conn, epoch, stamp: node.stamp(c) },
        20 => Event::Echo { conn, stamp: node.stamp(c), lease: node.stamp(b) },
        21 => Event::Heartbeat { conn, stamp: node.stamp(c), lease: u64::from(b) * 4 * MS },
        22 => Event::Sealed { conn, pairing: node.pairing(c), epoch, stamp: node.stamp(a) },
        23 => Event::Paired { conn, generation: generation + u64::from(b & 1) },
        24 => Event::SwitchoverOffered { conn, epoch },
        _ if a & 4 == 0 => Event::SwitchoverDeclined { conn, why },
        _ => Event::PeerTookOver { conn, generation: generation + u64::from(b & 1) },
    })
}

/// What becomes of the VM's state here.
fn of_state(node: &mut Node, what: u8, [a, b, c]: [u8; 3]) -> Option<Event> {
    let (epoch, generation) = (u64::from(b), node.core.generation());
    let why = "so it is".to_owned();
    Some(match what {
        26 | 27 => {
            let pairing = node.shipping?;
            node.hold();
            Event::FirstCaptured { pairing }
        }
        28 if a & 1 == 0 => Event::ReleaseCut,
        28 => Event::PairingBroken { pairing: node.shipping?, why },
        29 => Event::Verified { epoch },
        30 if a & 1 == 0 => Event::Rehearsed { pairing: node.pairing(c) },
        30 => Event::RehearsalFailed { pairing: node.pairing(c), why },
        31 if a & 1 == 0 => Event::StateLost(why),
        31 => Event::LoadFailed(why),
        32 | 33 => return node.taking_over(a & 3 != 0),
        34 => match a % 4 {
            0 => Event::ImageProgress { generation, percent: b },
            1 => Event::ImageSaved { generation },
            2 => Event::ImageUnsaved { generation, why },
            _ => Event::AckRefused { conn: node.conn(b), why },
        },
        35 => match a % 4 {
            0 => Event::ImageRead,
            1 => Event::ImageUnread(ImageTrouble::ForNow(why)),
            2 => Event::ImageUnread(ImageTrouble::Unfit(why)),
            _ => Event::ImageUnread(ImageTrouble::ForGood(why)),
        },
        _ if a & 1 == 0 => Event::FinalCaptured { epoch },
        _ => {
            let held = Held { pairing: node.pairing(c), epoch };
            let image = OnDisk::Image(Saved { cell: ID, generation, held });
            Event::ImageFound([OnDisk::Nothing, OnDisk::Unknown(why), image][usize::from(a) % 3].clone())
        }
    })
}

/// The machine here comes to an end, if there is one.
fn guest_end(node: &mut Node, how: u8) -> Option<Event> {
    if node.gate == Gate::Mute {
        return None;
    }
    node.gate = Gate::Mute;
    let why = "so it is".to_owned();
    Some(Event::GuestEnded(match how % 6 {
        0 => GuestEnd::PoweredOff,
        1 => GuestEnd::Reset,
        2 => GuestEnd::Crashed(why),
        3 => GuestEnd::Fallen { why, restart: how & 8 != 0 },
        4 => return Some(Event::BootFailed(why)),
        _ => return Some(Event::MachineFailed(why)),
    }))
}

/// Steps of a whole life.
const BOOTS: [[u8; 4]; 3] = [[6, 0, 0, 0], [0, 1, 0, 0], [6, 0, 0, 0]];
const PAIRS: [[u8; 4]; 9] = [
    [12, 0, 0, 0],
    [26, 0, 0, 0],
    [0, 2, 0, 0],
    [20, 0, 3, 0],
    [19, 0, 1, 0],
    [6, 0, 0, 0],
    [18, 8, 0x0e, 0],
    [0, 2, 0, 0],
    [19, 0, 2, 0],
];
const FOLLOWS: [[u8; 4]; 10] = [
    [6, 0, 0, 0],
    [13, 0, 0, 9],
    [21, 0, 7, 0],
    [22, 0, 1, 0],
    [30, 0, 0, 0],
    [10, 1, 1, 0],
    [23, 0, 1, 0],
    [21, 0, 7, 0],
    [22, 0, 2, 0],
    [0, 2, 0, 0],
];
const TAKES_OVER: [[u8; 4]; 7] =
    [[16, 0, 0, 0], [29, 0, 2, 0], [6, 0, 0, 0], [0, 5, 0, 0], [6, 0, 0, 0], [32, 1, 0, 0], [0, 2, 0, 0]];

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |head: [u8; 2], parts: &[&[[u8; 4]]]| [&head[..], parts.concat().as_flattened()].concat();
    let moves: &[[u8; 4]] = &[[37, 7, 0, 0], [6, 0, 0, 0], [18, 8, 0x0e, 0], [36, 0, 2, 0], [19, 0, 2, 0]];
    let lost: &[[u8; 4]] = &[[16, 0, 0, 0], [0, 4, 0, 0], [6, 0, 0, 0], [0, 4, 0, 0]];
    let fenced: &[[u8; 4]] = &[[16, 0, 0, 0], [10, 1, 0, 0], [0, 4, 0, 0], [6, 0, 0, 0], [6, 0, 0, 0]];
    let stops: &[[u8; 4]] = &[[38, 1, 0, 0], [6, 0, 0, 0], [6, 0, 0, 0]];
    let offered: &[[u8; 4]] = &[[24, 0, 2, 0], [29, 0, 2, 0], [6, 0, 0, 0], [32, 1, 0, 0], [6, 0, 0, 0]];
    vec![
        seed([0, 1], &[&BOOTS, &PAIRS, lost]),
        seed([0, 1], &[&BOOTS, &PAIRS, moves]),
        seed([0, 1], &[&BOOTS, &PAIRS, fenced]),
        seed([8, 0x21], &[&BOOTS, &PAIRS, fenced, stops]),
        seed([0, 0], &[&BOOTS, stops]),
        seed([1, 5], &[&FOLLOWS, &TAKES_OVER, &PAIRS]),
        seed([1, 0x25], &[&FOLLOWS, offered, &PAIRS]),
        seed([6, 0x23], &[&BOOTS, &[[35, 0, 0, 0], [32, 1, 0, 0]], &PAIRS]),
        seed([4, 4], &[&BOOTS, &[[0, 7, 0, 0], [6, 0, 0, 0], [6, 0, 0, 0]], &PAIRS]),
    ]
}
