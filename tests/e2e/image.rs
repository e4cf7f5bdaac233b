//! A Linux guest that boots what lies in its disk: the small guest's kernel and initramfs in the ext4 of a partition,
//! with a grub.cfg. What the guest changes there is what it boots next, on whichever host. On the software engine.

use crate::disk_overlay::{ftd, qcow2};
use crate::disks::{Shell, disk_of, image, linux};
use crate::fixture::{Config, Daemon, Engine, Pair, World, binary};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use toml::Value;

const DISK_BYTES: u64 = 64 << 20;
/// Behind it a GPT has its copy.
const PARTITION_MIB: u64 = 62;

/// How the guest's disk is divided, and what it lies in.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// An MBR; each host's image has all of it.
    Mbr,
    /// A GPT, in a qcow2 file that is the base of both hosts' images.
    GptInBase,
}

impl Form {
    /// The line for sfdisk that names the table.
    fn label(self) -> &'static str {
        match self {
            Self::Mbr => "dos",
            Self::GptInBase => "gpt",
        }
    }

    /// Makes the images of both hosts.
    fn make_images(self, world: &World, kernel: &Path) {
        let disk = make_disk(world, kernel, self.label());
        match self {
            Self::Mbr => {
                fs::rename(disk, image(world, "alpha")).unwrap();
                blank(world, "beta");
            }
            Self::GptInBase => {
                fs::write(base(world), qcow2(&fs::read(disk).unwrap())).unwrap();
                for config in [Config::alpha(world), Config::beta(world)] {
                    let config = self.booting(world, kernel, config);
                    let file = world.file(&format!("{}.toml", config.node), config.text());
                    ftd(&["disk", "create-overlay", "--config"], &[&file]);
                }
            }
        }
    }

    /// A configuration that boots from the node's own image.
    fn booting(self, world: &World, kernel: &Path, config: Config) -> Config {
        let mut disk = disk_of(world, config.node);
        if self == Self::GptInBase {
            disk.insert("base".into(), base(world).display().to_string().into());
        }
        booting(kernel, config, disk)
    }
}

fn base(world: &World) -> PathBuf {
    world.path("golden.qcow2")
}

/// A disk with a partition table, and a partition with what the guest boots.
fn make_disk(world: &World, kernel: &Path, label: &str) -> PathBuf {
    let root = world.path("root");
    let boot = root.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(kernel, boot.join("vmlinuz-1")).unwrap();
    fs::copy(kernel.with_file_name("initramfs.cpio"), boot.join("initrd.img-1")).unwrap();
    let cmdline = std::env::var("FTD_TEST_CMDLINE").unwrap();
    let entry = format!("linux /boot/vmlinuz-1 {} mark=one\ninitrd /boot/initrd.img-1", cmdline.trim());
    let cfg = format!("set default=0\nmenuentry 'Small' {{\ninsmod ext2\n{entry}\n}}\n");
    fs::write(boot.join("grub/grub.cfg"), cfg).unwrap();
    let disk = world.path("disk");
    File::create_new(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let table = world.file("table", format!("label: {label}\nstart=1MiB, size={PARTITION_MIB}MiB\n"));
    let divided = Command::new("sfdisk").arg("--quiet").arg(&disk).stdin(File::open(table).unwrap()).status();
    assert!(divided.unwrap().success());
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "offset=1048576", "-d"])
        .arg(&root)
        .arg(&disk)
        .arg(format!("{PARTITION_MIB}M"))
        .status();
    assert!(made.unwrap().success());
    disk
}

fn blank(world: &World, node: &str) {
    File::create_new(image(world, node)).unwrap().set_len(DISK_BYTES).unwrap();
}

/// Where the Linux guest of this run is, and the tools that make its disk.
fn guest(test: &str) -> Option<PathBuf> {
    if Command::new("sfdisk").arg("-V").output().is_err() {
        eprintln!("SKIPPED {test}: there is no sfdisk (package fdisk)");
        return None;
    }
    crate::disks::guest(test)
}

/// A configuration that boots from this disk.
fn booting(kernel: &Path, config: Config, disk: toml::Table) -> Config {
    let mut table: toml::Table = linux(kernel, config.clone()).text().parse().unwrap();
    let machine = table["machine"].as_table_mut().unwrap();
    machine.remove("kernel");
    machine.remove("initrd");
    table
        .into_iter()
        .fold(config, |config, (key, value)| config.with(&key, value))
        .with("machine.guest", "image")
        .with("machine.cmdline", "by=operator")
        .with("machine.disk", vec![Value::Table(disk)])
}

/// The guest changes what it is booted with, and reboots in the midst of it: its file system is not unmounted.
fn changes_and_reboots(shell: &mut Shell, from: &str, to: &str) {
    shell.does("grep -q by=operator /proc/cmdline", "appended");
    shell.does(&format!("grep -q mark={from} /proc/cmdline"), "booted-with");
    shell.does("IFS=: read major minor </sys/class/block/vda1/dev; mknod /part b $major $minor", "made");
    shell.does("mkdir -p /mnt && mount -t ext4 /part /mnt", "mounted");
    shell.does(&format!("cp /mnt/boot/vmlinuz-1 /mnt/boot/vmlinuz-{to}"), "upgraded");
    let edit = format!("s/mark={from}/mark={to}/; s/vmlinuz-[a-z0-9]*/vmlinuz-{to}/");
    shell.does(&format!("sed -i '{edit}' /mnt/boot/grub/grub.cfg && sync"), "edited");
    shell.types("reboot -f");
}

/// It upgrades its kernel on one host, and once more on the other, whose image has what the first one wrote.
fn upgrades_on_both_hosts(test: &str, form: Form) {
    let Some(kernel) = guest(test) else { return };
    World::run_on(Engine::Soft, test, move |world| {
        form.make_images(world, &kernel);
        let mut pair = Pair::protected_with(world, |config| form.booting(world, &kernel, config));
        pair.alpha.wait_for_log("boots /boot/vmlinuz-1 of partition 1 (ext4)");
        let mut shell = Shell::on(&pair.alpha);
        shell.lines("guest: userland is up", 1);
        changes_and_reboots(&mut shell, "one", "two");
        pair.alpha.wait_for_log("boots /boot/vmlinuz-two of partition 1 (ext4)");
        shell.lines("guest: userland is up", 2);
        shell.does("grep -q mark=two /proc/cmdline", "as-changed");
        let booted = pair.alpha.status().expect("it answers").booted.expect("it booted here");
        assert!(booted.kernel.starts_with("/boot/vmlinuz-two of partition 1"), "{booted:?}");
        let shown = pair.alpha.ctl(&["status"]).stdout;
        assert!(shown.contains("booted  /boot/vmlinuz-two of partition 1 (ext4)"), "{shown}");
        pair.wait_protected();
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        let mut shell = Shell::on(&pair.beta);
        changes_and_reboots(&mut shell, "two", "three");
        pair.beta.wait_for_log("boots /boot/vmlinuz-three of partition 1 (ext4)");
        shell.lines("guest: userland is up", 1);
        shell.does("grep -q mark=three /proc/cmdline", "as-changed-there");
    });
}

#[test]
fn what_a_guest_changes_in_its_boot_partition_is_booted_next_on_whichever_host() {
    upgrades_on_both_hosts(
        "what_a_guest_changes_in_its_boot_partition_is_booted_next_on_whichever_host",
        Form::Mbr,
    );
}

#[test]
fn a_guest_that_boots_from_a_gpt_in_a_qcow2_base_boots_next_what_its_overlay_has() {
    upgrades_on_both_hosts(
        "a_guest_that_boots_from_a_gpt_in_a_qcow2_base_boots_next_what_its_overlay_has",
        Form::GptInBase,
    );
}

#[test]
fn a_guest_that_destroys_what_it_boots_has_ended_at_its_reboot_and_both_hosts_say_so() {
    const NAME: &str = "a_guest_that_destroys_what_it_boots_has_ended_at_its_reboot_and_both_hosts_say_so";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        Form::Mbr.make_images(world, &kernel);
        let pair = Pair::protected_with(world, |config| Form::Mbr.booting(world, &kernel, config));
        let mut shell = Shell::on(&pair.alpha);
        shell.lines("guest: userland is up", 1);
        shell.does("IFS=: read major minor </sys/class/block/vda1/dev; mknod /part b $major $minor", "made");
        shell.does("mkdir -p /mnt && mount -t ext4 /part /mnt && rm -r /mnt/boot && sync", "destroyed");
        shell.types("reboot -f");
        pair.alpha.wait_for_log("no kernel was found");
        pair.alpha.wait_for_log("partition 1 (ext4)");
        pair.beta.wait_for_log("has ended");
    });
}

#[test]
fn a_node_that_is_to_boot_and_finds_no_kernel_says_where_it_looked() {
    const NAME: &str = "a_node_that_is_to_boot_and_finds_no_kernel_says_where_it_looked";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        blank(world, "alpha");
        let config = Form::Mbr.booting(world, &kernel, Config::alpha(world));
        let says = ["alpha.img: no kernel was found", "the whole disk (no known file system)"];
        let file = world.file("checked.toml", config.text());
        let checked =
            Command::new(binary("ftd")).args(["check-config", "--config"]).arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(i32::from(DaemonExit::Host as u8)), "{said}");
        assert!(says.iter().all(|part| said.contains(part)), "{said}");
        Daemon::start(world, &config).must_fail(DaemonExit::Host, &says);
    });
}
