# What a fresh Debian 12 needs to build and run things here: checks, and installs through apt what is missing. Says
# nothing when all is there. Sourced; needs say.sh, cleanup.sh and FTD_ROOT.

# The packages for each need.
setup_packages_for() {
    case $1 in
    build) echo libclang-dev pkg-config gcc libc6-dev ;;
    network) echo iproute2 nftables procps bsdextrautils jq ;;
    linux-guest) echo linux-source-6.1 build-essential flex bison bc libelf-dev libssl-dev xz-utils cpio busybox-static ;;
    # To compare the software engine with.
    qemu) echo qemu-system-x86 ;;
    systemd) echo systemd-container debootstrap ;;
    *) die "setup: unknown need \`$1\`" ;;
    esac
}

# setup_need NEED...: build, network, linux-guest, qemu, systemd.
setup_need() {
    local need package
    local -a missing=()
    for need in "$@"; do
        for package in $(setup_packages_for "$need"); do
            [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
        done
    done
    ((${#missing[@]} == 0)) && return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names; there is no apt-get to install them)"
    local -a as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "missing packages; as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    on_exit rm -f "$log"
    if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

setup_cargo() {
    command -v cargo >/dev/null || [[ ! -r $HOME/.cargo/env ]] || source "$HOME/.cargo/env"
    command -v cargo >/dev/null ||
        die "no Rust toolchain: install one as https://rustup.rs says, or with the distribution's rustup, then run this again"
}

# setup_binaries: builds the release binaries, if need be, and sets FTD_BIN_DIR. Binaries given by FTD_BIN_DIR are used
# as they are.
setup_binaries() {
    local name
    if [[ -n ${FTD_BIN_DIR:-} ]]; then
        for name in ftd ftctl ft-client ft-wire ft-proxy; do
            [[ -x $FTD_BIN_DIR/$name ]] || die "FTD_BIN_DIR=$FTD_BIN_DIR has no $name"
        done
        return 0
    fi
    setup_need build
    setup_cargo
    local target=${CARGO_TARGET_DIR:-$FTD_ROOT/target} log line compiled=0
    log=$(mktemp)
    on_exit rm -f "$log"
    # Only a build that compiles something says anything.
    if ! (cd "$FTD_ROOT" && cargo build --release --bins 2>&1) | tee "$log" | while IFS= read -r line; do
        [[ $line == *Compiling* ]] || continue
        ((compiled++ > 0)) || say "building the release binaries (the first time takes a few minutes)"
        say_passing "$line"
    done; then
        cat "$log" >&2
        rm -f "$log"
        die "the build failed"
    fi
    rm -f "$log"
    say_passing ''
    FTD_BIN_DIR=$target/release
}
