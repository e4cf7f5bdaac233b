//! The status as text for people: a block of aligned lines, or one line.

use super::api::{MemberStatus, NetworkStatus, ReplayStatus, Role, SecurityStatus, State, Status};
use crate::clock;
use crate::observe::{
    BootStatus, Bottleneck, DisksCopyStatus, DisksStatus, DisksVerifyStatus, Percentiles, ServiceStatus,
    VerifyState,
};
use ft_vm::spec::CpuModel;
use std::fmt::Write;

/// Whether states stand out by colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Palette {
    /// Escape sequences of a terminal.
    Coloured,
    /// Nothing but text.
    Plain,
}

/// Several aligned lines.
#[must_use]
pub fn block(status: &Status, palette: Palette) -> String {
    let mut rows = Rows::default();
    rows.add("vm", format!("{} on {}", status.vm, status.node));
    rows.add("role", status.role.to_string());
    rows.add("state", painted(status.state, palette));
    if !status.detail.is_empty() {
        rows.add("", status.detail.clone());
    }
    if let Some(copy) = status.copy {
        let percent = 100.0 * copy.done_bytes as f64 / copy.total_bytes.max(1) as f64;
        let same = match copy.same_bytes {
            0 => String::new(),
            same => format!(", {} of it the same on both hosts", bytes(same)),
        };
        rows.add("full copy", format!("{percent:.0} % of {}{same}", bytes(copy.total_bytes)));
    }
    rows.disks(status);
    if status.cpu != CpuModel::Host {
        rows.add("processor", status.cpu.to_string());
    }
    rows.add("generation", status.generation.to_string());
    match &status.replay {
        Some(replay) => rows.replay(status, replay),
        None => rows.checkpoints(status),
    }
    rows.service(status);
    rows.guest(status);
    rows.proof(status);
    rows.surroundings(status);
    rows.add("up", duration(status.uptime_s));
    rows.0
}

/// Lines with a name each.
#[derive(Default)]
struct Rows(String);

impl Rows {
    fn add(&mut self, name: &str, value: String) {
        let _ = writeln!(self.0, "{name:>13}  {value}");
    }

    /// How far the log is, on either side.
    fn replay(&mut self, status: &Status, replay: &ReplayStatus) {
        self.add("mode", format!("replay, engine {}, at instruction {}", status.engine, replay.count));
        let per_s = status.checkpoints_per_s;
        self.add("log", format!("batch {}, {} acked, {per_s:.0} /s", status.epoch, status.acked_epoch));
        if status.role == Role::Primary {
            let mbit_per_s = replay.log_bytes_per_s * 8.0 / 1e6;
            self.add("", format!("{mbit_per_s:.2} Mbit/s, {} sent in all", bytes(status.bytes_sent)));
        }
        let lag = replay.lag_us as f64 / 1000.0;
        let slowed = match replay.throttle_pct {
            0.0 => String::new(),
            percent => format!(", the VM is slowed by {percent:.0} %"),
        };
        self.add("backup's lag", format!("{lag:.1} ms{slowed}"));
        if let Some(last) = &replay.last_divergence {
            let (times, count, what) = (replay.divergences, last.count, &last.what);
            self.add("diverged", format!("{times} times, last at instruction {count}: {what}"));
        }
        if status.role == Role::Primary {
            self.add("output held", times(status.hold_us));
        }
    }

    /// How the checkpoints go, on either side.
    fn checkpoints(&mut self, status: &Status) {
        self.add("epoch", format!("{}, {} acked", status.epoch, status.acked_epoch));
        let per_s = status.checkpoints_per_s;
        if status.role == Role::Backup {
            self.add("checkpoints", format!("{per_s:.1} /s"));
            return;
        }
        let dirty = format!("{} dirty pages in the last one", status.dirty_pages);
        self.add("checkpoints", format!("{per_s:.1} /s, {dirty}"));
        self.add("pause", times(status.pause_us));
        self.add("output held", times(status.hold_us));
        let sent = bytes(status.bytes_sent);
        self.add("sent", format!("{sent}, compressed {:.1} : 1", status.compression_ratio));
    }

    /// The writable disks.
    fn disks(&mut self, status: &Status) {
        let Some(disks) = &status.disks else { return };
        let DisksStatus {
            differing_bytes,
            unacked_bytes,
            waits,
            journal_bytes,
            copy,
            last_copy: _,
            verify,
            mismatches,
            trouble,
        } = disks;
        match (copy, status.role) {
            (Some(DisksCopyStatus { total_bytes: None, .. }), _) => {
                self.add("disks", "asking the backup what its images have".into());
            }
            (Some(copy), _) => self.disks_copy(copy, copy.total_bytes.unwrap_or(0)),
            (None, Role::Backup) if status.replay.is_some() => {
                self.add("disks", format!("{} may differ from the peer's", bytes(*differing_bytes)));
            }
            (None, Role::Backup) => {
                self.add("disks", format!("{} wait to be written into the images", bytes(*journal_bytes)));
            }
            (None, Role::Primary) => {
                let waits = if *waits { "; the guest's writes wait" } else { "" };
                let (differing, unacked) = (bytes(*differing_bytes), bytes(*unacked_bytes));
                self.add(
                    "disks",
                    format!("{differing} may differ from the peer's, {unacked} not acked{waits}"),
                );
            }
        }
        if let Some(verify) = verify.as_ref().filter(|_| status.role == Role::Primary) {
            self.add("compared", self::verify(verify));
        }
        if *mismatches > 0 {
            let found =
                format!("{mismatches} extents of the backup's images differed since the daemon started");
            self.add("", format!("TROUBLE: {found}: see the log"));
        }
        if let Some(trouble) = trouble {
            self.add("", trouble.clone());
        }
    }

    /// How far two images are made the same.
    fn disks_copy(&mut self, copy: &DisksCopyStatus, total: u64) {
        let percent = 100.0 * copy.same_bytes as f64 / total.max(1) as f64;
        let [compared, differing, sent] =
            [copy.compared_bytes, copy.differing_bytes, copy.sent_bytes].map(bytes);
        self.add("disks", format!("{percent:.0} % of {} are the same on both hosts", bytes(total)));
        self.add("", format!("{compared} compared, {differing} differed, {sent} sent"));
        let left = copy.left_s.map_or("unknown".into(), duration);
        self.add("", format!("{} /s, time left: {left}", bytes(copy.bytes_per_s)));
    }

    /// What the guest and its clients do not get.
    fn service(&mut self, status: &Status) {
        let ServiceStatus {
            guest_speed_pct,
            guest_speed_min_pct: _,
            speed_kept: _,
            hold_kept,
            hold_ms_max,
            slowed_by,
            carried_mbit_per_s,
        } = status.service;
        if status.role == Role::Primary && guest_speed_pct < 99.0 {
            let why = match slowed_by {
                Some(Bottleneck::Link) => "the replication link carries no more",
                Some(Bottleneck::Backup) => "the backup takes no more",
                None => "link and backup carry no more",
            };
            let carried = carried_mbit_per_s.map_or(String::new(), |mbit| format!(" ({mbit:.1} Mbit/s now)"));
            self.add("slowed", format!("the VM runs at {guest_speed_pct:.0} % of its speed: {why}{carried}"));
        }
        if status.role == Role::Primary && !hold_kept {
            let bound = format!("{hold_ms_max} ms (hold_ms_max)");
            self.add("late", format!("output was held for longer than {bound} in the last minute"));
        }
        if status.unknown_instructions > 0 {
            let executed = "the guest executed instructions that the engine does not have";
            self.add(
                "unsupported",
                format!("{executed}, {} times: see the log", status.unknown_instructions),
            );
        }
    }

    /// What the guest booted, and came to.
    fn guest(&mut self, status: &Status) {
        if let Some(BootStatus { kernel, version, entry, found_in, for_s }) = &status.booted {
            let version = version.as_deref().and_then(|version| version.split(' ').next());
            let version = version.map_or(String::new(), |version| format!(" (Linux {version})"));
            self.add("booted", format!("{kernel}{version}, {} ago", duration(*for_s)));
            self.add("", format!("entry \"{entry}\" of {found_in}"));
        }
        if status.guest_panics > 0 {
            self.add("panicked", format!("the guest's kernel, {} times: see the log", status.guest_panics));
        }
        if status.watchdog_firings > 0 {
            let times = status.watchdog_firings;
            self.add("hung", format!("the guest did not feed its watchdog, {times} times: see the log"));
        }
    }

    /// What is known of a take-over that has not happened.
    fn proof(&mut self, status: &Status) {
        let Some(rehearsal) = &status.rehearsal else { return };
        let ago = rehearsal.age_us.map(|age| duration(age / 1_000_000));
        let shown = match (ago, &rehearsal.trouble) {
            (Some(ago), None) => format!("{ago} ago: the VM could go on here"),
            (None, None) => "not yet".into(),
            (Some(ago), Some(why)) => format!("failed, went well {ago} ago: {why}"),
            (None, Some(why)) => format!("failed: {why}"),
        };
        self.add("rehearsed", shown);
    }

    /// What protects the connections to other hosts, if there are any.
    fn security(&mut self, security: &SecurityStatus) {
        let SecurityStatus { link_in_tls, certificate_expires_unix_s, warnings } = security;
        let link = if *link_in_tls { "the link is in TLS" } else { "the link is in the clear" };
        match certificate_expires_unix_s {
            Some(at) => {
                let until = clock::utc(at.saturating_mul(1000));
                self.add("security", format!("{link}, certificate valid until {until}"));
            }
            None if warnings.is_empty() => {}
            None => self.add("security", link.to_owned()),
        }
        for warning in warnings {
            self.add("", format!("WARNING: {warning}"));
        }
    }

    /// Those of several arbiters that do not answer.
    fn members(&mut self, members: &[MemberStatus]) {
        let (all, needed) = (members.len(), members.len() / 2 + 1);
        let there = members.iter().filter(|member| member.trouble.is_none()).count();
        let last = if there == needed { "; with one more away no host takes over" } else { "" };
        for MemberStatus { address, trouble, for_s } in members {
            let Some(trouble) = trouble else { continue };
            let since = duration(*for_s);
            self.add("", format!("WARNING: {address}, one of {all}, away for {since}: {trouble}{last}"));
        }
    }

    /// Peer, network and arbiter.
    fn surroundings(&mut self, status: &Status) {
        let peer = &status.peer;
        let connected = match (peer.connected, peer.from) {
            (true, Some(from)) => format!("connected with {from}"),
            (true, None) => "connected".into(),
            (false, _) => "not connected".into(),
        };
        let since = duration(peer.for_s);
        self.add("peer", format!("{} at {}, {connected} for {since}", peer.node, peer.address));
        for trouble in peer.trouble.iter().filter(|_| !peer.connected).flat_map(|trouble| trouble.lines()) {
            self.add("", trouble.to_owned());
        }
        if let Some(NetworkStatus { tap, trouble, for_s, peer_trouble, peer_for_s }) = &status.network {
            let shown = match trouble {
                Some(trouble) => format!("TROUBLE for {}: {trouble}", duration(*for_s)),
                None => "well".into(),
            };
            self.add("network", format!("{tap}, {shown}"));
            if let Some(trouble) = peer_trouble {
                self.add("", format!("TROUBLE on {} for {}: {trouble}", peer.node, duration(*peer_for_s)));
            }
        }
        let reachable = if status.arbiter.reachable { "answers" } else { "does not answer" };
        let age = match status.arbiter.age_s {
            Some(age) if age > 0 => format!(", the last time {} ago", duration(age)),
            _ => String::new(),
        };
        self.add("arbiter", format!("{}, {reachable}{age}", status.arbiter.place));
        if status.arbiter.hanging_calls > 0 {
            self.add("", format!("{} calls on it have never returned", status.arbiter.hanging_calls));
        }
        self.members(&status.arbiter.members);
        self.security(&status.security);
        for lapse in &status.lapses {
            self.add("not proven", format!("for {}: {}", duration(lapse.since_s), lapse.what));
        }
    }
}

/// A comparison of disks under protection, in a line.
#[must_use]
pub fn verify(verify: &DisksVerifyStatus) -> String {
    let DisksVerifyStatus { differing_bytes, repaired_bytes, unsettled_bytes, .. } = *verify;
    let mut text = match verify.state {
        VerifyState::Running => {
            let left = verify.left_s.map_or("unknown".into(), duration);
            let (total, per_s) = (bytes(verify.total_bytes), bytes(verify.bytes_per_s));
            format!("{} of {total} compared, {per_s} /s, time left: {left}", bytes(verify.compared_bytes))
        }
        VerifyState::Done => {
            format!("{} compared in {}", bytes(verify.compared_bytes), duration(verify.took_ms / 1000))
        }
        VerifyState::BrokenOff => format!("{} compared, and then broken off", bytes(verify.compared_bytes)),
    };
    match differing_bytes {
        0 if verify.state == VerifyState::Done && unsettled_bytes == 0 => text += ": all the same",
        0 => {}
        differing => {
            let _ = write!(text, ": {} of the backup's differ", bytes(differing));
        }
    }
    if repaired_bytes > 0 {
        let _ = write!(text, ", {} sent anew", bytes(repaired_bytes));
    }
    if unsettled_bytes > 0 {
        let _ = write!(text, ", {} changed too often to be compared", bytes(unsettled_bytes));
    }
    text
}

/// One line, for a log of statuses.
#[must_use]
pub fn line(status: &Status) -> String {
    let Status { vm, node, role, state, generation, acked_epoch, checkpoints_per_s, detail, .. } = status;
    let numbers = format!("generation {generation} acked {acked_epoch} {checkpoints_per_s:.1}/s");
    let separator = if detail.is_empty() { "" } else { ": " };
    format!("{vm} on {node} {role} {state} {numbers}{separator}{detail}\n")
}

fn painted(state: State, palette: Palette) -> String {
    let code = match state {
        State::Protected => 32,
        State::Degraded | State::Solo | State::Resyncing => 33,
        State::Waiting | State::Fenced | State::Stuck => 31,
    };
    match palette {
        Palette::Coloured => format!("\x1b[1;{code}m{state}\x1b[0m"),
        Palette::Plain => state.to_string(),
    }
}

fn times(us: Percentiles) -> String {
    let ms = |us: u64| us as f64 / 1000.0;
    format!("{:.2} ms median, {:.2} ms p99", ms(us.p50), ms(us.p99))
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let decimals = usize::from(unit != "B");
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::{CopyStatus, ReplayStatus};
    use super::super::server::tests::status;
    use super::*;
    use crate::observe::Divergence;
    use ft_vm::spec::EngineKind;

    #[test]
    fn a_status_is_shown_aligned() {
        let copy = CopyStatus { done_bytes: 64 << 20, total_bytes: 256 << 20, same_bytes: 0, age_ms: 12 };
        let back = Some(CopyStatus { same_bytes: 60 << 20, ..copy });
        let text = block(&Status { copy: back, ..status() }, Palette::Plain);
        let line = "full copy  25 % of 256.0 MiB, 60.0 MiB of it the same on both hosts\n";
        assert!(text.contains(line), "{text}");
        let copy = Some(copy);
        let text = block(&Status { copy, ..status() }, Palette::Plain);
        let expected = "           vm  web on alpha
         role  primary
        state  resyncing
               copying
    full copy  25 % of 256.0 MiB
   generation  3
        epoch  1200, 1199 acked
  checkpoints  187.5 /s, 150 dirty pages in the last one
        pause  0.40 ms median, 0.90 ms p99
  output held  6.00 ms median, 9.00 ms p99
         sent  1.0 GiB, compressed 9.5 : 1
         peer  beta at 10.0.0.2:7400, connected with 10.0.0.2:40000 for 50 s
      network  ftd-web, well
      arbiter  file /shared/web.cell, answers
           up  1 min 0 s
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_writable_disks_show_what_differs_and_how_far_a_copy_is() {
        let lines = |disks: DisksStatus, role, count| {
            let text = block(&Status { disks: Some(disks), role, ..status() }, Palette::Plain);
            let lines = text.lines().skip_while(|line| !line.trim_start().starts_with("disks"));
            lines.take(count).map(str::trim).collect::<Vec<_>>().join(" | ")
        };
        let line = |disks, role| lines(disks, role, 2);
        let copy = DisksCopyStatus {
            total_bytes: Some(4 << 30),
            same_bytes: 1 << 30,
            compared_bytes: 2 << 30,
            differing_bytes: 12 << 20,
            sent_bytes: 8 << 20,
            bytes_per_s: 32 << 20,
            left_s: Some(96),
            took_ms: 32_000,
        };
        let expected = "disks  25 % of 4.0 GiB are the same on both hosts | \
                        2.0 GiB compared, 12.0 MiB differed, 8.0 MiB sent | \
                        32.0 MiB /s, time left: 1 min 36 s | generation  3";
        let copying = DisksStatus { copy: Some(copy), ..DisksStatus::default() };
        assert_eq!(lines(copying, Role::Primary, 4), expected);
        let copy = Some(DisksCopyStatus::default());
        let expected = "disks  asking the backup what its images have | generation  3";
        assert_eq!(line(DisksStatus { copy, ..DisksStatus::default() }, Role::Primary), expected);
        let waits = DisksStatus {
            differing_bytes: 3 << 20,
            unacked_bytes: 64 << 20,
            waits: true,
            trouble: Some("disk 1: its intent map: the disk is gone".into()),
            ..DisksStatus::default()
        };
        let expected = "disks  3.0 MiB may differ from the peer's, 64.0 MiB not acked; the guest's writes wait | \
                        disk 1: its intent map: the disk is gone";
        assert_eq!(line(waits, Role::Primary), expected);
        let behind = DisksStatus { journal_bytes: 2 << 20, ..DisksStatus::default() };
        let expected = "disks  2.0 MiB wait to be written into the images | generation  3";
        assert_eq!(line(behind, Role::Backup), expected);
    }

    #[test]
    fn replay_mode_shows_how_far_the_backup_is_and_what_it_costs() {
        let last_divergence = Some(Divergence { count: 77, what: "register rax".into() });
        let replay = ReplayStatus {
            count: 5_000_000,
            log_bytes_per_s: 250_000.0,
            lag_us: 1500,
            position_age_ms: Some(3),
            throttle_pct: 20.0,
            divergences: 1,
            last_divergence,
        };
        let named = Status { cpu: CpuModel::X86_64V2, ..status() };
        assert!(block(&named, Palette::Plain).contains("    processor  x86-64-v2\n"));
        assert!(!block(&status(), Palette::Plain).contains("processor"));
        let text = block(
            &Status { replay: Some(replay.clone()), engine: EngineKind::Soft, ..status() },
            Palette::Plain,
        );
        for line in [
            "         mode  replay, engine soft, at instruction 5000000\n",
            "          log  batch 1200, 1199 acked, 188 /s\n               2.00 Mbit/s, 1.0 GiB sent in all\n",
            " backup's lag  1.5 ms, the VM is slowed by 20 %\n",
            "     diverged  1 times, last at instruction 77: register rax\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("pause") && !text.contains("checkpoint"), "{text}");
        let disks = Some(DisksStatus { differing_bytes: 3 << 20, ..DisksStatus::default() });
        let backup = Status { role: Role::Backup, disks, replay: Some(replay), ..status() };
        let text = block(&backup, Palette::Plain);
        assert!(text.contains(" disks  3.0 MiB may differ from the peer's\n"), "{text}");
    }

    #[test]
    fn the_keys_of_replay_mode_are_the_statuses_own() {
        let json = serde_json::to_value(status()).unwrap();
        assert!(json.get("lag_us").is_none() && json.get("mode").is_some(), "{json}");
        let replay = ReplayStatus {
            count: 1,
            log_bytes_per_s: 0.0,
            lag_us: 2,
            position_age_ms: None,
            throttle_pct: 0.0,
            divergences: 0,
            last_divergence: None,
        };
        let status = Status { replay: Some(replay), ..status() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((json["count"].as_u64(), json["lag_us"].as_u64()), (Some(1), Some(2)));
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn a_vm_that_is_slowed_and_output_that_is_late_are_shown() {
        let service = ServiceStatus {
            hold_ms_max: 100,
            hold_kept: false,
            guest_speed_min_pct: 10,
            speed_kept: true,
            guest_speed_pct: 12.4,
            slowed_by: Some(Bottleneck::Link),
            carried_mbit_per_s: Some(9.44),
        };
        let text = block(&Status { service, ..status() }, Palette::Plain);
        for line in [
            "       slowed  the VM runs at 12 % of its speed: the replication link carries no more (9.4 Mbit/s now)\n",
            "         late  output was held for longer than 100 ms (hold_ms_max) in the last minute\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn unknown_instructions_are_shown_where_there_were_any() {
        assert!(!block(&status(), Palette::Plain).contains("unsupported"));
        let text = block(&Status { unknown_instructions: 3, ..status() }, Palette::Plain);
        assert!(
            text.contains(
                "unsupported  the guest executed instructions that the engine does not have, 3 times"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_the_guest_came_to_is_shown_where_it_did() {
        let text = block(&status(), Palette::Plain);
        assert!(!text.contains("panicked") && !text.contains("hung"), "{text}");
        let text = block(&Status { guest_panics: 2, watchdog_firings: 3, ..status() }, Palette::Plain);
        assert!(text.contains("     panicked  the guest's kernel, 2 times: see the log\n"), "{text}");
        assert!(
            text.contains("         hung  the guest did not feed its watchdog, 3 times: see the log\n"),
            "{text}"
        );
    }

    #[test]
    fn why_there_is_no_peer_is_shown_one_line_for_each_reason() {
        let mut status = status();
        status.peer.connected = false;
        status.peer.trouble = Some("disk 1: differs\nmachine.rng: differs".into());
        let text = block(&status, Palette::Plain);
        assert!(
            text.contains(
                "not connected for 50 s\n               disk 1: differs\n               machine.rng"
            ),
            "{text}"
        );
        status.peer.connected = true;
        assert!(!block(&status, Palette::Plain).contains("differs"), "it is past");
    }

    #[test]
    fn colour_is_only_where_asked() {
        assert!(!block(&status(), Palette::Plain).contains('\x1b'));
        assert!(block(&status(), Palette::Coloured).contains("\x1b[1;33mresyncing\x1b[0m"));
    }

    #[test]
    fn a_line_says_who_and_why() {
        assert_eq!(
            line(&status()),
            "web on alpha primary resyncing generation 3 acked 1199 187.5/s: copying\n"
        );
    }
}
