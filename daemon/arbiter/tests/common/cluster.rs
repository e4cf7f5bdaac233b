//! A cluster of real etcd processes on this host, on ports of the loopback interface that were free.

use ft_arbiter::etcd::{EtcdSettings, EtcdTls};
use ft_arbiter::{Arbiter, EtcdArbiter};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What comes at all comes by then, also on a slow host.
pub const AT_LAST: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

pub struct Cluster {
    members: Vec<Member>,
    tls: Option<ClusterTls>,
    home: tempfile::TempDir,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    /// Its process, from the start on.
    process: Option<Child>,
}

/// What members prove themselves by to clients, and what clients ask with.
pub struct ClusterTls {
    /// A member's certificate and key, in one file.
    pub identity: PathBuf,
    /// Of whom clients must be; and members, who are their own gateways' clients.
    pub trusted: PathBuf,
    /// A client's.
    pub client: EtcdTls,
}

impl Cluster {
    /// Starts a cluster of `size` members, in TLS where there is some, and waits until it serves. None, and said why:
    /// there is no etcd here.
    pub fn start(test: &str, size: usize, tls: Option<ClusterTls>) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED {test}: there is no etcd (scripts/lib/set-up etcd installs it)");
            return None;
        }
        // All are held before any is given away, so that they differ.
        let free: Vec<_> = (0..2 * size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let client_scheme = if tls.is_some() { "https" } else { "http" };
        let members = free.chunks(2).enumerate().map(|(index, pair)| Member {
            name: format!("m{index}"),
            client: url(&pair[0]).replacen("http", client_scheme, 1),
            peer: url(&pair[1]),
            process: None,
        });
        let mut cluster = Self { members: members.collect(), tls, home: tempfile::tempdir().unwrap() };
        drop(free);
        (0..size).for_each(|member| cluster.start_member(member));
        cluster.wait_until_it_serves();
        Some(cluster)
    }

    /// Where clients find it. Each answer is waited for until it comes.
    pub fn settings(&self, prefix: &str) -> EtcdSettings {
        EtcdSettings {
            endpoints: self.members.iter().map(|member| member.client.clone()).collect(),
            prefix: prefix.to_owned(),
            login: None,
            tls: self.tls.as_ref().map(|tls| tls.client.clone()),
            answer_limit: AT_LAST,
        }
    }

    /// Starts a member, for the first time or after its end.
    pub fn start_member(&mut self, member: usize) {
        let all: Vec<_> = self.members.iter().map(|other| format!("{}={}", other.name, other.peer)).collect();
        let log = self.log(member);
        let member = &mut self.members[member];
        let mut command = Command::new("etcd");
        if let Some(ClusterTls { identity, trusted, .. }) = &self.tls {
            command.arg("--cert-file").arg(identity).arg("--key-file").arg(identity);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(trusted);
        }
        let process = command
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.home.path().join(&member.name))
            .args(["--listen-client-urls", &member.client, "--advertise-client-urls", &member.client])
            .args(["--listen-peer-urls", &member.peer, "--initial-advertise-peer-urls", &member.peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "200", "--election-timeout", "2000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(log).unwrap())
            .spawn();
        member.process = Some(process.unwrap());
    }

    /// Waits until each member serves.
    pub fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + AT_LAST;
        for member in 0..self.members.len() {
            let endpoints = vec![self.members[member].client.clone()];
            let limit = Duration::from_secs(5);
            let settings = EtcdSettings { endpoints, answer_limit: limit, ..self.settings("/is-it-there/") };
            while let Err(error) = EtcdArbiter::new(&settings, "web").read() {
                let is_alive = self.process(member).try_wait().unwrap().is_none();
                assert!(is_alive && Instant::now() < deadline, "{error}\n{}", self.said(member));
                sleep(POLL);
            }
        }
    }

    fn log(&self, member: usize) -> PathBuf {
        self.home.path().join(format!("{}.log", self.members[member].name))
    }

    /// The end of a member's log.
    fn said(&self, member: usize) -> String {
        let log = fs::read_to_string(self.log(member)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A member's process.
    pub fn process(&mut self, member: usize) -> &mut Child {
        self.members[member].process.as_mut().expect("it was started")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
