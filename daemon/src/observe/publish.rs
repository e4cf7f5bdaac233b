//! Makes the status from the replica's view and counts, and publishes it to the control socket, to Prometheus and to
//! systemd.

use super::metrics::{Percentiles, Rate};
use super::refusals::{self, Refusals};
use super::service::{Declared, Holds, ServiceStatus, ServiceWatch};
use super::status::{
    ArbiterStatus, CopyStatus, DisksStatus, LapseStatus, MemberStatus, NetworkStatus, PeerStatus,
    RehearsalStatus, ReplayStatus, STATUS_SCHEMA, STUCK_MS, SecurityStatus, Status,
};
use super::telemetry::{CheckpointParts, Telemetry};
use super::window::Window;
use crate::clock;
use crate::config::Config;
use crate::host::{Log, Notifier, Trust};
use crate::peer::PeerPlace;
use crate::role::{Lapse, Lapsed, Micros, Role, State, View};
use ft_checkpoint::wire::message::Position;
use ft_netbuf::{HoldStats, OutputBuffer};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Before a certificate expires, its operator is reminded for so long.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 86400);
/// systemd is told that the service is up after this time at the latest: a boot of the host does not wait for a peer.
const READY_AT_THE_LATEST: Duration = Duration::from_secs(2);
/// How often the status is published when nothing changes.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// Says how far the backup has come, and how long ago that was said, if ever.
pub type TellPosition = Box<dyn Fn() -> (Position, Option<Duration>) + Send + Sync>;

/// Says how the VM's writable disks are. It waits for no disk.
pub type TellDisks = Box<dyn Fn() -> DisksStatus + Send + Sync>;

/// Where the figures come from.
pub struct Sources {
    /// The arbiter, for people.
    pub arbiter_place: String,
    /// How connections are made.
    pub trust: Trust,
    /// The executor's.
    pub window: Arc<Window>,
    /// The replication threads'.
    pub telemetry: Arc<Telemetry>,
    /// Who the peer is and where.
    pub peer: Arc<PeerPlace>,
    /// What is held.
    pub output: OutputBuffer,
    /// The messages; none in tests.
    pub log: Option<Log>,
    /// Replay mode.
    pub position: Option<TellPosition>,
    /// With writable disks.
    pub disks: Option<TellDisks>,
}

/// See the module.
pub struct Publisher {
    config: Config,
    sources: Sources,
    log_rate: Mutex<Rate>,
    service_watch: Mutex<ServiceWatch>,
    refusals: Refusals,
    started: Instant,
    published: watch::Sender<Arc<Status>>,
    notifier: Notifier,
}

fn initial_status(config: &Config) -> Status {
    Status {
        schema: STATUS_SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        role: Role::Backup,
        state: State::Waiting,
        detail: "starting".into(),
        generation: 0,
        epoch: 0,
        acked_epoch: 0,
        checkpoints_per_s: 0.0,
        dirty_pages: 0,
        pause_us: Percentiles::default(),
        hold_us: Percentiles::default(),
        service: ServiceStatus::default(),
        bytes_sent: 0,
        compression_ratio: 0.0,
        parts: CheckpointParts::default(),
        mode: config.replication.mode,
        engine: config.machine.engine,
        cpu: config.machine.cpu,
        unknown_instructions: 0,
        guest_panics: 0,
        watchdog_firings: 0,
        booted: None,
        replay: None,
        copy: None,
        disks: None,
        take_over: None,
        rehearsal: None,
        peer: PeerStatus {
            node: config.peer.node.to_string(),
            address: config.peer.address.to_string(),
            connected: false,
            from: None,
            for_s: 0,
            trouble: None,
        },
        network: None,
        view_age_ms: 0,
        arbiter: ArbiterStatus {
            place: String::new(),
            reachable: true,
            hanging_calls: 0,
            age_s: None,
            peer_age_s: None,
            members: Vec::new(),
        },
        security: SecurityStatus::default(),
        lapses: Vec::new(),
        uptime_s: 0,
    }
}

fn age_us(at: Micros) -> u64 {
    clock::now_us().saturating_sub(at)
}

fn age_s(at: Micros) -> u64 {
    age_us(at) / 1_000_000
}

fn lapse_status(lapsed: &Lapsed) -> LapseStatus {
    let Lapsed { lapse, since } = lapsed;
    LapseStatus { kind: lapse.kind().into(), what: lapse.to_string(), since_s: age_s(*since) }
}

impl Publisher {
    /// Nothing is known of the replica yet.
    pub fn new(config: &Config, sources: Sources) -> Self {
        Self {
            config: config.clone(),
            sources,
            log_rate: Mutex::default(),
            service_watch: Mutex::default(),
            refusals: Refusals::default(),
            started: Instant::now(),
            published: watch::Sender::new(Arc::new(initial_status(config))),
            notifier: Notifier::default(),
        }
    }

    /// The status, as it is published.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.published.subscribe()
    }

    /// The last status.
    pub fn status(&self) -> Arc<Status> {
        self.published.borrow().clone()
    }

    /// The metrics in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        self.sources.telemetry.metrics.render(self.config.vm.as_str(), self.config.node.as_str())
    }

    /// Publishes for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(STATUS_INTERVAL);
        loop {
            ticks.tick().await;
            self.publish();
        }
    }

    /// The daemon is going down. Whoever watches shall see how it ended.
    pub fn stopping(&self) {
        self.notifier.stopping();
        self.publish();
    }

    /// Publishes what has changed just now.
    pub fn refresh(&self) {
        self.publish();
    }

    fn publish(&self) {
        let Sources { arbiter_place, window, telemetry, peer: place, output, log, position, .. } =
            &self.sources;
        let Some(shown) = window.view() else { return };
        let view_age_ms = shown.age().as_millis() as u64;
        let view = shown.what;
        let now = Instant::now();
        let metrics = &telemetry.metrics;
        let held = output.stats();
        let (peer, peer_for) = (window.peer().what, window.peer().age());
        let network = self.network();
        let copy_total = metrics.copy_total_bytes.get();
        let is_stuck = view_age_ms >= STUCK_MS;
        let state = if is_stuck { State::Stuck } else { view.state };
        self.count_view(&view, state);
        metrics.is_peer_connected.set(peer.connected.into());
        let rehearsal = view.rehearsal.map(RehearsalStatus::now);
        let age_us = rehearsal.as_ref().and_then(|rehearsal| rehearsal.age_us);
        metrics.rehearsal_age_us.set(age_us.unwrap_or(0));
        self.count_output(&held, now);
        metrics.bytes_sent.set_total(telemetry.bytes_sent());
        metrics.view_age_ms.set(view_age_ms);
        metrics.arbiter_hangs.set(window.arbiter_hangs().load(Ordering::Relaxed));
        metrics
            .network_troubled
            .set(network.as_ref().is_some_and(|network| network.trouble.is_some()).into());
        metrics.log_lines_lost.set_total(log.as_ref().map_or(0, Log::lost));

        let holds = Holds { over_us: &held.hold_us, oldest: held.oldest_held };
        let service = self.service_status(view.role, holds, now);
        metrics.is_hold_kept.set(service.hold_kept.into());
        metrics.is_speed_kept.set(service.speed_kept.into());

        // Each lock is let go before the next: `parts` takes one of them again.
        let checkpoints_per_s = metrics.commit_us.lock().rate(now);
        let pause_us = metrics.pause_us.lock().percentiles(now);
        let hold_us = metrics.hold_us.lock().percentiles(now);
        let status = Status {
            role: view.role,
            state,
            detail: match is_stuck {
                true => format!(
                    "the daemon is stuck: it has shown nothing for {} s, and this is what it showed last: {}, {}",
                    view_age_ms / 1000,
                    view.state,
                    view.detail
                ),
                false => view.detail,
            },
            generation: view.generation,
            epoch: metrics.epoch.get(),
            acked_epoch: metrics.acked_epoch.get(),
            checkpoints_per_s,
            dirty_pages: metrics.dirty_pages.get(),
            pause_us,
            hold_us,
            service,
            bytes_sent: metrics.bytes_sent.get(),
            compression_ratio: telemetry.compression_ratio(),
            parts: telemetry.parts(),
            unknown_instructions: metrics.unknown_instructions.get(),
            guest_panics: metrics.guest_panics.get(),
            watchdog_firings: metrics.watchdog_firings.get(),
            booted: telemetry.last_boot(),
            replay: position.as_ref().map(|position| self.replay_status(view.role, position(), now)),
            copy: (copy_total > 0).then(|| CopyStatus {
                done_bytes: metrics.copy_done_bytes.get(),
                total_bytes: copy_total,
                same_bytes: metrics.copy_same_bytes.get(),
                age_ms: telemetry.copy_age().as_millis() as u64,
            }),
            disks: self.disks(),
            take_over: telemetry.take_over(),
            rehearsal,
            peer: PeerStatus {
                node: view.peer,
                address: place.get().address.to_string(),
                connected: peer.connected,
                from: peer.from,
                for_s: peer_for.as_secs(),
                trouble: peer.trouble,
            },
            network,
            view_age_ms,
            arbiter: ArbiterStatus {
                place: arbiter_place.clone(),
                reachable: window.is_arbiter_reachable() && !self.is_arbiter_silent(&view.lapses),
                hanging_calls: metrics.arbiter_hangs.get(),
                age_s: view.arbiter_at.map(age_s),
                peer_age_s: view.peer_arbiter_at.map(age_s),
                members: self.members(),
            },
            security: self.security(),
            lapses: view.lapses.iter().map(lapse_status).collect(),
            uptime_s: self.started.elapsed().as_secs(),
            ..initial_status(&self.config)
        };
        self.tell_systemd(&status);
        self.published.send_replace(Arc::new(status));
    }

    /// How connections are protected, and for how long yet.
    fn security(&self) -> SecurityStatus {
        let expires = self.sources.trust.expires().map(|expires| {
            let since_1970 = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            (since_1970, expires.duration_since(SystemTime::now()).unwrap_or_default())
        });
        let expiry = expires.map_or(0, |(since_1970, _)| since_1970);
        self.sources.telemetry.metrics.certificate_expiry_s.set(expiry);
        let soon = expires.filter(|(_, left)| *left < CERTIFICATE_WARNING).map(|(_, left)| match left {
            Duration::ZERO => {
                "this host's certificate has expired: nobody lets it in (ftd keygen renew)".into()
            }
            left => format!(
                "this host's certificate expires in {} d {} h (ftd keygen renew)",
                left.as_secs() / 86400,
                left.as_secs() % 86400 / 3600
            ),
        });
        let calls = self.refusals.look();
        self.sources.telemetry.metrics.refused_calls.set_total(calls.iter().map(|call| call.count).sum());
        let refused = refusals::warning(&calls);
        SecurityStatus {
            link_in_tls: self.config.is_link_secured(),
            certificate_expires_unix_s: expires.map(|(since_1970, _)| since_1970),
            warnings: self.config.security_warnings().into_iter().chain(soon).chain(refused).collect(),
        }
    }

    /// What the output buffer holds and has let go.
    fn count_output(&self, held: &HoldStats, now: Instant) {
        let metrics = &self.sources.telemetry.metrics;
        metrics.held_frames.set(held.held_frames as u64);
        metrics.held_bytes.set(held.held_bytes as u64);
        metrics.oldest_held_us.set(held.oldest_held.as_micros() as u64);
        metrics.frames_released.set_total(held.released);
        metrics.frames_discarded.set_total(held.discarded);
        metrics.emit_errors.set_total(held.emit_errors);
        metrics.muted_offers.set_total(held.muted_offers);
        metrics.hold_full.set_total(held.full_events);
        metrics.hold_us.lock().absorb(&held.hold_us, now);
    }

    /// The core's view in numbers, and the state that it is taken for.
    fn count_view(&self, view: &View, state: State) {
        let metrics = &self.sources.telemetry.metrics;
        metrics.generation.set(view.generation);
        metrics.suspicions.set_total(view.suspicions);
        metrics.is_primary.set((view.role == Role::Primary).into());
        metrics.is_protected.set((state == State::Protected).into());
        metrics.is_degraded.set((state == State::Degraded).into());
        let unpermitted = view.lapses.iter().any(|lapsed| matches!(lapsed.lapse, Lapse::NoPermit { .. }));
        metrics.is_unpermitted.set(unpermitted.into());
        metrics.arbiter_age_us.set(view.arbiter_at.map_or(0, age_us));
        metrics.peer_arbiter_age_us.set(view.peer_arbiter_at.map_or(0, age_us));
    }

    fn service_status(&self, role: Role, holds: Holds<'_>, now: Instant) -> ServiceStatus {
        let configured = || {
            let r = &self.config.replication;
            Declared { hold_us_max: r.hold_ms_max * 1000, speed_pct_min: r.guest_speed_min_pct }
        };
        let Declared { hold_us_max, speed_pct_min } =
            self.sources.window.declared().unwrap_or_else(configured);
        let telemetry = &self.sources.telemetry;
        let throttle_permille = telemetry.metrics.throttle_permille.get();
        let is_slowed = role == Role::Primary && throttle_permille > 10;
        let carried = telemetry.carried().filter(|_| is_slowed);
        let guest_speed_pct = 100.0 - throttle_permille as f64 / 10.0;
        let watch = &mut *self.service_watch.lock();
        ServiceStatus {
            hold_ms_max: hold_us_max / 1000,
            hold_kept: watch.is_hold_kept(holds, hold_us_max, now),
            guest_speed_min_pct: speed_pct_min,
            speed_kept: watch.is_speed_kept(guest_speed_pct, speed_pct_min, now),
            guest_speed_pct,
            slowed_by: carried.map(|carried| carried.by),
            carried_mbit_per_s: carried.map(|carried| carried.bytes_per_s * 8.0 / 1e6),
        }
    }

    fn is_arbiter_silent(&self, lapses: &[Lapsed]) -> bool {
        lapses.iter().any(|lapsed| match &lapsed.lapse {
            Lapse::Silent { node, .. } => node == self.config.node.as_str(),
            _ => false,
        })
    }

    fn members(&self) -> Vec<MemberStatus> {
        let metrics = &self.sources.telemetry.metrics;
        let members = self.sources.window.arbiter_members().look().into_iter().map(|member| {
            let address = member.address.to_string();
            metrics.arbiter_members.set(&[("member", &address)], member.trouble.is_none().into());
            member.into()
        });
        members.collect()
    }

    fn disks(&self) -> Option<DisksStatus> {
        let disks = self.sources.disks.as_ref()?();
        let metrics = &self.sources.telemetry.metrics;
        metrics.disk_differing_bytes.set(disks.differing_bytes);
        metrics.disk_unacked_bytes.set(disks.unacked_bytes);
        metrics.disk_journal_bytes.set(disks.journal_bytes);
        metrics.disk_mismatches.set_total(disks.mismatches);
        metrics.disk_verified_bytes.set(disks.verify.as_ref().map_or(0, |verify| verify.compared_bytes));
        metrics.disk_copy_total_bytes.set(disks.copy.and_then(|copy| copy.total_bytes).unwrap_or(0));
        metrics.disk_copy_left_s.set(disks.copy.and_then(|copy| copy.left_s).unwrap_or(0));
        metrics.disk_compared_bytes.set(disks.copy.map_or(0, |copy| copy.same_bytes));
        metrics.disk_copied_bytes.set(disks.copy.map_or(0, |copy| copy.sent_bytes));
        Some(disks)
    }

    fn network(&self) -> Option<NetworkStatus> {
        let taps: Vec<_> = self.config.machine.nets.iter().map(|net| net.tap.as_str()).collect();
        if taps.is_empty() {
            return None;
        }
        let tap = taps.join(", ");
        let shown = self.sources.window.network();
        let peers = self.sources.window.peer_network();
        let (for_s, peer_for_s) = (shown.age().as_secs(), peers.age().as_secs());
        Some(NetworkStatus { tap, trouble: shown.what, for_s, peer_trouble: peers.what, peer_for_s })
    }

    fn replay_status(
        &self,
        role: Role,
        (position, age): (Position, Option<Duration>),
        now: Instant,
    ) -> ReplayStatus {
        let telemetry = &self.sources.telemetry;
        let metrics = &telemetry.metrics;
        metrics.lag_us.set(position.lag_us);
        if role == Role::Backup {
            metrics.replay_count.set(position.count);
        }
        ReplayStatus {
            count: metrics.replay_count.get(),
            log_bytes_per_s: self.log_rate.lock().of(metrics.log_bytes.get(), now),
            lag_us: position.lag_us,
            position_age_ms: age.map(|age| age.as_millis() as u64),
            throttle_pct: metrics.throttle_permille.get() as f64 / 10.0,
            divergences: metrics.divergences.get(),
            last_divergence: telemetry.divergence(),
        }
    }

    /// Up as soon as the node does what it is there for: it runs the VM, or it stands ready to be the backup. One that
    /// waits is up as well, after a moment: the status line says what it waits for.
    fn tell_systemd(&self, status: &Status) {
        let serves =
            matches!(status.state, State::Protected | State::Degraded | State::Solo | State::Resyncing);
        let follows = status.role == Role::Backup && status.generation > 0;
        if serves || follows || self.started.elapsed() > READY_AT_THE_LATEST {
            self.notifier.ready_once();
        }
        let line =
            format!("{}, {}, generation {}: {}", status.role, status.state, status.generation, status.detail);
        self.notifier.status(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_netbuf::{Bounds, Emit};
    use std::path::Path;

    /// A wire whose cable is out.
    struct Unplugged;

    impl Emit for Unplugged {
        fn emit(&self, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::NotConnected.into())
        }
    }

    fn publisher() -> Publisher {
        let example = include_str!("../../../scripts/systemd/ftd.example.toml");
        let config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        let bounds = Bounds { frames: 8, bytes: 8000, frame_bytes: 1000 };
        let sources = Sources {
            arbiter_place: "/shared".into(),
            trust: Trust::none(),
            window: Arc::default(),
            telemetry: Arc::default(),
            peer: Arc::new(PeerPlace::new(config.peer.clone(), ft_tls::Protection::None)),
            output: OutputBuffer::new(vec![Box::new(Unplugged)], bounds),
            log: None,
            position: None,
            disks: None,
        };
        Publisher::new(&config, sources)
    }

    fn primary(state: State) -> View {
        View {
            role: Role::Primary,
            state,
            generation: 4,
            suspicions: 3,
            rehearsal: None,
            peer: "beta".into(),
            lapses: Vec::new(),
            arbiter_at: None,
            peer_arbiter_at: None,
            detail: "in step".into(),
        }
    }

    fn assert_metric(publisher: &Publisher, name: &str, value: u64) {
        let (line, text) = (format!("\n{name}{{vm=\"web\",node=\"alpha\"}} {value}\n"), publisher.metrics());
        assert!(text.contains(&line), "{line}{text}");
    }

    #[test]
    fn an_executor_that_shows_nothing_is_called_stuck_within_two_seconds_and_nothing_is_green() {
        let publisher = publisher();
        publisher.sources.window.show(primary(State::Protected));
        publisher.publish();
        assert_eq!(publisher.status().state, State::Protected);
        assert_metric(&publisher, "ftd_protected", 1);
        publisher.sources.window.age_view(Duration::from_secs(2) - 2 * STATUS_INTERVAL);
        publisher.publish();
        let status = publisher.status();
        assert_eq!(status.state, State::Stuck);
        assert!(status.detail.ends_with("this is what it showed last: protected, in step"), "{status:?}");
        assert!(!status.is_well_protected());
        assert_metric(&publisher, "ftd_protected", 0);
        publisher.sources.window.show(primary(State::Degraded));
        publisher.publish();
        assert_metric(&publisher, "ftd_degraded", 1);
        publisher.sources.window.age_view(Duration::from_secs(2));
        publisher.publish();
        assert_metric(&publisher, "ftd_degraded", 0);
        publisher.sources.window.show(primary(State::Protected));
        publisher.publish();
        assert_metric(&publisher, "ftd_protected", 1);
    }

    #[test]
    fn a_frame_that_is_held_without_end_is_a_service_that_is_not_kept() {
        let publisher = publisher();
        publisher.sources.window.show(primary(State::Protected));
        publisher.sources.window.declare(Declared { hold_us_max: 5_000, speed_pct_min: 10 });
        publisher.publish();
        assert_metric(&publisher, "ftd_hold_kept", 1);
        assert_metric(&publisher, "ftd_guest_speed_kept", 1);
        let output = &publisher.sources.output;
        output.hold();
        let _ = output.transmit(0, b"frame");
        while output.stats().oldest_held <= Duration::from_millis(5) {
            std::thread::yield_now();
        }
        publisher.sources.telemetry.slowed(901);
        publisher.publish();
        assert!(!publisher.status().service.hold_kept);
        assert_metric(&publisher, "ftd_hold_kept", 0);
        assert_metric(&publisher, "ftd_guest_speed_kept", 0);
    }

    #[test]
    fn what_became_of_frames_and_how_often_the_peer_was_suspected_is_counted() {
        let publisher = publisher();
        publisher.sources.window.show(primary(State::Solo));
        let output = &publisher.sources.output;
        let offer = |frames| {
            for _ in 0..frames {
                let _ = output.transmit(0, b"frame");
            }
        };
        offer(1);
        let _ = output.pass();
        offer(2);
        output.hold();
        offer(5);
        output.mute();
        publisher.publish();
        for (name, value) in [
            ("ftd_generation", 4),
            ("ftd_suspicions_total", 3),
            ("ftd_muted_offers_total", 1),
            ("ftd_emit_errors_total", 2),
            ("ftd_frames_discarded_total", 5),
        ] {
            assert_metric(&publisher, name, value);
        }
    }
}
