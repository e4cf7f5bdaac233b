//! Builds the built-in guest (`guest/`, a crate of its own, without std) for the inside of the machine, and leaves the
//! image where `src/guest.rs` includes it from.
//!
//! It is built as a bare program for the host's own target, since the toolchain has no other at hand: the flags below
//! make it static and freestanding. Nothing of the outer build's settings may reach it: an outer `RUSTFLAGS` would
//! replace the flags, and clippy's wrapper would check it instead of building it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")));
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let guest_dir = manifest_dir.join("guest");
    for input in [
        "guest/Cargo.toml",
        "guest/Cargo.lock",
        "guest/link.ld",
        "guest/src",
        "ram/src/layout.rs",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={}", manifest_dir.join(input).display());
    }

    println!("cargo:rustc-env=FTD_SOFT_FINGERPRINT={:016x}", fingerprint(&manifest_dir));

    let target_dir = out_dir.join("guest");
    let mut command = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_outer_setting) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(&guest_dir)
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&guest_dir).join("\x1f"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            fail(&format!("building {}: cargo ended with {status}, see above", guest_dir.display()))
        }
        Err(error) => fail(&format!("building {}: cannot run cargo: {error}", guest_dir.display())),
    }

    let built = target_dir.join(TARGET).join("release/ft-guest");
    let image = out_dir.join("guest.elf");
    if let Err(error) = std::fs::copy(&built, &image) {
        fail(&format!("copying {} to {}: {error}", built.display(), image.display()));
    }
}

/// Everything that decides what a guest sees of the deterministic engine, relative to this crate. The lock file stands for
/// the crates that the engine is made with.
const DECIDING: [&str; 7] =
    ["src/engine/soft", "src/devices", "src/replay", "src/boot", "ram/src", "cpu/src", "../Cargo.lock"];

/// A hash over the names and contents of what [`DECIDING`] names: FNV-1a, 64 bits.
fn fingerprint(manifest_dir: &Path) -> u64 {
    let mut files = Vec::new();
    for place in DECIDING {
        let path = manifest_dir.join(place);
        println!("cargo:rerun-if-changed={}", path.display());
        collect(&path, &mut files);
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for path in files {
        let name = path.strip_prefix(manifest_dir).unwrap_or(&path);
        match std::fs::read(&path) {
            Ok(content) => [name.as_os_str().as_encoded_bytes(), &content].into_iter().for_each(&mut add),
            Err(error) => fail(&format!("reading {}: {error}", path.display())),
        }
    }
    hash
}

/// The files at and below a path, in an order of their own. One that is not there (a lock file) counts for nothing.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match std::fs::read_dir(path) {
        Ok(entries) => {
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            paths.iter().for_each(|path| collect(path, files));
        }
        Err(_) if path.is_file() => files.push(path.to_owned()),
        Err(_) => {}
    }
}

/// Whether a variable of the environment comes from the outer cargo or changes what a build does. What says where
/// crates come from stays.
fn is_outer_setting(name: &str) -> bool {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let cargo = name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
    let rustc = name.starts_with("RUSTC") || name == "RUSTFLAGS" || name == "RUSTDOCFLAGS";
    // Other variables of the outer build's, and clippy's; smoltcp's own settings.
    let other =
        ["CLIPPY_", "SMOLTCP_", "MAKEFLAGS", "MFLAGS", "__CARGO"].iter().any(|start| name.starts_with(start));
    cargo || rustc || other
}

fn rustflags(guest_dir: &Path) -> Vec<String> {
    let mut flags: Vec<String> =
        ["-Crelocation-model=static", "-Ctarget-cpu=x86-64"].iter().map(ToString::to_string).collect();
    // No start files and no C library; the linker script says where in memory everything lies.
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        flags.push(format!("-Clink-arg={argument}"));
    }
    flags.push(format!("-Clink-arg=-Wl,-T,{}", guest_dir.join("link.ld").display()));
    // The image names no directories of the machine that it was built on.
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| home + "/.cargo"));
    flags.extend(home.map(|home| format!("--remap-path-prefix={home}=cargo")));
    flags.push(format!("--remap-path-prefix={}=guest", guest_dir.display()));
    flags
}

fn fail(why: &str) -> ! {
    eprintln!("error: {why}");
    std::process::exit(1)
}
