use super::*;
use std::io::Read;

fn seed() -> Seed {
    Seed {
        user_data: user_data(Some("ada"), "ssh-ed25519 AAAA ada@here\n\n# no\nssh-rsa BBBB\n").unwrap(),
        meta_data: meta_data(Some("web.example")).unwrap(),
        network_config: Some("version: 2\n".into()),
    }
}

#[test]
fn a_seed_is_a_vfat_that_cloud_init_finds_by_its_label() {
    let disk = Cursor::new(seed().disk().unwrap());
    let system = FileSystem::new(disk, FsOptions::new()).unwrap();
    assert_eq!(system.read_volume_label_from_root_dir().unwrap().unwrap(), "CIDATA");
    let read = |name: &str| {
        let mut text = String::new();
        system.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read("meta-data"), "instance-id: \"ftd-web.example\"\nlocal-hostname: \"web.example\"\n");
    assert_eq!(read("network-config"), "version: 2\n");
    let user = read("user-data");
    assert!(user.starts_with("#cloud-config\nusers:\n  - name: \"ada\"\n"), "{user}");
    assert!(
        user.ends_with("keys:\n      - \"ssh-ed25519 AAAA ada@here\"\n      - \"ssh-rsa BBBB\"\n"),
        "{user}"
    );
}

#[test]
fn equal_texts_make_equal_disks_and_no_file_is_overwritten_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
    write(&seed(), &one, Overwrite::Refused).unwrap();
    write(&seed(), &other, Overwrite::Refused).unwrap();
    let content = |path: &Path| std::fs::read(path).unwrap();
    assert!(content(&one) == content(&other));
    let without = Seed { network_config: None, ..seed() };
    let refused = write(&without, &other, Overwrite::Refused).unwrap_err().to_string();
    assert!(refused.contains("is there already"), "{refused}");
    assert!(content(&one) == content(&other));
    write(&without, &other, Overwrite::Allowed).unwrap();
    assert!(content(&one) != content(&other));
}

#[test]
fn what_would_be_something_else_in_yaml_is_refused() {
    for user in ["", "a b", "a\"b", "1a", "a:b", "a\nb"] {
        assert!(matches!(user_data(Some(user), "ssh-rsa A"), Err(SeedError::Value { .. })), "{user}");
        assert!(matches!(meta_data(Some(user)), Err(SeedError::Value { .. })), "{user}");
    }
    for keys in ["", "# none", "nothing", "ssh-rsa A\"", "command=\"x\" ssh-rsa A", "ssh-rsa \\"] {
        assert!(matches!(user_data(Some("ada"), keys), Err(SeedError::Value { .. })), "{keys}");
    }
    let large = Seed { user_data: "x".repeat(TEXT_BYTES_MAX), ..seed() };
    assert!(matches!(large.disk(), Err(SeedError::TooLarge(_))));
}
