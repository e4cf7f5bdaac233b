//! The text of a configuration: of a daemon (an even first byte), or of the arbiter's service. It is refused with an
//! error that names the file, or all that follows from it can be worked out, with no word of it that cannot work.

use crate::input::file;
use ft_tls::{Party, PartyKind};
use ft_vm::guest::Settings;
use ftd::config::{Config, GuestKind, ServedConfig, keys};
use ftd::control::Tuning;
use std::path::Path;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let Some((&kind, text)) = input.split_first() else { return };
    let (_file, path) = file(text);
    let error = match kind % 2 {
        0 => Config::load(&path).map(|config| daemon(&config, &path)),
        _ => ServedConfig::load(&path)
            .map(|config| assert_eq!(config.set().is_some(), config.members.is_some())),
    };
    if let Err(error) = error {
        let said = error.to_string();
        assert!(said.starts_with(&*path.to_string_lossy()), "{said}");
    }
}

fn daemon(config: &Config, path: &Path) {
    let named = keys(path).expect("it was read before");
    assert!(["vm", "node", "peer.node", "peer.address"].iter().all(|key| named.contains_key(*key)));
    assert_ne!(config.node, config.peer.node);
    // What is worked out from them.
    let (machine, times) = (&config.machine, Tuning::from(&config.replication).times);
    assert!(config.replication.lease_ms * 1000 < times.failure_timeout_us);
    assert!((machine.memory_mib << 20).is_multiple_of(2 << 20) && machine.vcpus > 0);
    let _ = (config.boot(), machine.bus(), machine.on_uplink_loss(), config.peer.connects_from());
    assert!(config.security_warnings().iter().all(|warning| !warning.is_empty()));
    if machine.guest == GuestKind::Builtin {
        let settled = Settings::parse(&machine.cmdline, None).expect("it was settled");
        assert_eq!(settled.to_string(), machine.cmdline);
    }
    // Nodes and arbiters prove these names by certificates.
    if config.is_link_secured() {
        for node in [&config.node, &config.peer.node] {
            Party::new(PartyKind::Node, node.as_str()).expect("a certificate can have it");
        }
    }
    let arbiters = config.arbiter.name.iter().chain(config.arbiter.names.iter().flatten());
    for name in arbiters.filter(|_| config.tls.is_some()) {
        Party::new(PartyKind::Arbiter, name.as_str()).expect("a certificate can have it");
    }
}

const EXAMPLE: &str = include_str!("../../../../scripts/systemd/ftd.example.toml");
const ARBITER: &str = include_str!("../../../../scripts/systemd/ftd-arbiter.example.toml");

/// An example without its prose: with the keys that it shows as examples or as defaults, or without.
fn spelled_out(example: &str, shown: bool) -> String {
    let is_key = |line: &str| {
        line.split(" = ").next().is_some_and(|key| key.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()))
    };
    let keep = |line: &str| match line.strip_prefix('#').map(str::trim_start) {
        Some(key) if shown && line.contains(" = ") && is_key(key) => Some(format!("{key}\n")),
        Some(_) => None,
        None => Some(format!("{line}\n")),
    };
    example.lines().filter(|line| !line.is_empty()).filter_map(keep).collect()
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = spelled_out(EXAMPLE, false);
    let seed = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let head = "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"backup\"\n\
                peer = { node = \"beta\", address = \"[::1]:7400\", from = \"127.0.0.3\" }\n";
    let service = "[arbiter]\nkind = \"service\"\naddresses = [\"10.0.0.1:7390\", \"10.0.0.2:7390\", \
                   \"10.0.0.3:7390\"]\nnames = [\"a\", \"b\", \"c\"]\n[tls]\n[control]\nlisten = \"0.0.0.0:7380\"\n";
    let etcd = "[arbiter]\nkind = \"etcd\"\nendpoints = [\"https://e1:2379\", \"https://[::1]:2379\"]\nprefix = \
                \"/x/\"\nuser = \"u\"\npassword_file = \"/p\"\nsecurity = \"none\"\n[[machine.net]]\ntap = \"t\"\n\
                mac = \"52:54:00:00:00:01\"\n";
    let image = "arbiter = { path = \"/shared/cell\" }\n[machine]\nguest = \"image\"\nconsole = \"file:/c\"\n\
                 [[machine.disk]]\nimage = \"/d\"\nbase = \"/b.qcow2\"\nread_only = false\nio_engine = \"threads\"\n\
                 [replication]\nsecurity = \"none\"\ndurability = \"sync\"\n";
    let replay = "arbiter = { path = \"/shared/cell\" }\n[machine]\nengine = \"soft\"\nguest = \"linux\"\nkernel = \
                  \"/k\"\ninitrd = \"/i\"\n[replication]\nmode = \"replay\"\n[replay]\nbatch_us = 500\n";
    let members = "store = \"/s\"\nmembers = [\"10.0.0.1:1\", \"10.0.0.2:1\", \"10.0.0.3:1\"]\n[tls]\n";
    vec![
        seed(0, &plain),
        seed(0, &spelled_out(EXAMPLE, true)),
        seed(0, &format!("{head}{service}")),
        seed(0, &format!("{head}{etcd}")),
        seed(0, &format!("{head}{image}")),
        seed(0, &format!("{head}{replay}")),
        seed(1, &spelled_out(ARBITER, true)),
        seed(1, members),
    ]
}
