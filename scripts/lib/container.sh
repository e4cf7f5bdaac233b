# A small Debian under a real systemd, in a container of its own network. Sourced by tests that need a whole host.
# The caller defines skip, fail and say.

container_suite=bookworm
container_packages=systemd,systemd-sysv,dbus,iproute2,iputils-ping,netcat-openbsd
container_cache=${XDG_CACHE_HOME:-$HOME/.cache}/ftd
container_tree=$container_cache/systemd-tree-$(printf '%s' "2 $container_suite $container_packages" | sha256sum | cut -c1-12)
declare -A container_leader container_nspawn container_console

# What a host needs for this; installs tools, and makes the Debian tree once.
container_prepare() {
    local tool device making
    [ "$(id -u)" = 0 ] || skip "needs root"
    for tool in debootstrap:debootstrap systemd-nspawn:systemd-container; do
        command -v "${tool%%:*}" >/dev/null && continue
        apt-get install -y --no-install-recommends "${tool##*:}" >/dev/null 2>&1 || skip "${tool##*:} cannot be installed"
    done
    [ -e /dev/net/tun ] || skip "no /dev/net/tun"
    [ ! -d "$container_tree" ] || return 0
    say "making a small Debian in $container_tree (once)"
    mkdir -p "$container_cache"
    making=$(mktemp -d "$container_cache/systemd-tree-making.XXXXXX")
    debootstrap --variant=minbase --include=$container_packages $container_suite "$making" >"$making.log" 2>&1 ||
        { tail -n 5 "$making.log" >&2; rm -rf "$making" "$making.log"; skip "debootstrap failed (above)"; }
    rm -rf "$making.log" "$making/var/cache/apt/archives"/*.deb
    # Another run may have been faster.
    mv -T "$making" "$container_tree" 2>/dev/null || rm -rf "$making"
}

# container_boot NAME CONSOLE OPTION...: boots one, with further options of systemd-nspawn; returns when its systemd is up.
# CONSOLE is the file that gets what it says. What it writes is gone with it.
container_boot() {
    local name=$1 console=$2 device state=''
    local -a scope=() devices=()
    shift 2
    for device in /dev/kvm /dev/net/tun /dev/userfaultfd; do
        [ ! -e "$device" ] || devices+=("$device")
    done
    scope=(--machine="ftd-$name-$$")
    # Without a systemd on this host there is nobody to register with, and no unit to set properties on.
    if [ -d /run/systemd/system ]; then
        for device in "${devices[@]}"; do scope+=(--property=DeviceAllow="$device rw"); done
    else
        scope+=(--register=no --keep-unit)
    fi
    container_console[$name]=$console
    systemd-nspawn --quiet --boot --directory="$container_tree" --volatile=overlay "${scope[@]}" --private-network \
        --console=pipe "${devices[@]/#/--bind=}" "$@" >"$console" 2>&1 </dev/null &
    container_nspawn[$name]=$!
    container_leader[$name]=
    for _ in $(seq 600); do
        kill -0 "${container_nspawn[$name]}" 2>/dev/null ||
            { tail -n 5 "$console" >&2; skip "systemd-nspawn does not boot here (above)"; }
        [ -n "${container_leader[$name]}" ] ||
            container_leader[$name]=$(container_leader_of "${container_nspawn[$name]}" | head -n 1)
        if [ -n "${container_leader[$name]}" ]; then
            state=$(inside "$name" systemctl is-system-running 2>/dev/null || true)
            case $state in running | degraded) break ;; esac
        fi
        sleep 0.1
    done
    case $state in
    running | degraded) say "systemd in container $name is $state" ;;
    *) tail -n 20 "$console" >&2; skip "systemd in container $name did not come up (above): ${state:-silent}" ;;
    esac
}

# The container's PID 1: the child of nspawn, or of its helper.
container_leader_of() {
    local child
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
        if [ "$(awk '/^NSpid:/ {print $NF}' "/proc/$child/status" 2>/dev/null)" = 1 ]; then echo "$child"; return; fi
        container_leader_of "$child"
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
        echo "-- $name" >&2
        inside "$name" journalctl --no-pager -n 30 >&2 2>/dev/null || tail -n 40 "${container_console[$name]}" >&2
    done
}

# Ends them all. SIGTERM asks a container to power off; it is given a while.
containers_end() {
    local pid
    for pid in "${container_nspawn[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${container_nspawn[@]}"; do
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

# until_true TENTHS COMMAND...: tries it every tenth of a second.
until_true() {
    local left=$1
    shift
    until "$@"; do
        ((left-- > 0)) || return 1
        sleep 0.1
    done
}
