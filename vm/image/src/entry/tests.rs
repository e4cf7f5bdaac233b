use super::*;
use crate::testing::{Tree, ext4, gpt, mbr, vfat};
use proptest::prelude::*;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const DEBIAN: &str = include_str!("tests/debian.cfg");
const LIMITS: BootLimits = BootLimits { file_bytes_max: 1 << 20 };

fn found(disk: Vec<u8>) -> Result<BootEntry, BootSearchError> {
    find(Box::new(disk), &LIMITS)
}

fn entry(disk: Vec<u8>) -> (String, Option<String>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let BootEntry { kernel, initrd, cmdline, origin } = found(disk).unwrap();
    (text(kernel), initrd.map(text), cmdline, origin.title)
}

fn refused(disk: Vec<u8>, parts: &[&str]) {
    let text = found(disk).unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// A Debian with two kernels, and what else it has.
fn debian(more: Tree<'_>) -> Vec<u8> {
    let files = [
        ("/boot/grub/grub.cfg", DEBIAN),
        ("/boot/vmlinuz-6.1.0-18-amd64", "kernel 18"),
        ("/boot/initrd.img-6.1.0-18-amd64", "initrd 18"),
        ("/boot/vmlinuz-6.1.0-17-amd64", "kernel 17"),
        ("/boot/initrd.img-6.1.0-17-amd64", "initrd 17"),
        ("/boot/microcode.cpio", "micro"),
    ];
    ext4(&[&files[..], more].concat())
}

fn environment(line: &str) -> String {
    format!("# GRUB Environment Block\n{line}\n{}", "#".repeat(900))
}

#[test]
fn grub_boots_its_first_entry_or_the_one_that_it_remembers() {
    let simple = (
        "kernel 18".into(),
        Some("initrd 18".into()),
        "root=UUID=11111111-2222-3333-4444-555555555555 ro quiet name=a b".into(),
        "Debian GNU/Linux".into(),
    );
    assert_eq!(entry(gpt(&[vfat(&[]), debian(&[])])), simple);
    assert_eq!(entry(mbr(&[vec![0; 512], debian(&[])])), simple);
    assert_eq!(entry(debian(&[])), simple);
    let menu = "Advanced options for Debian GNU/Linux";
    let older = (
        "kernel 17".to_owned(),
        Some("micro\0\0\0initrd 17".to_owned()),
        "root=UUID=X ro older".to_owned(),
        format!("{menu} > Debian GNU/Linux, with Linux 6.1.0-17-amd64"),
    );
    let with = |line: &str| entry(gpt(&[debian(&[("/boot/grub/grubenv", &environment(line))])]));
    for remembered in [
        "1>1",
        "gnulinux-advanced-UUID>gnulinux-6.1.0-17-amd64-advanced-UUID",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-17-amd64",
    ] {
        assert_eq!(with(&format!("saved_entry={remembered}")), older, "{remembered}");
        assert_eq!(with(&format!("next_entry={remembered}")), older, "{remembered}");
    }
    assert_eq!(with("saved_entry=1").2, "root=UUID=X ro advanced");
    assert_eq!(with("saved_entry=nothing"), simple);
    let custom =
        "menuentry mine { linux ($root)/mine a=$b; initrd /boot/microcode.cpio }\nset default=mine; b=7";
    let more = [("/boot/grub/custom.cfg", custom), ("/mine", "my kernel")];
    let mine = ("my kernel".into(), Some("micro".into()), "a=7".into(), "mine".into());
    assert_eq!(entry(gpt(&[debian(&more)])), mine);
}

#[test]
fn grub_finds_what_lies_on_another_partition() {
    let boot = |search: &str| {
        let cfg = format!("menuentry one {{ {search}\n linux /k x\n }}");
        let boot = vfat(&[("/grub/grub.cfg", &cfg), ("/k", "of boot")]);
        entry(gpt(&[boot, ext4(&[("/k", "of system"), ("/only", "")])])).0
    };
    assert_eq!(boot(""), "of boot");
    assert_eq!(
        boot("search --no-floppy --fs-uuid --set=root 11111111-2222-3333-4444-555555555555"),
        "of system"
    );
    assert_eq!(boot("search.fs_uuid 11111111-2222-3333-4444-555555555555 root hd0,gpt2"), "of system");
    assert_eq!(boot("search --label --set root system"), "of system");
    assert_eq!(boot("search --file /only"), "of system");
    assert_eq!(boot("search --fs-uuid --set=root cafe-9999 || true"), "of boot");
    assert_eq!(boot("set root='hd0,gpt2'"), "of system");
    assert_eq!(boot("search --fs-uuid --set=root CAFE-0001"), "of boot");
}

#[test]
fn entries_of_the_specification_are_sorted_and_chosen_as_it_says() {
    let conf = |id: &str, more: &str| {
        (format!("/loader/entries/{id}.conf"), format!("title {id}\nlinux /{id}/linux\n# no\n{more}\n"))
    };
    let disk = |entries: &[(&str, &str)], loader: &str| {
        let mut files = vec![("/loader/loader.conf".to_owned(), loader.to_owned())];
        for (id, more) in entries {
            files.push(conf(id, more));
            files.push((format!("/{id}/linux"), format!("kernel {id}")));
        }
        files.push(("/i".into(), "initrd".into()));
        let files: Vec<_> = files.iter().map(|(path, content)| (&**path, &**content)).collect();
        gpt(&[vfat(&files), ext4(&[])])
    };
    let title = |entries: &[(&str, &str)], loader: &str| entry(disk(entries, loader)).3;
    let full = entry(disk(&[("a", "initrd /i\ninitrd /i\noptions one\noptions  two three")], ""));
    assert_eq!(
        full,
        ("kernel a".into(), Some("initrd\0\0initrd".into()), "one two three".into(), "a".into())
    );
    assert_eq!(title(&[("x-6.9", ""), ("x-6.10", ""), ("x-6.10~rc1", "")], "timeout 3"), "x-6.10");
    let versions = [("b1", "sort-key b\nversion 1"), ("b2", "sort-key b\nversion 2"), ("z", "")];
    assert_eq!(title(&versions, ""), "b2");
    assert_eq!(title(&versions, "default b1*\n"), "b1");
    assert_eq!(title(&versions, "default z.conf"), "z");
    assert_eq!(title(&[("n-1", ""), ("n-2+0-3", "")], ""), "n-1");
    assert_eq!(title(&[("n-1", ""), ("n-2+1-2", "")], ""), "n-2+1-2");
    assert_eq!(title(&[("n-1", ""), ("n-2+3", "architecture aa64")], ""), "n-1");
    refused(
        disk(&[("a", "architecture aa64")], ""),
        &["a.conf of partition 1 (vfat)", "another architecture"],
    );
}

#[test]
fn entries_of_fedora_lie_in_boot_and_grub_remembers_which() {
    let conf = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img\n\
                 options root=UUID=X ro $kernelopts $none\ngrub_users $grub_users\n"
        )
    };
    let (older, newer) = (conf("6.8.5"), conf("6.11.4"));
    let of = |remembered: &str| {
        entry(gpt(&[ext4(&[
            ("/boot/loader/entries/m-6.8.5.conf", &older),
            ("/boot/loader/entries/m-6.11.4.conf", &newer),
            ("/boot/grub2/grub.cfg", "blscfg"),
            ("/boot/grub2/grubenv", &environment(remembered)),
            ("/boot/vmlinuz-6.8.5", "older"),
            ("/boot/initramfs-6.8.5.img", "older initrd"),
            ("/boot/vmlinuz-6.11.4", "newer"),
            ("/boot/initramfs-6.11.4.img", "newer initrd"),
        ])]))
    };
    let (kernel, initrd, cmdline, title) = of("kernelopts=rhgb");
    assert_eq!((&*kernel, initrd.as_deref(), &*title), ("newer", Some("newer initrd"), "Fedora (6.11.4)"));
    assert_eq!(cmdline.split_whitespace().collect::<Vec<_>>(), ["root=UUID=X", "ro", "rhgb"]);
    assert_eq!(of("saved_entry=m-6.8.5").0, "older");
}

#[test]
fn without_a_configuration_the_newest_kernel_is_taken() {
    let kernels = [
        ("/boot/vmlinuz-6.9.1", "old"),
        ("/boot/vmlinuz-6.10.0", "new"),
        ("/boot/initrd.img-6.10.0", "initrd"),
        ("/sbin/init", ""),
    ];
    let with_root = |root: &str| {
        ("new".into(), Some("initrd".into()), format!("root={root} ro"), "the newest kernel".into())
    };
    let part = "PARTUUID=00000001-0000-0000-0000-0000000000ab";
    assert_eq!(entry(gpt(&[ext4(&kernels)])), with_root(part));
    assert_eq!(entry(mbr(&[ext4(&kernels)])), with_root("PARTUUID=12345678-01"));
    assert_eq!(entry(ext4(&kernels)), with_root("/dev/vda"));
    let (kernel, initrd, cmdline, _) = entry(ext4(&[("/vmlinuz", "-> boot/k"), ("/boot/k", "link")]));
    assert_eq!((&*kernel, initrd, &*cmdline), ("link", None, ""));
}

#[test]
fn where_nothing_can_be_booted_it_is_said_where_one_looked() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let looked = [
        "no kernel was found",
        "grub/grub.cfg",
        "partition 1 (vfat)",
        "partition 2 (xfs, which ftd does not read)",
    ];
    refused(gpt(&[vfat(&[]), xfs]), &looked);
    refused(Vec::new(), &["no kernel was found", "the whole disk (no known file system)"]);
    let large = "k".repeat(LIMITS.file_bytes_max as usize + 1);
    refused(
        ext4(&[("/boot/vmlinuz-1", &large)]),
        &["the kernel of entry", "1048577 bytes, at most 1048576 fit"],
    );
    let cfg = "menuentry a { linux /k; initrd /gone }";
    refused(
        ext4(&[("/boot/grub/grub.cfg", cfg), ("/k", "")]),
        &["the initrd of entry \"a\"", "there is no /gone"],
    );
    refused(ext4(&[("/boot/grub/grub.cfg", "menuentry a { linux /k }")]), &["has no entry that boots Linux"]);
    for (cfg, why) in [
        ("while true; do x=1; done", "does not end"),
        ("function f { f }\nf", "too deeply"),
        ("if true; then", "not complete"),
        ("menuentry a {", "'}' is missing"),
        ("source /boot/grub/grub.cfg", "too deeply"),
    ] {
        refused(
            ext4(&[("/boot/grub/grub.cfg", cfg)]),
            &["grub.cfg of the whole disk (ext4) is not understood", why],
        );
    }
    refused(ext4(&[("/boot/grub/grub.cfg", &"if [ a ]; then ".repeat(99))]), &["nested too deeply"]);
}

#[test]
fn a_configuration_with_a_command_as_long_as_can_be_ends() {
    let boots = |condition: &str| {
        let cfg =
            format!("if {condition}; then\nmenuentry yes {{ linux /k }}\nfi\nmenuentry no {{ linux /k }}");
        entry(ext4(&[("/boot/grub/grub.cfg", &cfg), ("/k", "")])).3
    };
    assert_eq!((boots("! false"), boots("! ! false")), ("yes".into(), "no".into()));
    assert_eq!((boots("[ ! a = b ]"), boots("[ ! ! a = b ]")), ("yes".into(), "no".into()));
    assert_eq!((boots("[ a = b -o c ]"), boots("[ a -a a = b -o ! c ]")), ("yes".into(), "no".into()));
    assert_eq!(boots(&format!("{} false", "! ".repeat(60_000))), "no");
    assert_eq!(boots(&format!("[ {} a ]", "! ".repeat(60_000))), "yes");
    assert_eq!(boots(&format!("[ {} a ]", "-o ".repeat(30_000))), "yes");
}

#[test]
fn what_a_configuration_reads_and_copies_is_work_that_is_bounded() {
    let long = "x".repeat(60_000);
    let copies = format!("a={long}\nfor x in 1 2 3 4 5 6 7 8 9; do while true; do b=$a$x; done; done");
    let sources = "while true; do source /more.cfg; done";
    let more = "# nothing\n".repeat(20_000);
    for cfg in [&*copies, sources] {
        let began = Instant::now();
        refused(ext4(&[("/boot/grub/grub.cfg", cfg), ("/more.cfg", &more)]), &["does not end"]);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

/// Texts of what a grub.cfg is made of.
const GRUBBY: &str = "(if|then|fi|while|do|done|true|false|menuentry|linux|set|[ ;{}$'\"\\\\#a\n]){0,80}";

/// One disk of each kind, and where it has what means something.
static DISKS: LazyLock<[(Vec<u8>, Vec<usize>); 3]> = LazyLock::new(|| {
    let esp = vfat(&[("/loader/entries/a.conf", "linux /k\ninitrd /i"), ("/k", "kernel"), ("/i", "initrd")]);
    [gpt(&[debian(&[])]), mbr(&[vec![0; 512], debian(&[])]), gpt(&[esp])].map(|disk| {
        let meaningful = (0..disk.len()).filter(|at| disk[*at] != 0).collect();
        (disk, meaningful)
    })
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_disk_is_read_or_refused_in_time(
        which in 0usize..3,
        hits in prop::collection::vec((0u64..u64::MAX, any::<u8>(), 1usize..64), 1..60),
        cut in prop::option::of(0usize..12 << 20),
    ) {
        let (mut disk, meaningful) = DISKS[which].clone();
        for (place, value, length) in hits {
            let at = meaningful[(place % meaningful.len() as u64) as usize];
            let end = (at + length).min(disk.len());
            disk[at..end].fill(value);
        }
        disk.truncate(cut.unwrap_or(disk.len()));
        let began = Instant::now();
        let _ = found(disk);
        prop_assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn any_text_is_a_configuration_or_is_refused(text in GRUBBY) {
        let _ = grub::executed(&text);
    }

    #[test]
    fn versions_have_one_order(a in "[0-9a-c.~^-]{0,8}", b in "[0-9a-c.~^-]{0,8}", c in "[0-9a-c.~^-]{0,8}") {
        prop_assert_eq!(version::compare(&a, &b), version::compare(&b, &a).reverse());
        let mut sorted = [&a, &b, &c];
        sorted.sort_by(|one, other| version::compare(one, other));
        prop_assert!(version::compare(sorted[0], sorted[2]).is_le());
    }
}

#[test]
fn versions_are_compared_as_the_specification_says() {
    let ascending = [
        "~1",
        "",
        "ab",
        "abb",
        "abc",
        "0001",
        "002",
        "12",
        "122",
        "122.9",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-a1",
        "123-a1-1",
        "123-3",
        "123-3.1",
        "123^patch1",
        "123^1",
        "123.a-1",
        "123.1-1",
        "123a-1",
        "124",
    ];
    for pair in ascending.windows(2) {
        assert!(version::compare(pair[0], pair[1]).is_lt(), "{pair:?}");
    }
}
