# Two hosts, a and b, each with its ftd, over the network of net.sh and one cell both can reach.
# Sourced; needs run_dir (cleanup.sh), the network up (net.sh), and FTD_BIN_DIR (setup.sh).
#
# Each daemon runs in its host's network namespace and in a mount namespace of its own, where the cell's directory is a
# bind mount: so one host can lose the shared storage while the other keeps it.
#
# Settings, from the environment of the script:
#   FT_GUEST builtin|linux|debian|linux-disk|linux-load|debian-disk, FT_MEMORY_MIB, FT_VCPUS, FT_EPOCH_MS,
#   FT_CHECK_MIB (a Linux guest checks itself and so much memory, scripts/guest/check),
#   FT_BUS (where a Linux guest finds its devices, if not at ftd's default),
#   FT_LEDGER slots|tree|wal|rollback (how the guest linux-disk keeps its entries), FT_DISK_MIB,
#   FT_DISK (further lines for the configuration's [[machine.disk]]), FT_BASE (not empty: the disks of linux-disk
#   and of debian-disk lie over one base),
#   FT_MODE checkpoint|replay, FT_ENGINE kvm|soft (replay mode is always on soft),
#   FT_PEER_PORT (where a daemon looks for its peer; another than 7400 leads through a proxy),
#   FT_LISTEN (where the daemons wait for each other, if not on the link between them),
#   FT_SECURITY tls|none (security.sh), FT_CONFINEMENT full|none,
#   FT_FAILURE_TIMEOUT_MS (silence after which a peer counts as lost),
#   FT_REPLICATION (further lines for the configuration's [replication]),
#   FT_FTD (the ftd that both hosts run, if not the one of FTD_BIN_DIR),
#   FT_SHIM (a library that is loaded into each daemon; faults/shim says what it does),
#   FT_ARBITER file|service|majority|etcd (arbiter.sh)
[[ -z ${pair_sourced:-} ]] || return 0
pair_sourced=1
source "${BASH_SOURCE[0]%/*}/net.sh"
source "${BASH_SOURCE[0]%/*}/arbiter.sh"
source "${BASH_SOURCE[0]%/*}/security.sh"
: "${FTD_ROOT:=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)}"

pair_vm=web
pair_mac=52:54:00:77:00:02
declare -A pair_node=([a]=alpha [b]=beta)
declare -A pair_peer=([a]=b [b]=a)
pair_port=7400
pair_client_port=7777 pair_bank_port=5432
# Exit codes of ftd (its --help): cannot pair with the peer, lost the arbitration.
pair_exit_peer=13 pair_exit_fenced=20

# pair_config HOST START_AS: the configuration, on stdout.
pair_config() {
    local host=$1 peer=${pair_peer[$1]} dir=$run_dir/$1
    cat <<EOF
vm = "$pair_vm"
node = "${pair_node[$host]}"
start_as = "$2"
state_dir = "$dir/state"
control_socket = "$dir/ctl.sock"
confinement = "${FT_CONFINEMENT:-full}"

[peer]
node = "${pair_node[$peer]}"
address = "${net_repl_address[$peer]}:${FT_PEER_PORT:-$pair_port}"
${FT_PEER_PORT:+from = \"${net_repl_address[$host]}\"}

[machine]
engine = "$(pair_engine)"
vcpus = ${FT_VCPUS:-1}
memory_mib = $(pair_memory_mib)
$(pair_guest_config)
console = "file:$dir/console.log"
$(pair_disk_config "$host")

[machine.net]
tap = "vm"
mac = "$pair_mac"
addresses = ["$net_vm_address"]

[replication]
mode = "${FT_MODE:-checkpoint}"
${FT_LISTEN:+listen = \"$FT_LISTEN\"}
$(security_lines)
epoch_ms = ${FT_EPOCH_MS:-5}
${FT_FAILURE_TIMEOUT_MS:+failure_timeout_ms = $FT_FAILURE_TIMEOUT_MS}
${FT_REPLICATION:-}

$(arbiter_config "$host" "$pair_vm")

$(security_table "${pair_node[$host]}")
EOF
}

# Debian's kernel is not at ease in 64 MiB.
pair_memory_mib() {
    case ${FT_GUEST:-} in
    debian) echo "${FT_MEMORY_MIB:-256}" ;;
    debian-disk) echo "${FT_MEMORY_MIB:-384}" ;;
    *) echo "${FT_MEMORY_MIB:-64}" ;;
    esac
}

# pair_engine: what executes the VM.
pair_engine() {
    if [[ ${FT_MODE:-checkpoint} == replay ]]; then echo soft; else echo "${FT_ENGINE:-kvm}"; fi
}

# host_kvm: what KVM rests on here: hardware, software (it is emulated, and slow), or none.
host_kvm() {
    if [[ ! -c /dev/kvm ]]; then
        echo none
    elif grep -qwE 'vmx|svm' /proc/cpuinfo; then
        echo hardware
    else
        echo software
    fi
}

# pair_can_run: whether the engine is there; says what is missing.
pair_can_run() {
    [[ $(pair_engine) == soft || (-c /dev/kvm && -r /dev/kvm && -w /dev/kvm) ]] ||
        { echo 'no usable /dev/kvm' && return 1; }
}

# pair_linux_kernel: which of the guest builder's kernels the Linux guest has.
pair_linux_kernel() {
    case $FT_GUEST in
    debian) echo debian ;;
    linux-disk | linux-load) echo disk ;;
    debian-disk) echo debian-image ;;
    *) echo small ;;
    esac
}

# pair_find_guest: the Linux guest's directory, in FT_LINUX_DIR; it is built if it was not given.
pair_find_guest() {
    [[ ${FT_GUEST:-builtin} != builtin && -z ${FT_LINUX_DIR:-} ]] || return 0
    FT_LINUX_DIR=$("$FTD_ROOT/scripts/guest/build" "$(pair_linux_kernel)") || die 'there is no Linux guest'
}

pair_guest_config() {
    case ${FT_GUEST:-builtin} in
    builtin) echo 'guest = "builtin"' ;;
    linux | debian | linux-disk | linux-load)
        echo 'guest = "linux"'
        echo "kernel = \"$FT_LINUX_DIR/kernel\""
        echo "initrd = \"$FT_LINUX_DIR/initramfs.cpio\""
        echo "cmdline = \"$(pair_linux_cmdline)\""
        [[ -z ${FT_BUS:-} ]] || echo "bus = \"$FT_BUS\""
        ;;
    # All that it boots is on its disk.
    debian-disk) echo 'guest = "image"' ;;
    *) die "unknown guest \`$FT_GUEST\`" ;;
    esac
}

# pair_linux_cmdline: the Linux guest's command line, on stdout.
pair_linux_cmdline() {
    local words=''
    case $FT_GUEST in
    linux-disk) words=" ft.ledger=${FT_LEDGER:-slots}" ;;
    linux-load) words=' ft.load' ;;
    esac
    [[ ! ${FT_CHECK_MIB:-} ]] || words+=" ft.check=$FT_CHECK_MIB"
    printf '%s%s' "$(tr '\n' ' ' <"$FT_LINUX_DIR/cmdline")" "$words"
}

# pair_service_answers SECONDS: what a client talks to in the VM is there.
pair_service_answers() {
    case ${FT_GUEST:-} in
    debian-disk) in_ns c "$FTD_BIN_DIR/ft-bank" call --timeout-s "$1" --addr "$net_vm_address:$pair_bank_port" ;;
    *) in_ns c "$FTD_BIN_DIR/ft-client" call --timeout-s "$1" --addr "$net_vm_address:$pair_client_port" PING ;;
    esac
}

# pair_start_client NAME STOP_FILE [ARGUMENT...]: spawns the client that checks each answer, over one connection, until
# that file is there. Each line of its log is an object, the last one sums up.
pair_start_client() {
    local name=$1 stop_file=$2
    shift 2
    local -a client=("$FTD_BIN_DIR/ft-client" --json --progress --addr "$net_vm_address:$pair_client_port")
    # What was acknowledged belongs to the images, which a new pair makes anew.
    [[ ${FT_GUEST:-} != debian-disk ]] || client=("$FTD_BIN_DIR/ft-bank" run --json
        --addr "$net_vm_address:$pair_bank_port" --acked "$run_dir/a/bank.acked")
    spawn "$name" ip netns exec "$(net_ns c)" "${client[@]}" --stop-file "$stop_file" "$@"
}

# pair_base: what the images of both hosts lie over, with FT_BASE: a whole Debian lies over the one that was made once.
pair_base() {
    case ${FT_GUEST:-} in
    debian-disk) echo "$FT_LINUX_DIR/disk.img" ;;
    *) echo "$run_dir/base.img" ;;
    esac
}

# A writable one; both hosts begin with the same image.
pair_disk_config() {
    [[ ${FT_GUEST:-} =~ -(disk|load)$ ]] || return 0
    local disk=${FT_DISK:-}
    [[ ! ${FT_BASE:-} ]] || disk+=$'\n'"base = \"$(pair_base)\""
    printf '\n[[machine.disk]]\nimage = "%s"\nread_only = false\n%s\n' "$run_dir/$1/disk.img" "$disk"
}

# pair_prepare: directories and configurations of a new pair; nothing of an earlier one is left.
pair_prepare() {
    local host
    pair_find_guest
    rm -rf --one-file-system -- "$run_dir/a" "$run_dir/b" "$run_dir/base.img"
    pair_cell=$run_dir/arbiter/shared/$pair_vm.cell
    security_keys "${pair_node[@]}"
    arbiter_prepare
    for host in a b; do
        mkdir -p "$run_dir/$host"/{state,arbiter}
        case ${FT_GUEST:-} in
        linux-disk)
            [[ ${FT_BASE:-} ]] || "$FTD_ROOT/scripts/guest/disk" "$run_dir/$host/disk.img" "${FT_DISK_MIB:-64}"
            ;;
        debian-disk) [[ ${FT_BASE:-} ]] || cp --sparse=always "$FT_LINUX_DIR/disk.img" "$run_dir/$host/disk.img" ;;
        # Its guest wants no file system.
        linux-load) truncate -s "${FT_DISK_MIB:-64}M" "$run_dir/$host/disk.img" ;;
        esac
    done
    pair_config a primary >"$run_dir/a/ftd.toml"
    pair_config b backup >"$run_dir/b/ftd.toml"
    [[ ! ${FT_BASE:-} ]] || pair_overlays
}

# pair_overlays: the image of each host lies over one base.
pair_overlays() {
    local host
    [[ ${FT_GUEST:-} != linux-disk ]] || "$FTD_ROOT/scripts/guest/disk" "$(pair_base)" "${FT_DISK_MIB:-64}"
    for host in a b; do
        "$FTD_BIN_DIR/ftd" disk create-overlay --config "$run_dir/$host/ftd.toml" >>"$run_dir/$host/overlay.log"
    done
}

# Where a host's daemon writes its messages, if not into the host's log: set by a script before host_start.
declare -A host_stderr=()

# The ftd that a host runs, if not the one of FTD_BIN_DIR: set by a script before host_start.
declare -A host_build=()

# host_start HOST [ARGUMENT...]: starts its ftd; further arguments go to `ftd run`.
host_start() {
    local host=$1
    shift
    local -a with=()
    if [[ -n ${FT_SHIM:-} ]]; then
        host_fail "$host" none
        with=(env "LD_PRELOAD=$FT_SHIM" "FT_SHIM=$run_dir/$host/shim")
    fi
    # shellcheck disable=SC2016 # The inner shell expands its own arguments.
    spawn "$host/ftd" ip netns exec "$(net_ns "$host")" \
        bash -c 'mount --bind "$1" "$2" && exec 2>>"$3" && shift 3 && exec "$@"' _ \
        "${arbiter_storage[$host]:-$run_dir/arbiter}" "$run_dir/$host/arbiter" "${host_stderr[$host]:-/dev/stderr}" \
        "${with[@]}" "${host_build[$host]:-${FT_FTD:-$FTD_BIN_DIR/ftd}}" run --config "$run_dir/$host/ftd.toml" "$@"
}

# host_fail HOST CALL [TIMES [ERRNO [SKIP]]]: from now on its kernel refuses these calls of ftd, so many times (-1: for
# ever), after so many that go through; the call `none`: no more. Needs FT_SHIM.
host_fail() {
    printf '%-63s\n' "$2 ${5:-0} ${3:-1} ${4:-14} $EPOCHREALTIME ." >"$run_dir/$1/shim.new"
    # In place: the daemon has mapped the file.
    dd if="$run_dir/$1/shim.new" of="$run_dir/$1/shim" conv=notrunc status=none
}

host_is_up() { is_running "$1/ftd"; }
host_kill() { signal_spawned "$1/ftd" KILL; }
host_freeze() { signal_spawned "$1/ftd" STOP; }
host_thaw() { signal_spawned "$1/ftd" CONT; }
host_wait_end() { wait_until "$2" has_ended "$1/ftd"; }
host_exit_code() { spawned_exit "$1/ftd"; }

# host_stop HOST: ends it in order; a VM that cannot move is powered off.
host_stop() {
    host_thaw "$1" || true
    ! host_is_up "$1" || ctl "$1" stop >/dev/null 2>&1 || ctl "$1" stop --power-off --timeout 0 >/dev/null 2>&1 || true
    end_spawned "$1/ftd" TERM 60
}

# ctl HOST ARGUMENT...: ftctl for that host's daemon.
ctl() {
    local host=$1
    shift
    "$FTD_BIN_DIR/ftctl" --socket "$run_dir/$host/ctl.sock" "$@"
}

# host_status HOST FILTER: a field of its status by a jq filter; nothing when the daemon does not answer.
host_status() {
    local status
    host_is_up "$1" || return 1
    # ftctl's exit code tells the state of protection; what it printed counts here.
    status=$(timeout 10 "$FTD_BIN_DIR/ftctl" --socket "$run_dir/$1/ctl.sock" status --json 2>/dev/null) || true
    [[ -n ${status:-} ]] && jq -r "$2" <<<"$status"
}

# host_is HOST ROLE STATE...: whether it says so. Any role: `-`; any state: none given.
host_is() {
    local host=$1 want_role=$2 role state
    shift 2
    read -r role state < <(host_status "$host" '"\(.role) \(.state)"') || return 1
    [[ $want_role == - || $role == "$want_role" ]] || return 1
    (($# == 0)) || [[ " $* " == *" $state "* ]]
}

# pair_primary: the host that says it is the primary and runs the VM; fails when none or both do.
pair_primary() {
    local host found=''
    for host in a b; do
        if host_is "$host" primary protected degraded solo resyncing; then
            [[ -z $found ]] || return 1
            found=$host
        fi
    done
    [[ -n $found ]] && echo "$found"
}

pair_is_protected() {
    local primary
    primary=$(pair_primary) && host_is "$primary" primary protected && host_is "${pair_peer[$primary]}" backup
}

# pair_wait_protected SECONDS
pair_wait_protected() { wait_until "$1" pair_is_protected; }

# pair_up: a new pair, protected.
pair_up() {
    pair_prepare
    host_start a
    wait_until "${1:-300}" host_is a primary solo || { pair_explain; return 1; }
    host_start b
    pair_wait_protected "${1:-300}" || { pair_explain; return 1; }
}

# pair_heal: heals the link and the arbiter, starts what has been killed, and waits for protection. The VM
# goes on meanwhile.
pair_heal() {
    local host
    heal_replication
    arbiter_heal
    for host in a b; do
        host_thaw "$host" || true
    done
    wait_until "${1:-300}" pair_is_healed || { pair_explain; return 1; }
}

pair_is_healed() {
    local host
    for host in a b; do
        # What ended for another reason shall be seen.
        case $(host_exit_code "$host") in
        137) host_start "$host" ;;
        esac
    done
    pair_is_protected
}

# pair_down: ends both, the backup first.
pair_down() {
    local host primary=a
    primary=$(pair_primary) || primary=a
    for host in "${pair_peer[$primary]}" "$primary"; do
        host_stop "$host" || true
    done
}

# pair_explain: why it is not as it should be, from the daemons' own words.
pair_explain() {
    local host
    for host in a b; do
        if host_is_up "$host"; then
            say_warn "host $host:" \
                "$(host_status "$host" '"\(.role) \(.state) generation \(.generation) \(.detail // "")"')"
        else
            say_warn "host $host: ftd ended with $(host_exit_code "$host")"
        fi
        tail -n 3 "$run_dir/$host/ftd.log" 2>/dev/null | sed 's/^/    /' >&2
    done
}
