# Whole hosts: a small Debian under a systemd of its own, in a container with its own network. Sourced by scripts that
# make a run directory.
[[ -z ${container_sourced:-} ]] || return 0
container_sourced=1
source "${BASH_SOURCE[0]%/*}/debian-tree.sh"

declare -A container_leader container_nspawn

container_skip() { say_error "SKIPPED ${0##*/}: $*" && exit 77; }

# container_prepare PACKAGE...: what a host needs for containers, and container_tree, what is in them besides systemd.
container_prepare() {
    ((EUID == 0)) || container_skip 'needs root'
    [[ -e /dev/net/tun ]] || container_skip 'no /dev/net/tun'
    setup_need systemd
    container_tree=$(debian_tree systemd systemd-sysv dbus iproute2 "$@")
    on_exit containers_end
}

# container_boot NAME OPTION...: boots one, with further options of systemd-nspawn; returns when its systemd is up. Its
# console is $run_dir/NAME.console. What it writes is gone with it.
container_boot() {
    local name=$1 console=$run_dir/$1.console device node
    local -a scope=(--machine="ftd-$1-$$") devices=() binds=()
    shift
    # Nodes of its own: whom they belong to is said by container_devices, and this host's stay as they are.
    mkdir -p "$run_dir/$name.dev"
    for device in /dev/kvm /dev/net/tun /dev/userfaultfd; do
        [[ -e $device ]] || continue
        node=$run_dir/$name.dev/${device##*/}
        mknod -m 600 "$node" c "$((16#$(stat -c %t "$device")))" "$((16#$(stat -c %T "$device")))"
        devices+=("$device")
        binds+=(--bind="$node:$device")
    done
    # Without a systemd on this host there is nobody to register with, and no unit to set properties on.
    if [[ -d /run/systemd/system ]]; then
        for device in "${devices[@]}"; do scope+=(--property=DeviceAllow="$device rw"); done
    else
        scope+=(--register=no --keep-unit)
    fi
    systemd-nspawn --quiet --boot --directory="$container_tree" --volatile=overlay "${scope[@]}" --private-network \
        --console=pipe "${binds[@]}" "$@" >"$console" 2>&1 </dev/null &
    container_nspawn[$name]=$! container_leader[$name]='' container_state=silent
    if ! wait_until 60 container_is_up "$name"; then
        tail -n 20 "$console" >&2
        container_skip "systemd in container $name does not come up (above): $container_state"
    fi
    say "systemd in container $name is $container_state"
}

# container_devices NAME: what udev does on a host, where there is one: its own rules and the package's. The group kvm
# must be there.
container_devices() {
    local device
    inside "$1" chmod 666 /dev/net/tun
    for device in kvm userfaultfd; do
        [[ ! -e /dev/$device ]] ||
            inside "$1" sh -c "chgrp kvm /dev/$device && chmod 660 /dev/$device"
    done
}

# container_process NAME PID FIELD: a line of the process's status in the container.
container_process() { inside "$1" sed -n "s/^$3:[[:space:]]*//p" "/proc/$2/status"; }

# container_exposure NAME UNIT: what systemd-analyze says of the unit's exposure, from 0 to 10.
container_exposure() {
    inside "$1" systemd-analyze security "$2" --no-pager 2>/dev/null |
        sed -n 's/.*Overall exposure level for [^:]*: *\([0-9.]*\).*/\1/p'
}

# at_most FIGURE FIGURE
at_most() { awk -v is="$1" -v most="$2" 'BEGIN { exit !(is != "" && is + 0 <= most + 0) }'; }

container_is_up() {
    [[ -n ${container_leader[$1]} ]] ||
        container_leader[$1]=$(container_leader_of "${container_nspawn[$1]}" | head -n 1)
    [[ -n ${container_leader[$1]} ]] || return 1
    container_state=$(inside "$1" systemctl is-system-running 2>/dev/null) || true
    [[ $container_state == running || $container_state == degraded ]]
}

# The container's PID 1: the child of nspawn, or of its helper.
container_leader_of() {
    local child
    cat "/proc/$1/task/"*/children 2>/dev/null | tr ' ' '\n' | while read -r child; do
        [[ -n $child ]] || continue
        if [[ $(awk '/^NSpid:/ {print $NF}' "/proc/$child/status" 2>/dev/null) == 1 ]]; then
            echo "$child"
        else
            container_leader_of "$child"
        fi
    done
}

# inside NAME COMMAND...: runs it in there.
inside() {
    local name=$1
    shift
    nsenter --target "${container_leader[$name]}" --mount --uts --ipc --net --pid --cgroup -- "$@"
}

# The last words of each, for a failure.
container_explain() {
    local name
    for name in "${!container_nspawn[@]}"; do
        say_warn "the journal of $name"
        inside "$name" journalctl --no-pager -n 40 >&2 2>/dev/null || tail -n 40 "$run_dir/$name.console" >&2
    done
}

# Ends them all. SIGTERM asks a container to power off; it is given a while.
containers_end() {
    local pid
    for pid in "${container_nspawn[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${container_nspawn[@]}"; do
        wait_until 10 container_has_ended "$pid" || kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}
container_has_ended() { ! kill -0 "$1" 2>/dev/null; }
