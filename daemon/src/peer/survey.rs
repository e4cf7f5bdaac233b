//! What lies between the two hosts: `ftd check-config` asks the peer's daemon how it sees its own host, and compares.
//! The daemon answers at the replication port, on a connection of its own. No pairing begins, and none is disturbed.

use super::error::HandshakeError;
use super::handshake::{Local, check, party, shown};
use super::stream::{PeerStream, PeerWriter, tune};
use crate::config::Config;
use crate::host::{Contents, DescribeError, HostError, Need, RunningHere, Trust, Unread, identity};
use ft_checkpoint::wire::handshake::{Refusal, Side};
use ft_checkpoint::wire::message::{Fact, HostFiles, Identity, Survey};
use ft_checkpoint::wire::{FrameError, FrameReader, FrameWriter, Message, vm_id};
use ft_tls::SecuredService;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

/// The peer's answer is waited for as long, and its address.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// This host's files are read as long before they are left out.
const FILES_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at how far they are read.
const FILES_LOOK: Duration = Duration::from_millis(20);
/// Clocks that are no further apart are told as one.
const CLOCKS_APART: Duration = Duration::from_secs(1);
/// The release that is built here.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Something between the two hosts that an operator wants to know before the VM depends on both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostGap {
    /// A line of what the handshake will refuse.
    #[error("the two nodes will not pair: {0}")]
    Refused(String),
    /// One cannot hold the VM.
    #[error("node {node} cannot be the backup: {what}")]
    Lacks {
        /// Which.
        node: String,
        /// What its host has not enough of.
        what: String,
    },
    /// Two releases of ftd.
    #[error("ftd is {ours} here and {theirs} on {peer}")]
    Releases {
        /// Ours.
        ours: String,
        /// The peer's.
        theirs: String,
        /// Its name.
        peer: String,
    },
    /// Two times of day.
    #[error(
        "the clock of {ahead}'s host is {}.{} s ahead of {behind}'s: times in their logs cannot be compared; \
         synchronise both (NTP)",
        apart.as_secs(), apart.subsec_millis() / 100
    )]
    Clocks {
        /// The node on whose host it is later.
        ahead: String,
        /// The other.
        behind: String,
        /// By how much, at least.
        apart: Duration,
    },
    /// Two MTUs on one link.
    #[error(
        "the MTU of the link is {ours} on this host and {theirs} on {peer}'s: frames that one sends are too large for \
         the other; set the same on both"
    )]
    Mtus {
        /// Ours.
        ours: u32,
        /// The peer's.
        theirs: u32,
        /// Its name.
        peer: String,
    },
    /// What the files hold was left out.
    #[error("kernels, initrds and images are not compared: {node} has not read its own: {why}")]
    Unread {
        /// Whose.
        node: String,
        /// Why.
        why: String,
    },
}

/// Why nothing is compared.
#[derive(Debug, thiserror::Error)]
pub enum NotCompared {
    /// No answer that can be read.
    #[error("the peer does not answer at {address}: not compared ({why})")]
    Silent {
        /// Where it was asked.
        address: SocketAddr,
        /// What came of it.
        why: HandshakeError,
    },
    /// This host has no such machine.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nor can it be described.
    #[error(transparent)]
    Describe(#[from] DescribeError),
}

/// Asks the peer, and compares its host with this one, where the VM's daemon may have taken its memory already.
pub fn compare(config: &Config, running: Option<&RunningHere>) -> Result<Vec<HostGap>, NotCompared> {
    let spec = config.machine_spec()?;
    let need = Need { ram_bytes: spec.ram_bytes, lock: config.machine.lock_memory };
    let ours = identity(config, &spec)?;
    let contents = Contents::start(config).map_err(HostError::Thread)?;
    let address = config.peer.address;
    let answer = match ask(config, &config.trust()?, &ours.vm) {
        Ok(answer) => answer,
        Err(HandshakeError::Frame(FrameError::Version { theirs, ours })) => {
            return Ok(vec![HostGap::Refused(Refusal::Frames { theirs, ours }.to_string())]);
        }
        Err(why) => return Err(NotCompared::Silent { address, why }),
    };
    let ours = Survey {
        identity: ours,
        files: read(&contents),
        release: RELEASE.to_owned(),
        mtu: answer.mtu,
        lacks: if running.is_some() { None } else { need.shortage().map(|lack| lack.to_string()) },
        clock_us: answer.clock_us,
    };
    Ok(gaps(&answer.theirs, &ours, answer.doubt))
}

/// The facts of this host's files, if they can be read soon.
fn read(contents: &Contents) -> HostFiles {
    let until = Instant::now() + FILES_LIMIT;
    loop {
        match contents.facts() {
            Err(Unread::Reading { .. }) if Instant::now() < until => std::thread::sleep(FILES_LOOK),
            outcome => return told(outcome),
        }
    }
}

fn told(files: Result<Vec<Fact>, Unread>) -> HostFiles {
    match files {
        Ok(facts) => HostFiles::Known(facts),
        Err(unread) => HostFiles::Unread(unread.to_string()),
    }
}

/// The peer's survey, and what only the asking tells of this host.
struct Answer {
    theirs: Box<Survey>,
    mtu: Option<u32>,
    /// This host's clock in the middle of the round trip.
    clock_us: u64,
    /// Half of the round trip: the peer's clock was read so much earlier or later, at most.
    doubt: Duration,
}

fn ask(config: &Config, trust: &Trust, vm: &str) -> Result<Answer, HandshakeError> {
    let until = Instant::now() + ANSWER_LIMIT;
    let stream = TcpStream::connect_timeout(&config.peer.address, ANSWER_LIMIT)?;
    tune(&stream)?;
    let mtu = mtu_towards_peer(&stream);
    let peer = party(&config.peer.node)?;
    let channel = trust.link.dial(stream, &peer, SecuredService::Replication, until)?;
    let mut writer = FrameWriter::new(channel.try_clone()?, vm_id(vm), 0);
    let mut reader = FrameReader::new(PeerStream::new(channel, until));
    let (asked, clock_us) = (Instant::now(), clock_us());
    Message::Survey(None).send(0, &mut writer)?;
    let Message::Survey(Some(theirs)) = Message::decode(&reader.read()?)? else {
        return Err(HandshakeError::Unexpected("a survey"));
    };
    let doubt = asked.elapsed() / 2;
    Ok(Answer { theirs, mtu, clock_us: clock_us.saturating_add(doubt.as_micros() as u64), doubt })
}

/// Tells the peer who asks.
pub(super) fn answer(local: &Local, writer: &mut PeerWriter) -> Result<(), HandshakeError> {
    let holds = (local.held)().is_some();
    let survey = Survey {
        identity: local.without_files(),
        files: told((local.contents)()),
        release: RELEASE.to_owned(),
        mtu: mtu_towards_peer(writer.get_ref().socket()),
        lacks: if holds { None } else { (local.lacks)().map(|lack| lack.to_string()) },
        clock_us: clock_us(),
    };
    Ok(Message::Survey(Some(Box::new(survey))).send(0, writer)?)
}

fn clock_us() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros() as u64
}

/// The MTU of a connection's way, as the kernel knows it.
fn mtu_towards_peer(stream: &TcpStream) -> Option<u32> {
    let (level, option) = match stream.peer_addr().ok()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    let mut bytes = size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as the stream is borrowed; the option is an int, and its length says so.
    let result =
        unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut bytes) };
    if result == 0 { u32::try_from(mtu).ok() } else { None }
}

/// What lies between two hosts whose clocks were read at the same time, give or take `doubt`.
fn gaps(theirs: &Survey, ours: &Survey, doubt: Duration) -> Vec<HostGap> {
    let peer = &theirs.identity.node;
    let mut gaps: Vec<HostGap> = refusals(theirs, ours).into_iter().map(HostGap::Refused).collect();
    for survey in [ours, theirs] {
        let node = survey.identity.node.clone();
        if let HostFiles::Unread(why) = &survey.files {
            gaps.push(HostGap::Unread { node: node.clone(), why: shown(why) });
        }
        if let Some(what) = &survey.lacks {
            gaps.push(HostGap::Lacks { node, what: shown(what) });
        }
    }
    if theirs.release != ours.release {
        let (ours, theirs) = (ours.release.clone(), shown(&theirs.release));
        gaps.push(HostGap::Releases { ours, theirs, peer: peer.clone() });
    }
    let apart = Duration::from_micros(theirs.clock_us.abs_diff(ours.clock_us)).saturating_sub(doubt);
    if apart > CLOCKS_APART {
        let (ahead, behind) = if theirs.clock_us > ours.clock_us { (theirs, ours) } else { (ours, theirs) };
        let [ahead, behind] = [ahead, behind].map(|survey| survey.identity.node.clone());
        gaps.push(HostGap::Clocks { ahead, behind, apart });
    }
    if let (Some(ours), Some(theirs)) = (ours.mtu, theirs.mtu)
        && ours != theirs
    {
        gaps.push(HostGap::Mtus { ours, theirs, peer: peer.clone() });
    }
    gaps
}

/// All that the handshake would refuse, whoever of the two is the backup. Generations are the running pair's matter.
fn refusals(theirs: &Survey, ours: &Survey) -> Vec<String> {
    let both_read = [theirs, ours].iter().all(|survey| matches!(survey.files, HostFiles::Known(_)));
    let [theirs, ours] = [theirs, ours].map(|survey| {
        let identity = if both_read { survey.whole() } else { survey.identity.clone() };
        Identity { generation: 0, ..identity }
    });
    let mut lines = Vec::new();
    for refusal in
        [Side::Backup, Side::Primary].into_iter().filter_map(|side| check(&theirs, &ours, side).err())
    {
        for line in refusal.to_string().lines().map(str::to_owned) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_checkpoint::wire::handshake::PROTOCOL;
    use ft_checkpoint::wire::identity::{STATE_FORMAT, Versions};
    use std::net::TcpListener;

    fn survey(node: &str, peer: &str) -> Survey {
        let (vm, node, peer) = ("web".to_owned(), node.to_owned(), peer.to_owned());
        let format = Fact::versions(STATE_FORMAT, Versions::only(4));
        let facts = vec![format, Fact::equal("machine.vcpus", 1)];
        let process = node.len() as u64;
        Survey {
            identity: Identity { protocol: PROTOCOL, vm, node, peer, process, generation: process, facts },
            files: HostFiles::Known(vec![Fact::equal("disk 1", "its hash")]),
            release: "1.2.3".into(),
            mtu: Some(9000),
            lacks: None,
            clock_us: 1_000_000_000,
        }
    }

    fn gaps_of(change: impl FnOnce(&mut Survey)) -> Vec<String> {
        let mut theirs = survey("beta", "alpha");
        change(&mut theirs);
        let gaps = gaps(&theirs, &survey("alpha", "beta"), Duration::from_millis(50));
        gaps.iter().map(HostGap::to_string).collect()
    }

    #[test]
    fn nothing_lies_between_hosts_that_are_alike() {
        assert_eq!(gaps_of(|_| ()), [""; 0]);
        assert_eq!(gaps_of(|s| s.mtu = None), [""; 0], "what is not known is no gap");
    }

    #[test]
    fn each_gap_is_told_once_in_the_handshakes_words_where_it_has_some() {
        let vcpus = ["the two nodes will not pair: machine.vcpus: beta has 2, alpha has 1"];
        assert_eq!(gaps_of(|s| s.identity.facts[1] = Fact::equal("machine.vcpus", 2)), vcpus);
        let name = "node gamma asked to pair with node alpha, whose peer.node is beta";
        assert_eq!(
            gaps_of(|s| s.identity.node = "gamma".into()),
            [format!("the two nodes will not pair: {name}")]
        );
        assert_eq!(gaps_of(|s| s.release = "1.3.0".into()), ["ftd is 1.2.3 here and 1.3.0 on beta"]);
        let mtu = gaps_of(|s| s.mtu = Some(1500));
        assert!(mtu[0].starts_with("the MTU of the link is 9000 on this host and 1500 on beta's"), "{mtu:?}");
        let lacks = gaps_of(|s| s.lacks = Some("its host is\x07 small".into()));
        assert_eq!(lacks, ["node beta cannot be the backup: its host is small"]);
    }

    #[test]
    fn clocks_are_apart_only_beyond_what_the_round_trip_leaves_in_doubt() {
        let by = |us: i64| gaps_of(|s| s.clock_us = s.clock_us.saturating_add_signed(us));
        assert_eq!((by(1_050_000), by(-1_050_000)), (vec![], vec![]));
        assert!(by(2_350_000)[0].starts_with("the clock of beta's host is 2.3 s ahead of alpha's"));
        assert!(by(-1_250_000)[0].starts_with("the clock of alpha's host is 1.2 s ahead of beta's"));
    }

    #[test]
    fn files_that_one_has_not_read_are_left_out_and_that_is_told() {
        let gaps = gaps_of(|s| s.files = HostFiles::Unread("reading /a.img".into()));
        let says = "kernels, initrds and images are not compared: beta has not read its own: reading /a.img";
        assert_eq!(gaps, [says]);
        let gaps = gaps_of(|s| s.files = HostFiles::Known(vec![Fact::equal("disk 1", "another")]));
        assert_eq!(gaps, ["the two nodes will not pair: disk 1: beta has another, alpha has its hash"]);
    }

    #[test]
    fn a_connection_knows_the_mtu_of_its_way() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(mtu_towards_peer(&stream).is_some_and(|mtu| mtu >= 1280), "{address}");
        }
    }
}
