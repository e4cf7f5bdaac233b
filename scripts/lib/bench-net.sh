# The bench's section on the network card: bulk TCP into a Linux guest and out of it, and a byte that goes in and comes
# back; unprotected, protected, and on QEMU. The guest is the small Linux (scripts/guest/service/bulk.rs). Sourced.
[[ -z ${bench_net_sourced:-} ]] || return 0
bench_net_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"
source "${BASH_SOURCE[0]%/*}/setup.sh"

bench_net_port=7780

# bench_net_way WAY MS: the figures of one way, on stdout.
bench_net_way() {
    in_ns c "$FTD_BIN_DIR/ft-bench" net --addr "$net_vm_address:$bench_net_port" --way "$1" --ms "$2"
}
bench_net_answers() { bench_net_way turn 50 >/dev/null 2>&1; }

# bench_net_on ON: every way.
bench_net_on() {
    local way answer
    for way in in out turn; do
        say_passing "$1: $way"
        answer=$(bench_net_way "$way" "$bench_net_ms" 2>"$run_dir/net.log") ||
            { say_warn "$1: $way: $(tail -n 1 "$run_dir/net.log")" && continue; }
        jq -c --arg on "$1" '{$on} + .' <<<"$answer" | bench_add net-way
    done
}

# bench_net_boot: host a runs the VM alone, and its service answers.
bench_net_boot() {
    pair_prepare
    host_start a
    wait_until "$bench_ready_s" host_is a primary solo || { pair_explain && die 'host a did not start'; }
    wait_until "$bench_ready_s" bench_net_answers || die 'the service in the VM does not answer'
}

# bench_net_protected ON: the same once host b is its backup.
bench_net_protected() {
    host_start b
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected'; }
    bench_net_on "$1"
    pair_down
}

# bench_net_qemu: the same on QEMU, and in bench_net_beside what it was, or why it was not there.
bench_net_qemu() {
    [[ $bench_quick == 1 ]] || setup_need qemu
    if ! command -v qemu-system-x86_64 >/dev/null; then
        bench_net_missing='qemu-system-x86_64 is not installed'
    elif bench_qemu_start bench_net_answers; then
        bench_net_beside="$(bench_qemu) (${FT_ENGINE/soft/tcg}), virtio-net on virtio-mmio, without vhost"
        bench_net_on qemu
    else
        bench_net_missing="QEMU did not run the guest: $(tail -n 1 "$run_dir/qemu.log" | tr -cd '[:print:]')"
    fi
    end_spawned qemu KILL
}

bench_net() {
    local FT_GUEST=linux FT_LINUX_DIR='' FT_MODE=checkpoint FT_ENGINE=${FT_ENGINE:-} FT_EPOCH_MS=5
    local FT_REPLICATION=$bench_patient lacks bench_net_beside='' bench_net_missing='' round
    FT_ENGINE=$(bench_linux_engine)
    bench_title "A guest's network card, on $FT_ENGINE: unprotected, protected, and on QEMU"
    lacks=$(pair_can_run) || { say_error "SKIPPED bench, net: $lacks" && return 0; }
    say_passing 'the Linux guest: building, if it is not there'
    FT_LINUX_DIR=$("$FTD_ROOT/scripts/guest/build" 2>"$run_dir/guest.log") ||
        { say_error "SKIPPED bench, net: no guest: $(tail -n 1 "$run_dir/guest.log")" && return 0; }
    # In turn: what else the machine does falls on all alike.
    for ((round = 1; round <= bench_net_rounds; round++)); do
        FT_MODE=checkpoint
        bench_net_boot
        bench_net_on unprotected
        bench_net_protected checkpoint
        if [[ $FT_ENGINE == soft ]]; then
            FT_MODE=replay
            bench_net_boot
            bench_net_protected replay
        fi
        bench_net_qemu
    done
    jq -nc --arg engine "$FT_ENGINE" --arg beside "$bench_net_beside" --arg missing "$bench_net_missing" \
        --argjson ms "$bench_net_ms" --argjson rounds "$bench_net_rounds" '
        def there: select(. != "") // null;
        {$engine, qemu: ($beside | there), qemu_missing: ($missing | there), $rounds, $ms, epoch_ms: 5}' |
        bench_add net-setup
    # Of each figure the median of the rounds.
    jq -sc '
        def median: sort | .[length / 2 | floor];
        def turns: map(.turn_us | select(.)) | select(length > 0)
            | {turn_us: {p50: map(.p50) | median, p99: map(.p99) | median}};
        [.[] | select(.section == "net-way")] | group_by(.way)[]
        | {way: .[0].way} + (group_by(.on) | map({key: .[0].on,
            value: ({mib_per_s: map(.mib_per_s) | median, rounds: length} + ([turns][0] // {}))}) | from_entries)
        ' "$bench_results" | bench_add net
    bench_table net 'TCP over one connection|QEMU|unprotected|protected|protected, replay mode' '
        def name: {in: "into the guest, MiB/s", out: "out of the guest, MiB/s",
                   turn: "a byte and its answer, p50 / p99 us"}[.];
        def cell: if . == null then "-" elif .turn_us then (.turn_us | spread) else .mib_per_s | n(1) end;
        [(.way | name), (.qemu, .unprotected, .checkpoint, .replay | cell)]'
    say "by the client's clock, the median of $bench_net_rounds rounds of $((bench_net_ms / 1000)) s, on one bridge;" \
        "both hosts and the client share this machine's processors. Engine: $FT_ENGINE."
    say 'Protected: epochs of 5 ms; what leaves the guest waits for its checkpoint.'
    if [[ -n $bench_net_beside ]]; then
        say "Beside: $bench_net_beside, the same guest on the same bridge."
    else
        say_error "QEMU was NOT MEASURED: $bench_net_missing"
    fi
    [[ $FT_ENGINE != soft || $(host_kvm) == hardware ]] ||
        say "Not on KVM: here it emulates the guest's kernel, or is not there (FT_ENGINE=kvm insists)."
}
