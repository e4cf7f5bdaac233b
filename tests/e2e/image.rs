//! A Linux guest that boots what lies in its disk: the small guest's kernel and initramfs in the ext4 of a partition,
//! with a grub.cfg. What the guest changes there is what it boots next, on whichever host. On the software engine.

use crate::disks::{Shell, disk_of, guest, image, linux};
use crate::fixture::{Config, Daemon, Engine, Pair, World, binary};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use toml::Value;

const DISK_BYTES: u64 = 64 << 20;
const PARTITION_AT: u64 = 1 << 20;

/// The guest's disk: an MBR, and a partition with what it boots.
fn make_image(world: &World, kernel: &Path, node: &str) {
    let root = world.path("root");
    let boot = root.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(kernel, boot.join("vmlinuz-1")).unwrap();
    fs::copy(kernel.with_file_name("initramfs.cpio"), boot.join("initrd.img-1")).unwrap();
    let cmdline = std::env::var("FTD_TEST_CMDLINE").unwrap();
    let entry = format!("linux /boot/vmlinuz-1 {} mark=one\ninitrd /boot/initrd.img-1", cmdline.trim());
    let cfg = format!("set default=0\nmenuentry 'Small' {{\ninsmod ext2\n{entry}\n}}\n");
    fs::write(boot.join("grub/grub.cfg"), cfg).unwrap();
    let part = world.path("part");
    File::create(&part).unwrap().set_len(DISK_BYTES - PARTITION_AT).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&part).status().unwrap();
    assert!(made.success());
    let disk = File::create_new(image(world, node)).unwrap();
    disk.set_len(DISK_BYTES).unwrap();
    let sectors = |bytes: u64| (bytes as u32 / 512).to_le_bytes();
    let entry =
        [&[0, 0, 0, 0, 0x83, 0, 0, 0][..], &sectors(PARTITION_AT), &sectors(DISK_BYTES - PARTITION_AT)];
    disk.write_all_at(&entry.concat(), 446).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    disk.write_all_at(&fs::read(part).unwrap(), PARTITION_AT).unwrap();
}

fn blank(world: &World, node: &str) {
    File::create_new(image(world, node)).unwrap().set_len(DISK_BYTES).unwrap();
}

/// A configuration that boots from the node's own image.
fn booting(world: &World, kernel: &Path, config: Config) -> Config {
    let disk = disk_of(world, config.node);
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

#[test]
fn what_a_guest_changes_in_its_boot_partition_is_booted_next_on_whichever_host() {
    const NAME: &str = "what_a_guest_changes_in_its_boot_partition_is_booted_next_on_whichever_host";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        make_image(world, &kernel, "alpha");
        blank(world, "beta");
        let mut pair = Pair::protected_with(world, |config| booting(world, &kernel, config));
        pair.alpha.wait_for_log("boots /boot/vmlinuz-1 of partition 1 (ext4)");
        let mut shell = Shell::on(&pair.alpha);
        shell.lines("guest: userland is up", 1);
        changes_and_reboots(&mut shell, "one", "two");
        pair.alpha.wait_for_log("boots /boot/vmlinuz-two of partition 1 (ext4)");
        shell.lines("guest: userland is up", 2);
        shell.does("grep -q mark=two /proc/cmdline", "as-changed");
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
fn a_node_that_is_to_boot_and_finds_no_kernel_says_where_it_looked() {
    const NAME: &str = "a_node_that_is_to_boot_and_finds_no_kernel_says_where_it_looked";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        blank(world, "alpha");
        let config = booting(world, &kernel, Config::alpha(world));
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
