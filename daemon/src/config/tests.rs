//! Tests of the configuration: the example states the real defaults, and every error names the wrong key.

use super::*;
use ft_ram::Backing;
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../scripts/systemd/ftd.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/ftd/web.toml"))
}

/// The example with `from` replaced, which must be in it.
fn edited(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "the example has no {from}");
    EXAMPLE.replacen(from, to, 1)
}

fn message(text: &str) -> String {
    parse(text).expect_err("it should be refused").to_string()
}

#[test]
fn the_example_states_the_true_defaults() {
    let is_default =
        |line: &&str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    assert!(EXAMPLE.lines().any(|line| is_default(&line)), "no line is taken for a default");
    let spelled_out: String = EXAMPLE
        .lines()
        .map(|line| if is_default(&line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(parse(&spelled_out).unwrap(), parse(EXAMPLE).unwrap());
}

#[test]
fn the_example_mentions_every_key() {
    let probes = [
        edited("vm = \"web\"", "vm = \"web\"\nzz = 1"),
        edited("[peer]", "[peer]\nzz = 1"),
        edited("[machine]", "[machine]\nzz = 1"),
        edited("[machine.net]", "[machine.net]\nzz = 1"),
        edited("[replication]", "[[machine.disk]]\nzz = 1\n[replication]"),
        edited("[replication]", "[replication]\nzz = 1"),
        edited("[replay]", "[replay]\nzz = 1"),
        edited("[recovery]", "[recovery]\nzz = 1"),
        edited("[arbiter]", "[arbiter]\nzz = 1"),
        edited("[control]", "[control]\nzz = 1"),
        edited("[log]", "[log]\nzz = 1"),
        edited("[metrics]", "[metrics]\nzz = 1"),
    ];
    for probe in probes {
        let message = message(&probe);
        assert!(message.contains("unknown field `zz`"), "{message}");
        // "unknown field `zz`, expected one of `a`, `b`": the words between backquotes are the keys.
        let names = message.split("expected").nth(1).unwrap().split('`').skip(1).step_by(2);
        for key in names {
            assert!(
                EXAMPLE.contains(&format!("{key} = ")) || EXAMPLE.contains(&format!("{key}]")),
                "no {key}"
            );
        }
    }
}

#[test]
fn errors_name_file_place_and_what_is_allowed() {
    let message = message(&edited("#epoch_ms = 5", "epoch_ms = 0"));
    assert_eq!(message, "/etc/ftd/web.toml: replication.epoch_ms = 0: must be 1 to 1000");
    // No certificate can have the others either.
    for name in ["-beta", "beta-"] {
        let message = self::message(&edited("node = \"beta\"", &format!("node = \"{name}\"")));
        assert!(message.contains(&format!("name '{name}' is not 1 to 32")), "{message}");
    }
    let message = self::message(&edited("node = \"beta\"", "node = \"BETA\""));
    assert!(message.starts_with("/etc/ftd/web.toml: TOML parse error at line "), "{message}");
    assert!(message.contains("name 'BETA' is not 1 to 32 of a-z, 0-9 and '-'"), "{message}");
}

#[test]
fn linux_has_its_devices_on_pci_unless_it_is_said_and_others_on_mmio() {
    let guest = |guest: &str, bus: &str| {
        let kernel = if guest == "builtin" { "" } else { "\nkernel = \"/kernel\"" };
        edited("#guest = \"builtin\"", &format!("guest = \"{guest}\"{kernel}{bus}"))
    };
    let bus = |text: &str| parse(text).unwrap().machine.bus();
    assert_eq!(bus(&guest("linux", "")), BusKind::Pci);
    assert_eq!(bus(&guest("linux", "\nbus = \"mmio\"")), BusKind::Mmio);
    assert_eq!((bus(&guest("builtin", "")), bus(&guest("freestanding", ""))), (BusKind::Mmio, BusKind::Mmio));
    let message = message(&guest("freestanding", "\nbus = \"pci\""));
    assert!(message.contains("the freestanding guest finds its devices on \"mmio\" only"), "{message}");
}

#[test]
fn what_cannot_work_is_refused_with_its_reason() {
    let cases = [
        ("node = \"beta\"", "node = \"alpha\"", "peer.node = alpha: must differ"),
        ("address = \"192.168.74.2:7400\"", "address = \"beta\"", "socket address"),
        ("\"10.0.0.5\"", "\"10.0.0.500\"", "IP address"),
        ("#hold_ms_max = 100", "hold_ms_max = 9", "replication.hold_ms_max = 9: must be 10 to 60000"),
        ("#epoch_ms = 5", "epoch_ms = 51", "must be at least twice epoch_ms (51)"),
        ("#guest_speed_min_pct = 10", "guest_speed_min_pct = 0", "must be 1 to 100"),
        ("#on_overload = \"yield\"", "on_overload = \"crash\"", "unknown variant `crash`"),
        ("#boot_delay_s = 60", "boot_delay_s = 0", "recovery.boot_delay_s = 0: must be 1 to 86400"),
        ("#on_fenced = \"rejoin\"", "on_fenced = \"wait\"", "unknown variant `wait`"),
        ("#vcpus = 1", "vcpus = 65", "machine.vcpus = 65: must be 1 to 64"),
        ("#vcpus = 1", "vcpus = 300", "expected u8"),
        ("#memory_mib = 256", "memory_mib = 17", "must be even"),
        ("#memory_mib = 256", "memory_mib = -2", "-2"),
        ("#guest = \"builtin\"", "guest = \"linux\"", "needs machine.kernel"),
        ("#guest = \"builtin\"", "guest = \"image\"", "needs a disk"),
        ("#guest = \"builtin\"", "guest = \"windows\"", "unknown variant `windows`"),
        (
            "[\"10.0.0.5\"]",
            "[\"fd00::5\"]",
            "machine.net.addresses = fd00::5: the builtin guest has one IPv4 address",
        ),
        ("[\"10.0.0.5\"]", "[\"10.0.0.5\", \"10.0.0.6\"]", "10.0.0.5, 10.0.0.6: the builtin guest has one"),
        (
            "#cmdline = \"\"",
            "cmdline = \"ip=10.0.0.6/24\"",
            "ip= must be 10.0.0.5, the address in machine.net",
        ),
        (
            "#cmdline = \"\"",
            "cmdline = \"port=http\"",
            "machine.cmdline = port=http: \"port=http\": want port=1",
        ),
        ("#cmdline = \"\"", "cmdline = \"root=/dev/vda\"", "not \"root=/dev/vda\""),
        ("# kernel = ", "kernel = ", "the builtin guest takes none"),
        ("# bus = ", "bus = ", "machine.bus = pci: the builtin guest finds its devices on \"mmio\" only"),
        ("# bus = \"pci\"", "bus = \"isa\"", "unknown variant `isa`"),
        ("# initrd = ", "initrd = ", "only machine.guest = \"linux\""),
        ("#console = \"socket\"", "console = \"tty\"", "not one of: socket, stdout, file:/PATH"),
        ("tap = \"ftd-web\"", "tap = \"a-name-far-too-long\"", "must be an interface name"),
        ("52:54:00:12:34:56", "53:54:00:12:34:56", "not a unicast address"),
        ("52:54:00:12:34:56", "52:54:00:12:34", "not of the form"),
        ("52:54:00:12:34:56", "52:54:00:12:34:+6", "not of the form"),
        ("#journal_mib = 256", "journal_mib = 63", "replication.journal_mib = 63: must be 64 to 1048576"),
        ("#durability = \"commit\"", "durability = \"async\"", "unknown variant `async`"),
        (
            "#disk_copy_mib_s = 0",
            "disk_copy_mib_s = 1048577",
            "disk_copy_mib_s = 1048577: must be 0 to 1048576",
        ),
        (
            "[replication]",
            "[[machine.disk]]\nimage = \"/i\"\nread_only = false\non_io_error = \"panic\"\n[replication]",
            "unknown variant `panic`",
        ),
        (
            "#mode = \"checkpoint\"",
            "mode = \"replay\"",
            "machine.engine = kvm: cannot stop at an exact instruction",
        ),
        ("#mode = \"checkpoint\"", "mode = \"colo\"", "unknown variant `colo`"),
        ("#engine = \"kvm\"", "engine = \"hvf\"", "unknown variant `hvf`"),
        ("#batch_us = 5000", "batch_us = 50", "replay.batch_us = 50: must be 100 to 100000"),
        (
            "#batch_us = 5000",
            "batch_us = 50001",
            "replay.batch_us = 50001: must be at most half of replay.lag_ms_max (100 ms)",
        ),
        ("#lag_ms_max = 100", "lag_ms_max = 0", "replay.lag_ms_max = 0: must be 10 to 60000"),
        ("#kind = \"file\"", "kind = \"paxos\"", "unknown variant `paxos`"),
        ("#rehearsal_s = 60", "rehearsal_s = 0", "replication.rehearsal_s = 0"),
        ("#lease_ms = 25", "lease_ms = 300", "must be below failure_timeout_ms (300)"),
        ("#heartbeat_ms = 5", "heartbeat_ms = 20", "must be at least twice heartbeat_ms (20)"),
        (
            "path = \"/shared/ftd/web.cell\"",
            "path = \"web.cell\"",
            "arbiter.path = web.cell: must be an absolute path",
        ),
        ("path = \"/shared/ftd/web.cell\"", "", "arbiter.path = nothing: must be the cell's directory"),
        ("#level = \"info\"", "level = \"loud\"", "unknown variant `loud`"),
    ];
    for (from, to, reason) in cases {
        let message = message(&edited(from, to));
        assert!(message.contains(reason), "{to}: {message}");
    }
    let long = format!("control_socket = \"/{}\"", "s".repeat(107));
    assert!(message(&edited("#control_socket = \"/run/ftd/web.sock\"", &long)).contains("at most 107"));
}

#[test]
fn a_place_that_does_not_fit_the_kind_of_arbiter_is_refused() {
    let cases = [
        (
            "#kind = \"file\"",
            "kind = \"service\"\naddress = \"10.0.0.3:7390\"",
            "arbiter.path = /shared/ftd/web.cell: belongs to kind = \"file\"",
        ),
        (
            "#kind = \"file\"",
            "address = \"10.0.0.3:7390\"",
            "arbiter.address = 10.0.0.3:7390: belongs to kind = \"service\"",
        ),
        (
            "path = \"/shared/ftd/web.cell\"",
            "kind = \"service\"",
            "arbiter.address = nothing: must be the service's IP address and port",
        ),
        (
            "path = \"/shared/ftd/web.cell\"",
            "kind = \"service\"\naddress = \"10.0.0.3:0\"",
            "arbiter.address = 10.0.0.3:0: must be the service's IP address and port",
        ),
        (
            "path = \"/shared/ftd/web.cell\"",
            "path = \"web.cell\"",
            "arbiter.path = web.cell: must be an absolute path",
        ),
        ("path = \"/shared/ftd/web.cell\"", "", "arbiter.path = nothing: must be the cell's directory"),
    ];
    for (from, to, reason) in cases {
        let message = message(&edited(from, to));
        assert!(message.contains(reason), "{to}: {message}");
    }
    let served = |more: &str| format!("kind = \"service\"\naddress = \"10.0.0.3:7390\"{more}");
    let served = |more: &str| edited("path = \"/shared/ftd/web.cell\"", &served(more));
    // The example has a certificate.
    assert!(parse(&served("")).is_ok());
    let without = |more: &str| served(more).replace("\n[tls]\n", "\n");
    let near = |text: String| text.replace("192.168.74.2:7400", "127.0.0.2:7400");
    assert!(
        message(&near(without("")))
            .contains("arbiter.address = 10.0.0.3:7390: the connection is not protected")
    );
    assert!(parse(&near(without("\nsecurity = \"none\""))).is_ok());
}

#[test]
fn cards_that_have_something_in_common_are_refused() {
    let cases = [
        (
            "[machine.net]",
            "[[machine.net]]\ntap = \"ftd-web\"\nmac = \"02:00:00:00:00:01\"\n[[machine.net]]",
            "another card",
        ),
        (
            "[machine.net]",
            "[[machine.net]]\ntap = \"ftd-2\"\nmac = \"52:54:00:12:34:56\"\n[[machine.net]]",
            "machine.net.mac = 52:54:00:12:34:56: another card has it",
        ),
        (
            "[machine.net]",
            "[[machine.net]]\ntap = \"b\"\nmac = \"02:00:00:00:00:01\"\naddresses = [\"10.0.0.5\"]\n[[machine.net]]",
            "machine.net.addresses = 10.0.0.5: another card has it",
        ),
    ];
    for (from, to, reason) in cases {
        let message = message(&edited(from, to));
        assert!(message.contains(reason), "{to}: {message}");
    }
}

#[test]
fn replay_mode_is_refused_what_would_differ_between_the_hosts() {
    let replay = edited("#mode = \"checkpoint\"", "mode = \"replay\"").replacen(
        "#engine = \"kvm\"",
        "engine = \"soft\"",
        1,
    );
    assert_eq!(parse(&replay).unwrap().replication.mode, Mode::Replay);
    let with_disk = |lines: &str, more: &str| {
        let disk =
            format!("[[machine.disk]]\nimage = \"/i\"\nread_only = false\n{lines}\n[replication]\n{more}");
        replay.replacen("[replication]", &disk, 1)
    };
    let stops = "on_io_error = \"stop\"";
    assert_eq!(parse(&with_disk("", "")).unwrap(), parse(&with_disk(stops, "")).unwrap());
    assert!(parse(&with_disk("on_io_error = \"switchover\"", "")).is_ok());
    for (lines, more, reason) in [
        (
            "on_io_error = \"report\"",
            "",
            "machine.disk.on_io_error = report: must be \"stop\" or \"switchover\" for a writable disk (/i)",
        ),
        (
            stops,
            "durability = \"sync\"",
            "replication.durability = sync: must be \"commit\" in mode = \"replay\"",
        ),
    ] {
        let disk = message(&with_disk(lines, more));
        assert!(disk.contains(reason), "{disk}");
    }
    let named = message(&replay.replacen("#cpu = \"host\"", "cpu = \"x86-64-v2\"", 1));
    assert!(
        named.contains("machine.cpu = x86-64-v2: engine = \"soft\" has a processor of its own"),
        "{named}"
    );
    let many = replay.replacen("#vcpus = 1", "vcpus = 2", 1);
    assert!(message(&many).contains("machine.vcpus = 2: engine = \"soft\" has one vCPU"));
}

#[test]
fn memory_is_held_in_pages_of_4_kib_from_anywhere_unless_it_is_said() {
    assert_eq!(parse(EXAMPLE).unwrap().machine.backing(), Backing::default());
    let said = "huge_pages = \"transparent\"\nnuma_node = 1\nlock_memory = true";
    let config = parse(&edited("#huge_pages = \"none\"", said)).unwrap();
    assert_eq!(config.machine.backing(), Backing { huge_pages: true, numa_node: Some(1), lock: true });
    let pool = message(&edited("#huge_pages = \"none\"", "huge_pages = \"2M\""));
    assert!(pool.contains("unknown variant `2M`, expected `none` or `transparent`"), "{pool}");
}

#[test]
fn a_processor_is_known_by_name_and_has_room_for_the_memory() {
    let cpu = |name: &str| edited("#cpu = \"host\"", &format!("cpu = \"{name}\""));
    for (name, model) in
        [("host", CpuModel::Host), ("x86-64-v2", CpuModel::X86_64V2), ("x86-64-v3", CpuModel::X86_64V3)]
    {
        assert_eq!(parse(&cpu(name)).unwrap().machine.cpu, model);
        assert_eq!(model.to_string(), name);
    }
    let unknown = message(&cpu("x86-64-v4"));
    let says = "unknown variant `x86-64-v4`, expected one of `host`, `x86-64-v2`, `x86-64-v3`";
    assert!(unknown.contains(says), "{unknown}");
    let with =
        |cpu_text: &str, mib: u64| cpu_text.replacen("#memory_mib = 256", &format!("memory_mib = {mib}"), 1);
    parse(&with(&cpu("x86-64-v3"), 523_264)).unwrap();
    parse(&with(&cpu("host"), 523_266)).unwrap();
    let large = message(&with(&cpu("x86-64-v3"), 523_266));
    assert!(large.contains("machine.memory_mib = 523266: must be at most 523264 with cpu"), "{large}");
}

#[test]
fn a_disk_without_a_word_on_errors_reports_them_where_the_hosts_need_not_agree() {
    let on_io_error = |mode: &str, read_only: bool| {
        let disk = format!("[[machine.disk]]\nimage = \"/i\"\nread_only = {read_only}\n[replication]");
        let text = edited("[replication]", &disk).replacen("#mode = \"checkpoint\"", mode, 1);
        parse(&text.replacen("#engine = \"kvm\"", "engine = \"soft\"", 1)).unwrap().machine.disks[0]
            .on_io_error
    };
    let (report, stop) = (Some(OnDiskError::Report), Some(OnDiskError::Stop));
    assert_eq!([false, true].map(|read_only| on_io_error("", read_only)), [report, report]);
    let replay = "mode = \"replay\"";
    assert_eq!([false, true].map(|read_only| on_io_error(replay, read_only)), [stop, report]);
}

#[test]
fn paths_follow_from_the_name_of_the_vm() {
    let config = parse(&edited("vm = \"web\"", "vm = \"db-1\"")).unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/ftd/db-1"));
    assert_eq!(config.control_socket, Path::new("/run/ftd/db-1.sock"));
}

#[test]
fn what_boots_follows_from_guest_and_kernel() {
    let boot = |text: &str| parse(text).unwrap().boot();
    assert_eq!(
        boot(EXAMPLE),
        Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline: "ip=10.0.0.5/24 port=7777".into() }
    );
    let here = edited("#cmdline = \"\"", "cmdline = \"gw=10.0.0.1 ip=10.0.0.5/16 port=80\"");
    let cmdline = |boot| match boot {
        Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline } => cmdline,
        other => panic!("{other:?}"),
    };
    assert_eq!(cmdline(boot(&here)), "ip=10.0.0.5/16 gw=10.0.0.1 port=80");
    let nowhere = edited("addresses = [\"10.0.0.5\"]", "");
    assert_eq!(cmdline(boot(&nowhere)), ft_vm::guest::CMDLINE_DEFAULT);
    let linux = edited("#guest = \"builtin\"", "guest = \"linux\"\nkernel = \"/k\"");
    assert!(matches!(parse(&linux).unwrap().boot(), Boot::Linux { kernel, .. } if kernel == Path::new("/k")));
}

#[test]
fn a_guest_in_an_image_takes_no_files_of_the_host() {
    let disk = "[[machine.disk]]\nimage = \"/disk\"\nread_only = false\n[replication]";
    let text = edited("#guest = \"builtin\"", "guest = \"image\"").replace("[replication]", disk);
    parse(&text).unwrap();
    for key in ["kernel", "initrd"] {
        let text = text.replace("guest = \"image\"", &format!("guest = \"image\"\n{key} = \"/file\""));
        let refused = parse(&text).unwrap_err().to_string();
        assert!(refused.contains(&format!("machine.{key} = /file")), "{refused}");
    }
}

#[test]
fn a_file_that_is_missing_or_endless_is_refused_by_name() {
    let message = Config::load(Path::new("/nowhere/ftd.toml")).unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/ftd.toml: cannot be read: No such file"), "{message}");
    assert!(matches!(Config::load(Path::new("/dev/zero")), Err(ConfigError::TooLong { .. })));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,400}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_to_the_example_makes_it_panic(at in 0..EXAMPLE.len(), len in 0..80usize, with in ".{0,20}") {
        let bytes = EXAMPLE.as_bytes();
        let damaged = [&bytes[..at], with.as_bytes(), &bytes[bytes.len().min(at + len)..]].concat();
        let _ = parse(&String::from_utf8_lossy(&damaged));
    }

    #[test]
    fn any_numbers_are_judged_and_not_computed_with(a in any::<i64>(), b in any::<i64>(), c in any::<i64>()) {
        let text = edited("#heartbeat_ms = 5", &format!("heartbeat_ms = {a}"));
        let text = text.replacen("#lease_ms = 25", &format!("lease_ms = {b}"), 1);
        let _ = parse(&text.replacen("#memory_mib = 256", &format!("memory_mib = {c}"), 1));
    }
}
