//! The last resort: the newest kernel in /boot, or the one that /vmlinuz leads to, with the initrd of its version.

use super::{Chosen, readable, version};
use crate::table::Scheme;
use crate::volume::{Files, Volume};

/// Where kernels are: in a root file system, or in one that is mounted as its /boot.
const PLACES: [&str; 2] = ["/boot", ""];
/// Names of an initrd: before and after the version.
const INITRDS: [(&str, &str); 4] =
    [("initrd.img-", ""), ("initramfs-", ".img"), ("initramfs-", ""), ("initrd-", "")];
/// What a root file system has one of.
const INITS: [&str; 4] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/inittab"];

pub(super) fn choose(volumes: &[Volume]) -> Option<Chosen> {
    readable(volumes).find_map(|(index, volume, files)| {
        PLACES.iter().find_map(|place| {
            let (kernel, initrd) = newest(files, place)?;
            let initrds: Vec<String> = initrd.into_iter().collect();
            Some(Chosen {
                title: "the newest kernel".into(),
                found_in: format!("{}/ of {volume}", place),
                volume: index,
                kernel,
                initrds,
                cmdline: root(volumes),
            })
        })
    })
}

/// A kernel and its initrd.
fn newest(files: &dyn Files, place: &str) -> Option<(String, Option<String>)> {
    let names = files.list(&format!("{place}/")).ok()?;
    let versions = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-"));
    let versions = versions.filter(|version| !version.contains("rescue"));
    if let Some(newest) = versions.max_by(|one, other| version::compare(one, other)) {
        let initrd = |(before, after)| format!("{before}{newest}{after}");
        let initrd = INITRDS.into_iter().map(initrd).find(|name| names.contains(name));
        return Some((format!("{place}/vmlinuz-{newest}"), initrd.map(|name| format!("{place}/{name}"))));
    }
    let there = |name: &str| Some(format!("{place}/{name}")).filter(|path| files.has(path));
    Some((there("vmlinuz")?, there("initrd.img")))
}

/// `root=`, where the root file system can be told; the operator says it else.
fn root(volumes: &[Volume]) -> String {
    let mut roots = readable(volumes).filter(|(.., files)| INITS.iter().any(|init| files.has(init)));
    match roots.next() {
        Some((_, Volume { slice, .. }, _)) => match (&slice.uuid, slice.scheme) {
            (Some(uuid), _) => format!("root=PARTUUID={uuid} ro"),
            (None, Scheme::Bare) => "root=/dev/vda ro".into(),
            (None, _) => String::new(),
        },
        None => String::new(),
    }
}
