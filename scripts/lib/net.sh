# The test network of one run, in namespaces of its own: nothing on the machine's own network is touched.
# Sourced.
#
#      host a                   wire w                    host b
#   vm ── lan ── out ──── to-a ── lan ── to-b ──── out ── lan ── vm        vm: the VM's TAP
#   repl 10.78.0.1 ══════════════════════════════════════ repl 10.78.0.2   the replication link
#                                 to-c
#                                  │
#                     client c    eth0 10.77.0.100/24                      the VM is 10.77.0.2
#
# The replication link is a cable of its own, so it can be cut while the client's side goes on. An arbiter that is no
# directory (FT_ARBITER) has a machine of its own, with a cable to each host:
#
#   host a   arb 10.79.0.1 ══ to-a ── lan ── to-b ══ 10.79.0.2 arb   host b
#                                     s 10.79.0.3                    and t, another machine of the same address
[[ -z ${net_sourced:-} ]] || return 0
net_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"

net_prefix=ft$$
net_vm_address=10.77.0.2
net_client_address=10.77.0.100
declare -A net_repl_address=([a]=10.78.0.1 [b]=10.78.0.2)
net_arbiter_address=10.79.0.3
declare -A net_arb_address=([a]=10.79.0.1 [b]=10.79.0.2)

# net_ns PLACE: the namespace's name; PLACE is a, b, c, w, s or t.
net_ns() { echo "$net_prefix-$1"; }

# in_ns PLACE COMMAND ARGUMENT...: runs it there, in a mount namespace of its own (ip-netns(8)).
in_ns() {
    local place=$1
    shift
    ip netns exec "$(net_ns "$place")" "$@"
}

# net_preflight: says everything that is missing; fails if anything is.
net_preflight() {
    local tool missing=0
    ((EUID == 0)) || { say_error "must be root, to make network namespaces"; missing=1; }
    for tool in ip tc nft sysctl nsenter jq; do
        command -v "$tool" >/dev/null || { say_error "$tool is missing (see scripts/lib/setup.sh)"; missing=1; }
    done
    [[ -c /dev/net/tun ]] || { say_error "/dev/net/tun is missing: load the kernel's tun module"; missing=1; }
    ((missing == 0)) || return 1
    if ! { ip netns add "$net_prefix-try" && ip netns del "$net_prefix-try"; } 2>/dev/null; then
        say_error "network namespaces cannot be made here"
        return 1
    fi
}

# net_place PLACE...: makes them.
net_place() {
    local place
    for place in "$@"; do
        ip netns add "$(net_ns "$place")"
        in_ns "$place" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n "$(net_ns "$place")" link set dev lo up
    done
}

net_up() {
    local place host
    on_exit net_down
    net_place a b c w
    for place in w a b; do
        ip -n "$(net_ns $place)" link add name lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0
        ip -n "$(net_ns $place)" link set dev lan up
    done
    for host in a b; do
        ip link add name out netns "$(net_ns $host)" type veth peer name to-$host netns "$(net_ns w)"
        ip -n "$(net_ns $host)" tuntap add dev vm mode tap
        ip -n "$(net_ns $host)" link set dev out master lan up
        ip -n "$(net_ns $host)" link set dev vm master lan up
        ip -n "$(net_ns w)" link set dev to-$host master lan up
    done
    ip link add name repl netns "$(net_ns a)" type veth peer name repl netns "$(net_ns b)"
    for host in a b; do
        ip -n "$(net_ns $host)" address add "${net_repl_address[$host]}/24" dev repl
        ip -n "$(net_ns $host)" link set dev repl up
    done
    ip link add name eth0 netns "$(net_ns c)" type veth peer name to-c netns "$(net_ns w)"
    ip -n "$(net_ns w)" link set dev to-c master lan up
    ip -n "$(net_ns c)" address add "$net_client_address/24" dev eth0
    ip -n "$(net_ns c)" link set dev eth0 up
    [[ ${FT_ARBITER:-file} == file ]] || net_up_arbiter
}

# The machines of an arbiter, and the cables to the first of them.
net_up_arbiter() {
    local host
    net_place s t
    ip -n "$(net_ns s)" link add name lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip -n "$(net_ns s)" address add "$net_arbiter_address/24" dev lan
    ip -n "$(net_ns s)" link set dev lan up
    for host in a b; do
        ip link add name arb netns "$(net_ns $host)" type veth peer name to-$host netns "$(net_ns s)"
        ip -n "$(net_ns s)" link set dev to-$host master lan up
        ip -n "$(net_ns $host)" address add "${net_arb_address[$host]}/24" dev arb
        ip -n "$(net_ns $host)" link set dev arb up
    done
}

# net_mislead HOST: its cable to the arbiter leads to the other machine; net_lead_back ends it.
net_mislead() {
    ip -n "$(net_ns s)" link set dev "to-$1" netns "$(net_ns t)"
    ip -n "$(net_ns t)" address add "$net_arbiter_address/24" dev "to-$1"
    ip -n "$(net_ns t)" link set dev "to-$1" up
    ip -n "$(net_ns "$1")" neigh flush dev arb
}
net_lead_back() {
    ip -n "$(net_ns t)" link set dev "to-$1" netns "$(net_ns s)"
    ip -n "$(net_ns s)" link set dev "to-$1" master lan up
    ip -n "$(net_ns "$1")" neigh flush dev arb
}

# Removes the namespaces, and with them everything in them; may be called at any time, any number of times.
net_down() {
    local place
    for place in a b c w s t; do
        [[ ! -e /run/netns/$(net_ns $place) ]] || ip netns del "$(net_ns $place)"
    done
}

# net_drop PLACE INTERFACE: silently loses every packet to or from this interface; net_undrop ends it.
net_drop() {
    in_ns "$1" nft -f - <<EOF
table inet cut-$2 {
    chain in { type filter hook input priority -300; iifname "$2" drop; }
    chain out { type filter hook output priority -300; oifname "$2" drop; }
}
EOF
}
net_undrop() { in_ns "$1" nft delete table inet "cut-$2" 2>/dev/null || true; }

# cut_replication [drop|link]: lose every packet (the default), or take the link down.
cut_replication() {
    case ${1:-drop} in
    drop) net_drop a repl ;;
    link) ip -n "$(net_ns a)" link set dev repl down ;;
    *) die "cut_replication: \`$1\` is neither drop nor link" ;;
    esac
}

# deafen HOST [PERCENT]: it hears nothing from its peer on the replication link, or loses so much of what comes; what it
# sends arrives. Kernels without netem drop packets by chance as well. heal_replication ends it.
deafen() {
    local chance=''
    (($# < 2)) || chance="numgen random mod 100 < $2"
    in_ns "$1" nft -f - <<EOF
table inet deaf {
    chain in {
        type filter hook input priority -300
        iifname "repl" $chance drop
    }
}
EOF
}

# Ends a cut of any kind.
heal_replication() {
    local host
    net_undrop a repl
    for host in a b; do
        in_ns "$host" nft delete table inet deaf 2>/dev/null || true
    done
    ip -n "$(net_ns a)" link set dev repl up
}

# lose_host HOST: nothing gets through on any of its links, and none loses its carrier: to all others it is as if
# the host had stopped. find_host ends it.
lose_host() {
    ip -n "$(net_ns w)" link set dev "to-$1" nomaster
    net_drop "$1" repl
    net_drop "$1" arb
}
find_host() {
    net_undrop "$1" arb
    net_undrop "$1" repl
    ip -n "$(net_ns w)" link set dev "to-$1" master lan
}

cut_client() { net_drop c eth0; }
heal_client() { net_undrop c eth0; }

# set_replication_rate MBIT: slows the replication link, each way; clear_replication_rate ends it. A token bucket is
# the only shaper that kernels without netem have, so there is no plain delay.
set_replication_rate() {
    local host
    for host in a b; do
        tc -n "$(net_ns $host)" qdisc replace dev repl root tbf rate "${1}mbit" burst 64kb latency 100ms
    done
}
clear_replication_rate() {
    local host
    for host in a b; do
        tc -n "$(net_ns $host)" qdisc del dev repl root 2>/dev/null || true
    done
}
