//! A pair whose disk lies over a base, one qcow2 file for both: it begins at once, survives its hosts one after the
//! other, and the base stays as it was.

use crate::disks::{Shell, disk_of, ends, guest, is_replay, linux, must_be_sound, starts_to_write};
use crate::fixture::{Config, Daemon, Engine, Pair, World, binary};
use ftd::control::api::{Role, State};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use toml::Value;

const CLUSTER: usize = 64 << 10;
const DISK_BYTES: usize = 128 << 20;
/// What the guest's kernel may write by itself.
const SPARE_BYTES: u64 = 4 << 20;

/// The simplest qcow2 file (version 2) of this disk: a header, a table of each kind, the clusters that are not zero.
pub(crate) fn qcow2(disk: &[u8]) -> Vec<u8> {
    let is_data = |cluster: &&[u8]| cluster.iter().any(|byte| *byte != 0);
    let data: Vec<&[u8]> = disk.chunks(CLUSTER).filter(is_data).collect();
    // Header, refcount table, refcount block, L1, L2, data.
    let mut file = vec![0; 5 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(20, &16_u32.to_be_bytes());
    put(24, &(disk.len() as u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..5 + data.len()).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes()));
    let in_use = 1 << 63;
    put(3 * CLUSTER, &(in_use | (4 * CLUSTER) as u64).to_be_bytes());
    let in_file = disk.chunks(CLUSTER).enumerate().filter(|(_, cluster)| is_data(cluster));
    for (next, (number, _)) in (5..).zip(in_file) {
        put(4 * CLUSTER + 8 * number, &(in_use | (next * CLUSTER) as u64).to_be_bytes());
    }
    data.into_iter().for_each(|cluster| file.extend_from_slice(cluster));
    file
}

/// A file system, and behind it what cannot be compressed.
fn make_base(world: &World) {
    let raw = world.path("golden.img");
    File::create_new(&raw).unwrap().set_len(DISK_BYTES as u64 / 2).unwrap();
    let status = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&raw).status().unwrap();
    assert!(status.success());
    let mut disk = fs::read(&raw).unwrap();
    File::open("/dev/urandom").unwrap().take(DISK_BYTES as u64 / 2).read_to_end(&mut disk).unwrap();
    fs::write(world.path("golden.qcow2"), qcow2(&disk)).unwrap();
    fs::remove_file(raw).unwrap();
}

fn over_base(world: &World, kernel: &Path, config: Config) -> Config {
    let mut disk = disk_of(world, config.node);
    disk.insert("base".into(), world.path("golden.qcow2").display().to_string().into());
    linux(kernel, config).with("machine.disk", vec![Value::Table(disk)])
}

pub(crate) fn ftd(arguments: &[&str], paths: &[&Path]) -> String {
    let output = Command::new(binary("ftd")).args(arguments).args(paths).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_pair_over_one_base_begins_at_once_and_loses_nothing_with_either_host() {
    const NAME: &str = "a_pair_over_one_base_begins_at_once_and_loses_nothing_with_either_host";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        make_base(world);
        let base = world.path("golden.qcow2");
        let before = fs::read(&base).unwrap();
        let change = |config| over_base(world, &kernel, config);
        for config in [change(Config::alpha(world)), change(Config::beta(world))] {
            let file = world.file(&format!("{}.toml", config.node), config.text());
            ftd(&["disk", "create-overlay", "--config"], &[&file]);
        }
        let mut pair = Pair::protected_with(world, change);
        let copy = pair.alpha.status().unwrap().disks.unwrap().last_copy.unwrap();
        assert!(copy.compared_bytes <= SPARE_BYTES && copy.sent_bytes <= SPARE_BYTES, "{copy:?}");

        starts_to_write(&mut Shell::on(&pair.alpha));
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
        let copy = pair.beta.status().unwrap().disks.unwrap().last_copy.unwrap();
        assert!(copy.compared_bytes < DISK_BYTES as u64 / 2, "what nobody wrote is not compared: {copy:?}");
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        ends(&mut Shell::on(&pair.alpha));
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        if !is_replay() {
            let verified = pair.alpha.ctl(&["disk", "verify", "--limit", "1000"]);
            assert_eq!(verified.code, 0, "{verified:?}");
        }
        pair.beta.kill();
        pair.alpha.kill();

        let (config, whole) = (world.path("alpha.toml"), world.path("whole.img"));
        ftd(&["disk", "import", "--config"], &[&config, &crate::disks::image(world, "alpha"), &whole]);
        File::options().write(true).open(&whole).unwrap().set_len(DISK_BYTES as u64 / 2).unwrap();
        must_be_sound(&whole);
        assert!(fs::read(&base).unwrap() == before, "the base has changed");
    });
}
