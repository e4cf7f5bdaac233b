//! Carries out the core's commands on a node, in the order in which the daemon's executor does (`replica`).

use ftd::role::{Command, ConnId, Event, Gone, PairingStart, Succession};

use crate::mutant::Mutant;
use crate::net::Letter;
use crate::world::{EPOCH_BASE, Guest, Host, Port, Shipping, World};

impl World {
    /// A process takes an event, and every step that follows from it.
    pub fn feed(&mut self, n: usize, event: Event) {
        let event = match event {
            Event::Ack { conn, epoch, stamp } => {
                let ships = self.nodes[n].ships.as_mut();
                match ships.filter(|ships| ships.conn == Some(conn)) {
                    Some(ships) if epoch >= ships.next_epoch => {
                        Event::AckRefused { conn, why: "never sent".into() }
                    }
                    Some(ships) => {
                        ships.owed.retain(|(owed, _)| *owed > epoch);
                        Event::Ack { conn, epoch, stamp }
                    }
                    None => Event::Ack { conn, epoch, stamp },
                }
            }
            Event::PeerGone { conn, why } => {
                if !self.nodes[n].links.contains(&conn) {
                    return;
                }
                self.unlink(n, conn, false);
                Event::PeerGone { conn, why }
            }
            other => other,
        };
        if let Event::PeerHello { conn, .. } | Event::Welcomed { conn, .. } = &event {
            self.nodes[n].turn_away = Some(*conn);
        }
        self.handle(n, event);
        self.drive(n);
    }

    fn handle(&mut self, n: usize, event: Event) {
        let now = self.now;
        let host = &mut self.nodes[n];
        let Some(core) = &mut host.core else { return };
        let mut commands = Vec::new();
        core.handle(now, event, &mut commands);
        host.todo.extend(commands);
    }

    /// Lets a process do all that it has to do.
    pub fn drive(&mut self, n: usize) {
        loop {
            let host = &mut self.nodes[n];
            if !host.is_awake() {
                return;
            }
            if host.trips && matches!(host.todo.front(), Some(Command::Release { .. })) {
                (host.trips, host.frozen) = (false, true);
                return;
            }
            if let Some(command) = host.todo.pop_front() {
                self.execute(n, command);
            } else if let Some(conn) = host.turn_away.take() {
                self.turn_away(n, conn);
            } else if let Some(event) = host.own.pop_front() {
                self.handle(n, event);
            } else {
                return;
            }
        }
    }

    fn own(&mut self, n: usize, event: Event) {
        self.nodes[n].own.push_back(event);
    }

    fn arriving(&mut self, n: usize, conn: ConnId) -> bool {
        let arriving = &mut self.nodes[n].arriving;
        let found = arriving.iter().position(|known| *known == conn);
        found.map(|at| arriving.swap_remove(at)).is_some()
    }

    /// A connection that the core did not take.
    fn turn_away(&mut self, n: usize, conn: ConnId) {
        if self.arriving(n, conn) {
            self.close(n, conn, true);
        }
    }

    fn unlink(&mut self, n: usize, conn: ConnId, in_order: bool) {
        let passes = self.mutant == Some(Mutant::PassOnLoss) && self.nodes[n].guest.is_some();
        if passes && self.nodes[n].links.contains(&conn) {
            self.pass_output(n);
        }
        self.close(n, conn, in_order);
        self.nodes[n].links.retain(|link| *link != conn);
        if let Some(ships) = self.nodes[n].ships.as_mut().filter(|ships| ships.conn == Some(conn)) {
            ships.conn = None;
        }
    }

    fn link(&mut self, n: usize, conn: ConnId) -> bool {
        let linked = self.arriving(n, conn) && self.is_open(n, conn);
        match linked {
            true => self.nodes[n].links.push(conn),
            false => {
                self.close(n, conn, false);
                self.own(n, Event::PeerGone { conn, why: Gone::Lost("the connection is gone".into()) });
            }
        }
        linked
    }

    /// Everything that is held leaves, and what follows passes.
    fn pass_output(&mut self, n: usize) {
        self.nodes[n].port = Port::Passing;
        self.let_out(n, u64::MAX);
    }

    fn execute(&mut self, n: usize, command: Command) {
        match command {
            Command::ReadCell | Command::ProbeCell => self.ask_read(n),
            Command::CompareAndSet { expected, new } => self.ask_set(n, expected, new),
            Command::LeaveArbiter => self.leave_call(n),
            Command::Record(record) => {
                self.nodes[n].record = Some(record);
                self.nodes[n].acted = self.nodes[n].acted.max(record.generation);
                self.own(n, Event::Recorded(record));
            }
            Command::Dial => self.nodes[n].dialling = true,
            Command::StopDialling => self.nodes[n].dialling = false,
            Command::Welcome { conn, pairing, generation, how } => {
                if self.link(n, conn) {
                    self.send(n, conn, Letter::Welcome { generation, pairing, how });
                    self.begin_shipping(n, conn, pairing, how);
                }
            }
            Command::Refuse { conn, .. } => {
                if self.arriving(n, conn) {
                    self.send(n, conn, Letter::Refuse);
                    self.close(n, conn, true);
                }
            }
            Command::Follow { conn, pairing, how } => {
                if how == PairingStart::Copy {
                    self.nodes[n].port = Port::Mute;
                }
                if self.link(n, conn) {
                    self.nodes[n].receives = Some((conn, pairing));
                }
            }
            Command::DropLink { conn } => self.unlink(n, conn, true),
            Command::EndPairing => {
                self.take_back(n);
                self.nodes[n].ships = None;
            }
            Command::Boot => self.boot(n),
            Command::EmitFreely => self.pass_output(n),
            Command::Release { through, until } => self.release(n, through, until),
            Command::FinalCheckpoint => self.freeze(n),
            Command::Thaw => {
                if let Some(ships) = &mut self.nodes[n].ships {
                    ships.frozen = false;
                }
            }
            Command::Verify { epoch } | Command::Load { epoch } => {
                if self.nodes[n].image.is_some() {
                    self.own(n, Event::Verified { epoch });
                }
            }
            Command::Rehearse { .. } => {
                if let Some(image) = self.nodes[n].image {
                    if self.mutant != Some(Mutant::RehearsesNothing) {
                        self.known.note_rehearsed(n, image.held.pairing);
                    }
                    self.own(n, Event::Rehearsed { pairing: image.held.pairing });
                }
            }
            Command::TakeOver { epoch, succession, .. } => self.take_over(n, epoch, succession),
            Command::Discard => self.discard(n),
            Command::StopVm => {
                let host = &mut self.nodes[n];
                (host.port, host.guest, host.ships) = (Port::Mute, None, None);
                self.check_copies("the VM was stopped", false);
            }
            Command::Exit(_) => self.die(n, false, "the process ended", false),
            // No machine fails here, so that no image is written to disk, and nobody asks for a power-off.
            Command::Renew
            | Command::PressPowerButton
            | Command::SaveImage(_)
            | Command::ReadImage(_)
            | Command::FindImage { .. }
            | Command::DropImage { .. }
            | Command::Answer { .. } => {}

            Command::SendHeartbeat { conn, lease } => {
                let stamp = self.now;
                self.send(n, conn, Letter::Heartbeat { stamp, lease });
            }
            Command::SendEcho { conn, stamp, lease } => {
                let lease = if self.mutant == Some(Mutant::NoPromise) { u64::MAX } else { lease };
                self.send(n, conn, Letter::Echo { stamp, lease });
            }
            Command::SendPaired { conn, generation } => self.send(n, conn, Letter::Paired { generation }),
            Command::SendStanding { conn, standing } => self.send(n, conn, Letter::Standing(standing)),
            Command::SendOffer { conn, epoch } => self.send(n, conn, Letter::Offer { epoch }),
            Command::SendAck { conn, epoch, stamp } => self.send(n, conn, Letter::Ack { epoch, stamp }),
            Command::SendDecline { conn, .. } => self.send(n, conn, Letter::Decline),
            Command::SendTookOver { conn, generation } => {
                self.send(n, conn, Letter::TookOver { generation });
            }
            Command::SendBye { conn, .. } => self.send(n, conn, Letter::Bye),
        }
    }

    /// The VM stands still, and its last checkpoint is captured.
    fn freeze(&mut self, n: usize) {
        if let Some(epoch) = self.capture(n) {
            if let Some(ships) = &mut self.nodes[n].ships {
                ships.frozen = true;
            }
            self.own(n, Event::FinalCaptured { epoch });
        }
    }

    fn discard(&mut self, n: usize) {
        self.check_discard(n);
        let host = &mut self.nodes[n];
        (host.receives, host.image, host.sealed_off) = (None, None, None);
        self.check_copies("discarded", false);
    }

    fn begin_shipping(&mut self, n: usize, conn: ConnId, pairing: u64, how: PairingStart) {
        let PairingStart::ResumeAfter(held) = how else {
            let next_epoch = self.serial.epoch.max(EPOCH_BASE) + 1;
            self.nodes[n].ships = Some(Shipping {
                pairing,
                conn: Some(conn),
                copying: true,
                next_epoch,
                owed: Default::default(),
                frozen: false,
            });
            return;
        };
        let Some(ships) = &mut self.nodes[n].ships else { return };
        ships.conn = Some(conn);
        ships.owed.retain(|(epoch, _)| *epoch > held);
        for (epoch, counter) in ships.owed.clone() {
            self.send_checkpoint(n, epoch, counter);
        }
    }

    fn release(&mut self, n: usize, through: u64, until: u64) {
        if matches!(self.nodes[n].port, Port::Passing) {
            return;
        }
        self.nodes[n].port = Port::Holding { until };
        if self.now < until || self.mutant == Some(Mutant::IgnorePermit) {
            self.let_out(n, through);
        } else if self.nodes[n].guest.as_ref().is_some_and(|guest| !guest.held.is_empty()) {
            self.own(n, Event::ReleaseCut);
        }
    }

    fn boot(&mut self, n: usize) {
        self.check_boot(n);
        let counter = self.new_counter();
        self.known.begin_life(counter);
        self.run_anew(n, counter, true);
        self.pass_output(n);
    }

    /// The VM is ours: from what is held to a running guest.
    fn take_over(&mut self, n: usize, epoch: u64, succession: Succession) {
        self.check_take_over(n, epoch);
        let host = &mut self.nodes[n];
        host.receives = None;
        host.sealed_off = host.image.take().or(host.sealed_off);
        let Some(seal) = host.sealed_off.filter(|seal| seal.held.epoch >= epoch) else {
            return self.own(n, Event::TakeOverFailed("nothing is held".into()));
        };
        host.sealed_off = None;
        // The former primary may have taken the VM back: then this one never speaks.
        let speaks = self.owner() == Some(n);
        self.run_anew(n, seal.counter, speaks);
        self.nodes[n].port = Port::Holding { until: 0 };
        let at_once = self.mutant == Some(Mutant::PassesAtSwitchover);
        if succession == Succession::Failover || at_once {
            self.pass_output(n);
        }
        self.own(n, Event::TookOver);
    }

    /// A VM runs here from this counter on. If it is the VM, no other is any more.
    fn run_anew(&mut self, n: usize, counter: u64, is_newest: bool) {
        if is_newest {
            for Host { guest, .. } in &mut self.nodes {
                guest.iter_mut().for_each(|guest| guest.is_newest = false);
            }
        }
        self.nodes[n].guest = Some(Guest { is_newest, counter, held: Default::default() });
    }

    /// A VM that stood still for a switchover goes on, although it was resumed elsewhere in the meantime: by the cell.
    fn take_back(&mut self, n: usize) {
        let Some(guest) = self.nodes[n].guest.as_ref().filter(|guest| !guest.is_newest) else { return };
        if self.owner() == Some(n) {
            let counter = guest.counter;
            self.check_taken_back(n, counter);
            self.run_anew(n, counter, true);
        }
    }
}
