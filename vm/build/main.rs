//! Tells the deterministic engine's fingerprint (`fingerprint.rs`). Builds the built-in guest (`guest/`, a crate of its
//! own, without std) for the inside of the machine, and leaves the image where `src/guest.rs` includes it from.
//!
//! The guest is built as a bare program for the host's own target, since the toolchain has no other at hand: the flags
//! below make it static and freestanding. Nothing of the outer build's settings may reach it: an outer `RUSTFLAGS`
//! would replace the flags, and clippy's wrapper would check it instead of building it.

mod fingerprint;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")));
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let guest_dir = manifest_dir.join("guest");
    for input in
        ["guest/Cargo.toml", "guest/Cargo.lock", "guest/link.ld", "guest/src", "ram/src/layout.rs", "build"]
    {
        println!("cargo:rerun-if-changed={}", manifest_dir.join(input).display());
    }

    let lock = manifest_dir.join("../Cargo.lock");
    let fingerprint::Fingerprint { hash, files } = fingerprint::fingerprint(
        &manifest_dir,
        &fingerprint::ROOTS,
        &fingerprint::OUTSIDE,
        &fingerprint::CRATES,
        &lock,
    )
    .unwrap_or_else(|e| fail(&format!("what decides a guest's execution cannot be told: {e}")));
    files.iter().for_each(|file| println!("cargo:rerun-if-changed={}", file.display()));
    println!("cargo:rustc-env=FTD_SOFT_FINGERPRINT={hash:016x}");

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
