//! Serves the key-value protocol over TCP: one loop that polls the card, the connections and the memory load.

use crate::kv::{self, Line, Lines, Load, LoadError, Power, Store};
use crate::load::{self, Worker};
use crate::net::Settings;
use crate::virtio::{Card, Counters};
use crate::{platform, rt};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// Connections at a time; further ones are refused.
const CONNECTIONS: usize = 32;
const RECEIVE_BYTES: usize = 8 * 1024;
const TRANSMIT_BYTES: usize = 16 * 1024;
/// Frames taken in before requests are answered and frames sent.
const FRAMES_PER_TURN: usize = 64;
/// Longest idling.
const IDLE_US_MAX: u64 = 50_000;
/// Sleeps of this length, one after the other, are counted: by them others see how time goes by for a guest at rest.
const SLEEP_NS: u64 = 100_000_000;
/// A peer is asked for a sign of life after this time, and given up after [`DEAD_S`].
const KEEP_ALIVE_S: u64 = 15;
const DEAD_S: u64 = 120;
/// How long a last answer may take to be acknowledged before the machine stops as it was asked to.
const LAST_ANSWER_NS: u64 = 1_000_000_000;

/// The server.
pub struct Server {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    service: Service,
    port: u16,
    worker: Option<Worker>,
    stop: Option<Stop>,
    sleeps_until_ns: u64,
}

/// A stop that was asked for, by whom, and the time after which it is not put off any longer.
struct Stop {
    power: Power,
    asked_by: SocketHandle,
    deadline_ns: u64,
}

struct Connection {
    socket: SocketHandle,
    lines: Lines,
    /// Answers that the socket had no room for.
    pending: Vec<u8>,
    sent: usize,
}

/// The store, and what requests can ask of this machine.
struct Service {
    store: Store,
    machine: Machine,
}

#[derive(Default)]
struct Machine {
    requests: u64,
    connections: usize,
    card: Counters,
    sleeps: u64,
}

impl kv::Machine for Machine {
    fn set_load(&mut self, load: Load) -> Result<(), LoadError> {
        load::set(load)
    }

    fn digest_load(&mut self) -> (u64, u64) {
        load::digest()
    }

    fn now_ns(&mut self) -> u64 {
        platform::clock_ns()
    }

    fn stats(&mut self, out: &mut dyn Write) {
        let Counters { frames_in, frames_out, transmit_full } = self.card;
        let _ = write!(
            out,
            " requests={} connections={} load_pages={} frames_in={frames_in} frames_out={frames_out} \
             transmit_full={transmit_full} vcpus={} sleeps={}",
            self.requests,
            self.connections,
            load::written(),
            platform::vcpus(),
            self.sleeps,
        );
    }
}

impl Server {
    /// Starts the card and listens.
    pub fn new(settings: &Settings, store_bytes_max: usize, worker: Option<Worker>) -> Self {
        let mut card = match Card::probe() {
            Ok(card) => card,
            Err(why) => panic!("network card: {why:?}"),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(card.mac())));
        config.random_seed = platform::clock_ns();
        let mut interface = Interface::new(config, &mut card, now());
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(settings.address)).expect("room for the one address");
        });
        if let Some(gateway) = settings.gateway {
            interface.routes_mut().add_default_ipv4_route(gateway).expect("room for the one route");
        }
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..CONNECTIONS)
            .map(|_| {
                let mut socket = tcp::Socket::new(
                    tcp::SocketBuffer::new(vec![0; RECEIVE_BYTES]),
                    tcp::SocketBuffer::new(vec![0; TRANSMIT_BYTES]),
                );
                // Answers and acknowledgements leave at once.
                socket.set_nagle_enabled(false);
                socket.set_ack_delay(None);
                socket.set_keep_alive(Some(Duration::from_secs(KEEP_ALIVE_S)));
                socket.set_timeout(Some(Duration::from_secs(DEAD_S)));
                let socket = sockets.add(socket);
                Connection { socket, lines: Lines::default(), pending: Vec::new(), sent: 0 }
            })
            .collect();
        Self {
            card,
            interface,
            sockets,
            connections,
            service: Service { store: Store::new(store_bytes_max), machine: Machine::default() },
            port: settings.port,
            worker,
            stop: None,
            sleeps_until_ns: platform::clock_ns() + SLEEP_NS,
        }
    }

    /// Serves for good.
    pub fn run(mut self) -> ! {
        loop {
            self.receive();
            self.serve();
            // Answers go out with the acknowledgement of what they answer in one frame.
            let time = now();
            self.interface.poll_egress(time, &mut self.card, &mut self.sockets);
            self.card.flush();
            self.stop_if_asked();

            let load_idle_ns = self.worker.as_mut().and_then(|worker| worker.run(load::SLICE_NS));
            self.idle(time, load_idle_ns);
        }
    }

    /// Takes in what has arrived, but not without end.
    fn receive(&mut self) {
        let time = now();
        for _ in 0..FRAMES_PER_TURN {
            let result = self.interface.poll_ingress_single(time, &mut self.card, &mut self.sockets);
            if matches!(result, PollIngressSingleResult::None) {
                break;
            }
        }
    }

    /// Gives the processor up until the network, a timer or the load needs it.
    fn idle(&mut self, time: Instant, load_idle_ns: Option<u64>) {
        let now_ns = platform::clock_ns();
        if now_ns >= self.sleeps_until_ns {
            self.service.machine.sleeps += 1;
            self.sleeps_until_ns = now_ns + SLEEP_NS;
            if platform::power_button() {
                platform::power_off();
            }
        }
        let mut idle_us = IDLE_US_MAX.min((self.sleeps_until_ns - now_ns) / 1000 + 1);
        if let Some(ns) = load_idle_ns {
            idle_us = idle_us.min(ns / 1000);
        }
        if let Some(delay) = self.interface.poll_delay(time, &self.sockets) {
            idle_us = idle_us.min(delay.total_micros());
        }
        if idle_us > 0 {
            if !self.card.arm() {
                platform::idle(idle_us);
            }
            self.card.disarm();
        }
    }

    fn serve(&mut self) {
        self.service.machine.card = self.card.counters;
        self.service.machine.connections = self
            .connections
            .iter()
            .filter(|connection| self.sockets.get::<tcp::Socket<'_>>(connection.socket).is_active())
            .count();
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
            if !socket.is_open() {
                connection.lines = Lines::default();
                connection.pending.clear();
                connection.sent = 0;
                socket.listen(self.port).expect("a closed socket listens on a port that is not 0");
                continue;
            }
            if let Some(power) = connection.serve(socket, &mut self.service) {
                self.stop = Some(Stop {
                    power,
                    asked_by: connection.socket,
                    deadline_ns: platform::clock_ns() + LAST_ANSWER_NS,
                });
            }
        }
    }

    /// Stops the machine once the answer that says so has been acknowledged.
    fn stop_if_asked(&mut self) {
        let Some(stop) = &self.stop else { return };
        let unacknowledged = self.sockets.get::<tcp::Socket<'_>>(stop.asked_by).send_queue();
        if unacknowledged > 0 && platform::clock_ns() < stop.deadline_ns {
            return;
        }
        match stop.power {
            Power::Off => platform::power_off(),
            Power::Reset => platform::reset(),
            Power::Crash => rt::crash(),
            Power::Panic => platform::panic(),
            Power::Hang => platform::hang(),
        }
    }
}

impl Connection {
    /// Answers what came in, as far as the answers find room: a peer that does not read is not read from.
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, service: &mut Service) -> Option<Power> {
        self.send(socket);
        let mut power = None;
        while self.pending.is_empty() && power.is_none() && socket.can_recv() {
            // One line a turn, so that the answers held back are at most one.
            let line = socket.recv(|bytes| {
                let mut rest = &*bytes;
                let line = self.lines.next(&mut rest);
                (bytes.len() - rest.len(), line)
            });
            match line {
                Ok(Some(Line::Complete(line))) => {
                    service.machine.requests += 1;
                    power = kv::answer(&mut service.store, &mut service.machine, &line, &mut self.pending);
                }
                Ok(Some(Line::Overlong)) => kv::answer_overlong(&mut self.pending),
                Ok(None) => {}
                Err(_) => break,
            }
            self.send(socket);
        }
        // The peer has closed its side, and everything that it asked is answered.
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() && self.pending.is_empty() {
            socket.close();
        }
        power
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        if self.pending.is_empty() || !socket.may_send() {
            self.pending.clear();
            self.sent = 0;
            return;
        }
        self.sent += socket.send_slice(&self.pending[self.sent..]).unwrap_or(0);
        if self.sent == self.pending.len() {
            self.pending.clear();
            self.sent = 0;
        }
    }
}

fn now() -> Instant {
    Instant::from_micros((platform::clock_ns() / 1000) as i64)
}
