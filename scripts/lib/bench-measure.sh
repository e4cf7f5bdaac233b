# How scripts/bench measures: its results and tables, the machine's other load, and the measurements that several
# sections share: the client, the guest's speed, kills. Figures are JSON lines in $bench_results. Sourced.
[[ -z ${bench_measure_sourced:-} ]] || return 0
bench_measure_sourced=1
source "${BASH_SOURCE[0]%/*}/pair.sh"

bench_ready_s=${FT_PATIENCE_S:-300}

# bench_begin QUICK: lengths of the measurements.
bench_begin() {
    bench_results=$run_dir/results.jsonl
    : >"$bench_results"
    bench_page_ms=2500 bench_epoch_s=8 bench_traffic_s=6 bench_kills=30 bench_rounds=5
    bench_spin_ms=2000 bench_codec_ms=1500
    bench_quick=$1 bench_emulations=3 bench_golive_kills=20
    bench_disk_ms=5000 bench_disk_mib=1024 bench_journal_mib=256 bench_disk_depths=(1 8)
    bench_return_gib=${bench_return_gib:-1} bench_return_s=$((bench_ready_s + 20 * ${bench_return_gib:-1}))
    bench_return_parts=(0 1 10 100) bench_net_ms=3000 bench_net_rounds=5
    if [[ $1 == 1 ]]; then
        bench_page_ms=400 bench_epoch_s=3 bench_traffic_s=3 bench_kills=5 bench_rounds=3
        bench_spin_ms=1000 bench_codec_ms=300
        bench_emulations=1 bench_golive_kills=5
        bench_disk_ms=500 bench_disk_mib=64 bench_journal_mib=64 bench_disk_depths=(8)
        bench_return_parts=(0 10) bench_net_ms=1000 bench_net_rounds=1
    fi
    # What else the machine does, before anything is measured: it takes its part of every figure.
    bench_ticks && sleep 1
    bench_busy_before_pct=$(bench_ticks_since busy)
    bench_ticks
    say "$(nproc) processors ($(bench_processor)), shared by both hosts and the client"
    ((bench_busy_before_pct < 10)) ||
        say_warn "other work keeps them $bench_busy_before_pct % busy: every figure suffers, and slow-downs mean little"
}

bench_processor() { sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1; }

# bench_qemu: its version, if it is here.
bench_qemu() {
    ! command -v qemu-system-x86_64 >/dev/null ||
        qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/QEMU \1/p'
}

# bench_linux_engine: what executes the guest. Where KVM emulates the guest's kernel, the figures would be those of that
# emulation; FT_ENGINE=kvm measures them all the same.
bench_linux_engine() {
    if [[ -n ${FT_ENGINE:-} ]]; then
        echo "$FT_ENGINE"
    elif [[ $(host_kvm) == hardware ]]; then
        echo kvm
    else
        echo soft
    fi
}

# bench_qemu_start ANSWERS ARGUMENT...: QEMU with the Linux guest of the pair, on host a's TAP; whether it gets so
# far that ANSWERS says yes.
bench_qemu_start() {
    local answers=$1
    local -a processor=(-accel kvm -cpu 'host,-arch-capabilities')
    local clock=''
    shift
    if [[ $FT_ENGINE == soft ]]; then
        processor=(-accel 'tcg,thread=single')
        # The host's counter is the guest's, which has no other clock, and nothing to measure it by.
        clock=" tsc_early_khz=$("$FTD_BIN_DIR/ft-bench" tsc | jq .khz)"
    fi
    rm -f "$run_dir/qemu.log"
    spawn qemu ip netns exec "$(net_ns a)" qemu-system-x86_64 -M microvm,acpi=off,rtc=off "${processor[@]}" -smp 1 \
        -m "$(pair_memory_mib)" -no-user-config -nodefaults -display none -serial stdio -no-reboot \
        -kernel "$FT_LINUX_DIR/kernel" -initrd "$FT_LINUX_DIR/initramfs.cpio" -append "$(pair_linux_cmdline)$clock" \
        -netdev tap,id=net,ifname=vm,script=no,downscript=no,vhost=off \
        -device "virtio-net-device,netdev=net,mac=$pair_mac" "$@"
    wait_until "$bench_ready_s" bench_qemu_settled "$answers" || return 1
    is_running qemu
}
bench_qemu_settled() { has_ended qemu || "$1"; }

# bench_ticks: from now on counts bench_ticks_since; that tells how many percent of the processors' time were `busy`, or
# `stolen` by this machine's own host.
bench_ticks() { read -r -a bench_ticks_began </proc/stat; }
bench_ticks_since() {
    local -a now
    local total=0 idle stolen index
    read -r -a now </proc/stat
    # cpu user nice system idle iowait irq softirq steal
    for index in {1..8}; do
        total=$((total + now[index] - bench_ticks_began[index]))
    done
    idle=$((now[4] + now[5] - bench_ticks_began[4] - bench_ticks_began[5]))
    stolen=$((now[8] - bench_ticks_began[8]))
    case $1 in
    busy) echo $(((total - idle) * 100 / (total + 1))) ;;
    stolen) echo $((stolen * 100 / (total + 1))) ;;
    esac
}

# bench_title TEXT: begins a section; the load average that it begins under goes beside its figures.
bench_title() {
    read -r bench_load _ </proc/loadavg
    say ''
    say_at "${say_bold}$1${say_off}  (load average $bench_load)"
}

# bench_add SECTION: adds the objects on stdin to the results.
bench_add() {
    jq -c --arg section "$1" --argjson load "$bench_load" '{$section, load_average: $load} + .' >>"$bench_results"
}

# bench_table SECTION HEAD FILTER: the section's table. Cells of the head are separated by `|`, the filter makes an
# array of an object.
bench_table() {
    {
        tr '|' '\t' <<<"$2"
        jq -r --arg section "$1" "
            def n(\$digits): (. // 0) * pow(10; \$digits) | round / pow(10; \$digits);
            def spread: \"\(.p50 | n(0)) / \(.p99 | n(0))\";
            select(.section == \$section) | $3 | @tsv" "$bench_results"
    } | say_table
}

# What the daemon has counted: bench_counters HOST sets bench_count[NAME] and bench_count_us.
declare -A bench_count
bench_count_us=0
bench_counters() {
    local name value
    now_us bench_count_us
    while read -r name value; do
        name=${name%%\{*}
        bench_count[${name#ftd_}]=$value
    done < <(ctl "$1" metrics | grep -v '^#')
}

# call REQUEST...: one request to the guest's service, its answer on stdout.
call() { in_ns c "$FTD_BIN_DIR/ft-client" call --timeout-s 120 --addr "$net_vm_address:$pair_client_port" "$@"; }

# bench_client SECONDS: one connection, one request after the other; its summary on stdout.
bench_client() {
    in_ns c "$FTD_BIN_DIR/ft-client" --json --duration-s "$1" --addr "$net_vm_address:$pair_client_port" ||
        say_warn "the client saw wrong answers or lost its connection"
}

# What is measured in a running pair is not to end because the machine stood still for a moment.
bench_patient='failure_timeout_ms = 5000'

# bench_pair_up EPOCH_MS [LINES]: a protected pair whose service answers; further lines for [replication].
bench_pair_up() {
    FT_EPOCH_MS=$1 FT_REPLICATION=${2:-} pair_up "$bench_ready_s" || die 'the pair did not get ready'
    bench_wait_service
}

bench_service_answers() { call PING >/dev/null 2>&1; }
# A guest that boots takes its time.
bench_wait_service() {
    wait_until "$bench_ready_s" bench_service_answers || die 'the service in the VM does not answer'
}

# The figures of a protected pair over a time with a client: bench_protected SECONDS, an object on stdout.
bench_protected() {
    local primary client status checkpoints us
    primary=$(pair_primary) || die 'no primary'
    bench_counters "$primary"
    checkpoints=${bench_count[checkpoints_total]} us=$bench_count_us
    client=$(bench_client "$1")
    bench_counters "$primary"
    status=$(host_status "$primary" .)
    jq -nc --argjson client "$client" --argjson status "$status" \
        --argjson checkpoints $((bench_count[checkpoints_total] - checkpoints)) --argjson us $((bench_count_us - us)) '
        {checkpoints_per_s: ($checkpoints * 1e7 / $us | round / 10), ops: $client.ops,
         ops_per_s: ($client.ops * 1e3 / $client.duration_ms | round),
         rtt_us: $client.rtt_us, hold_us: $status.hold_us, pause_us: $status.pause_us, parts: $status.parts}'
}

# bench_kill SECTION NUMBER: kills the primary, waits until its peer runs the VM, and brings protection back.
bench_kill() {
    local victim heir pid kill_us lag_us
    # On a busy machine they may have lost each other again meanwhile; without a backup nobody can take over.
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected any more'; }
    victim=$(pair_primary) || die 'no primary'
    lag_us=$(host_status "$victim" '.lag_us // 0')
    heir=${pair_peer[$victim]}
    pid=$(spawned_pid "$victim/ftd")
    is_running "$victim/ftd" || die "$victim's daemon has ended"
    now_us kill_us
    kill -KILL "$pid"
    wait_until "$bench_ready_s" host_is "$heir" primary solo || { pair_explain && die 'nobody took over'; }
    host_status "$heir" .take_over |
        jq -c --argjson kill_us "$kill_us" --argjson kill "$2" --argjson lag_us "${lag_us:-0}" '
        def ms: . / 100 | round / 10;
        {$kill, $kill_us, takeover_ms: (.running_unix_us - $kill_us | ms),
         notice_ms: (if .total_us > 0 then .running_unix_us - .total_us - $kill_us | ms else null end),
         decide_ms: (if .total_us > 0 then .total_us - .resume_us | ms else null end),
         resume_ms: (.resume_us | ms), pending_pages,
         lag_ms: ($lag_us | ms)}' | bench_add "$1"
    wait_until "$bench_ready_s" has_ended "$victim/ftd"
    host_start "$victim"
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected again'; }
    sleep 0.3
}

# bench_kills_of SECTION COUNT: a pair under client load whose primary is killed so many times; its table.
bench_kills_of() {
    local section=$1 count=$2 kill
    rm -f "$run_dir/client.stop" "$run_dir/client.log"
    bench_pair_up 5
    spawn client ip netns exec "$(net_ns c)" "$FTD_BIN_DIR/ft-client" --json --progress \
        --addr "$net_vm_address:$pair_client_port" --stop-file "$run_dir/client.stop"
    sleep 0.5
    for ((kill = 1; kill <= count; kill++)); do
        say_passing "kill $kill of $count"
        bench_kill "$section-kill" "$kill"
    done
    touch "$run_dir/client.stop"
    wait_until "$bench_ready_s" has_ended client || end_spawned client KILL
    pair_down
    # The longest silence that the client told of in the second after each kill.
    jq -sc --slurpfile told "$run_dir/client.log" --arg section "$section" '
        def at($part): sort | .[([length * $part | ceil, 1] | max) - 1];
        def spread: map(select(. != null)) | {min: min, p50: at(0.5), p99: at(0.99), max: max};
        [.[] | select(.section == $section + "-kill")] as $kills
        | {kills: ($kills | length),
           takeover_ms: ($kills | map(.takeover_ms) | spread), notice_ms: ($kills | map(.notice_ms) | spread),
           decide_ms: ($kills | map(.decide_ms) | spread), resume_ms: ($kills | map(.resume_ms) | spread),
           pending_pages: ($kills | map(.pending_pages) | spread), lag_ms: ($kills | map(.lag_ms) | spread),
           client_gap_ms: ([$kills[] | (.kill_us / 1000) as $ms
               | [$told[] | select(.unix_ms and .unix_ms >= $ms and .unix_ms < $ms + 1000).max_gap_ms] | max] | spread),
           connection_survived: ($told[-1].connection_survived // false), acked_lost: $told[-1].acked_lost}' \
        "$bench_results" | bench_add "$section"
    bench_table "$section" 'ms|min|median|p99|max' '
        def row($name): [$name, (.min, .p50, .p99, .max | n(1))];
        (.takeover_ms | row("from SIGKILL until the guest runs")), (.notice_ms | row("  until the backup notices")),
        (.decide_ms | row("  until it has won the arbitration")), (.resume_ms | row("  until the guest runs")),
        (.client_gap_ms | row("longest silence for the client")),
        (if .section == "golive" then .lag_ms | row("the backup was behind, just before")
         else .pending_pages | row("pages not yet applied") end)'
    jq -r --arg section "$section" 'select(.section == $section) | "the client'\''s connection " +
        (if .connection_survived then "survived all of them" else "was LOST" end) +
        ", acknowledged writes lost: \(.acked_lost)"' "$bench_results" | while IFS= read -r kill; do say "$kill"; done
}

# bench_vcpu_ns HOST: processor time that its first vCPU's thread has had.
bench_vcpu_ns() {
    local thread ns
    for thread in /proc/"$(spawned_pid "$1/ftd")"/task/*; do
        [[ $(<"$thread/comm") == vcpu0 ]] || continue
        read -r ns _ <"$thread/schedstat" && echo "$ns" && return 0
    done
    die "host $1 runs no vCPU"
}

# bench_guest_speed SECTION LABEL: what the guest gets done: computing, writing memory, serving. Medians of the rounds.
bench_guest_speed() {
    local round primary iterations began ended vcpu_began vcpu_ended before after client
    local -a spins=() cpu_spins=() loads=()
    primary=$(pair_primary) || die 'no primary'
    for ((round = 0; round < bench_rounds; round++)); do
        say_passing "$2: computing"
        # By this host's clock: the guest's own may stand still with it.
        vcpu_began=$(bench_vcpu_ns "$primary")
        now_us began
        read -r _ iterations _ < <(call SPIN "$bench_spin_ms") || die "the guest does not compute ($2)"
        now_us ended
        vcpu_ended=$(bench_vcpu_ns "$primary")
        spins+=($((iterations * 1000 / (ended - began))))
        cpu_spins+=($((iterations * 1000 / ((vcpu_ended - vcpu_began) / 1000 + 1))))
    done
    call LOAD 10000000 1000 count >/dev/null
    for ((round = 0; round < bench_rounds; round++)); do
        say_passing "$2: writing memory"
        before=$(call STATS)
        sleep 0.7
        after=$(call STATS)
        loads+=("$(bench_load_rate "$before" "$after")")
    done
    call LOAD 0 0 >/dev/null
    say_passing "$2: serving"
    client=$(bench_client "$((bench_rounds + 1))")
    jq -nc --arg what "$2" --argjson client "$client" --argjson spins "[$(IFS=, && echo "${spins[*]}")]" \
        --argjson cpu_spins "[$(IFS=, && echo "${cpu_spins[*]}")]" --argjson loads "[$(IFS=, && echo "${loads[*]}")]" '
        def median: sort | .[length / 2 | floor];
        {$what, iterations_per_ms: ($spins | median), iterations_per_cpu_ms: ($cpu_spins | median),
         pages_per_s: ($loads | median),
         ops_per_s: ($client.ops * 1e3 / $client.duration_ms | round), rtt_us: $client.rtt_us}' | bench_add "$1"
}

# bench_load_rate BEFORE AFTER: pages written a second between two STATS answers, by the guest's clock.
bench_load_rate() {
    printf '%s\n%s\n' "$1" "$2" | sed -E 's/.* uptime_ns=([0-9]+).* load_pages=([0-9]+).*/\1 \2/' | {
        local ns1 ns2 pages1 pages2
        read -r ns1 pages1 && read -r ns2 pages2
        echo $(((pages2 - pages1) * 1000000 / ((ns2 - ns1) / 1000)))
    }
}
