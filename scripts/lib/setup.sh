# The needs of a fresh Debian to build and run things here: checks them, and installs missing packages through apt. Says
# nothing when all is there. Sourced.
[[ -z ${setup_sourced:-} ]] || return 0
setup_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"
: "${FTD_ROOT:=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)}"

# The packages for each need.
setup_packages_for() {
    case $1 in
    build) echo libclang-dev pkg-config gcc libc6-dev ;;
    # libFuzzer is C++; file systems to begin with.
    fuzz) echo g++ e2fsprogs ;;
    # The library that makes system calls fail (faults/shim).
    shim) echo gcc libc6-dev ;;
    network) echo iproute2 nftables procps bsdextrautils jq ;;
    # Its kernel is compiled here.
    linux-guest)
        echo linux-source-6.1 build-essential flex bison bc libelf-dev libssl-dev xz-utils cpio busybox-static
        ;;
    # The ledger's database is linked into it.
    ledger) echo libsqlite3-dev ;;
    # The file system of its disk, and what reads both.
    disk-guest) echo sqlite3 e2fsprogs ;;
    # What tests look at their subject with.
    tests) echo acpica-tools man-db mandoc ;;
    # The Debian package, and what judges it.
    package) echo debhelper jq ;;
    lintian) echo lintian ;;
    # To compare the software engine with.
    qemu) echo qemu-system-x86 ;;
    # A real one, for the arbiter's tests, and what looks after it.
    etcd) echo etcd-server etcd-client ;;
    systemd) echo systemd-container debootstrap ;;
    # A bare Debian tree.
    tree) echo debootstrap ;;
    # A whole Debian on a disk image, and its login.
    debian-image) echo mmdebstrap e2fsprogs fdisk openssh-client ;;
    # A machine in QEMU, and its root disk (scripts/hwkvm).
    hwkvm) echo qemu-system-x86 e2fsprogs cpio busybox-static ;;
    # To check the scripts.
    scripts) echo shellcheck shfmt jq ;;
    *) die "setup: unknown need \`$1\`" ;;
    esac
}

# All that setup_need knows.
setup_needs=(
    build fuzz shim network linux-guest ledger disk-guest debian-image tests etcd qemu systemd tree hwkvm scripts
    package lintian
)

# setup_need NEED...: of setup_needs.
setup_need() {
    local need
    local -a packages=() of_need=() missing=()
    for need in "$@"; do
        read -r -a of_need < <(setup_packages_for "$need")
        ((${#of_need[@]})) || exit 1
        packages+=("${of_need[@]}")
    done
    mapfile -t missing < <(setup_missing "${packages[@]}")
    ((${#missing[@]} == 0)) && return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names; there is no apt-get to install them)"
    ((EUID == 0)) || command -v sudo >/dev/null || die "missing packages; as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    on_exit rm -f "$log"
    if ! {
        setup_refresh
        setup_as_root bash -c "$(declare -f setup_install)"' && setup_install "$@"' bash "${missing[@]}"
    } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# setup_install PACKAGE...: as root, in a shell of its own. A service that comes with one is for the tests alone: it is
# not started here.
setup_install() {
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

setup_as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

# setup_refresh: apt's lists. A source that cannot be read may be one that is not wanted: the installation tells.
setup_refresh() { setup_as_root apt-get update >&2 || true; }

# setup_missing PACKAGE...: those that are not installed, each once.
setup_missing() {
    {
        dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' || true
        printf '%s ?\n' "$@"
    } | awk '$2 == "" { there[$1] = 1 } $2 == "?" && !there[$1]++ { print $1 }'
}

# setup_cargo [SUBCOMMAND...]: a Rust toolchain that is new enough, with these of cargo's subcommands.
setup_cargo() {
    local needed tool version subcommand
    command -v cargo >/dev/null || [[ ! -d $HOME/.cargo/bin ]] || PATH=$PATH:$HOME/.cargo/bin
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$FTD_ROOT/Cargo.toml")
    for tool in cargo rustc; do
        command -v "$tool" >/dev/null ||
            die "there is no $tool: install Rust $needed or later as https://rustup.rs says, then run this again" \
                "(Debian 12's own packages have Rust 1.63, which is too old)"
        version=$(cd "$FTD_ROOT" && "$tool" --version) || die "$(command -v "$tool") does not run"
        version=$(cut -d ' ' -f 2 <<<"$version")
        printf '%s\n' "$needed" "$version" | sort -VC ||
            die "$(command -v "$tool") is of Rust $version, which is too old: install $needed or later as" \
                "https://rustup.rs says (Debian 12's own packages have Rust 1.63)"
    done
    for subcommand in "$@"; do
        cargo "$subcommand" --version >/dev/null 2>&1 || die "the Rust toolchain has no \`cargo $subcommand\`:" \
            "rustup component add rustfmt clippy"
    done
}

# setup_space GIB: room for what is built, of which what has been built counts already.
setup_space() {
    local target=${CARGO_TARGET_DIR:-$FTD_ROOT/target} built_mib left_mib
    mkdir -p "$target"
    built_mib=$(du -sm "$target" | cut -f 1)
    left_mib=$(df --output=avail -BM "$target" | tail -n 1 | tr -dc '0-9')
    ((built_mib + left_mib >= $1 * 1024)) ||
        die "$target needs $1 GiB of disk space, and has $built_mib MiB and $left_mib MiB to grow"
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
