# What security costs: two pairs, one without a part of it and one with it, in turn. Sourced by bench.sh.
[[ -z ${bench_security_sourced:-} ]] || return 0
bench_security_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"

# Guest memory that is filled with what no codec makes smaller, and the part of it that is.
bench_security_memory_mib=512 bench_security_pages=65536

# bench_security_cpu_ms: processor time of both daemons so far.
bench_security_cpu_ms() {
    local host
    for host in a b; do
        # The name of a program may have spaces; it ends with the last parenthesis.
        sed 's/.*) //' "/proc/$(spawned_pid "$host/ftd")/stat"
    done | awk -v tick="$(getconf CLK_TCK)" '{ ticks += $12 + $13 } END { printf "%d\n", ticks * 1000 / tick }'
}

# bench_security_round SECTION without|with: the figures of a pair, as one result.
bench_security_round() {
    local FT_MEMORY_MIB=$bench_security_memory_mib cpu_ms figures backup copy_us us
    bench_pair_up 5 "$bench_patient"
    cpu_ms=$(bench_security_cpu_ms)
    figures=$(bench_protected "$bench_epoch_s")
    cpu_ms=$(($(bench_security_cpu_ms) - cpu_ms))
    call LOAD $((bench_security_pages * 4)) "$bench_security_pages" random >/dev/null
    sleep 2
    call LOAD 0 0 >/dev/null
    backup=${pair_peer[$(pair_primary)]}
    end_spawned "$backup/ftd" KILL
    now_us us
    host_start "$backup"
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected again'; }
    now_us copy_us
    jq -c --arg pair "$2" --argjson copy_us $((copy_us - us)) --argjson cpu_ms "$cpu_ms" '
        {$pair, hold_us: .hold_us.p50, pause_us: .pause_us.p50, rtt_us: .rtt_us.p50, checkpoints_per_s,
         cpu_us: ($cpu_ms * 1000 / (.checkpoints_per_s * $seconds) | round), copy_ms: ($copy_us / 1000 | round)}
        ' --argjson seconds "$bench_epoch_s" <<<"$figures" | bench_add "$1-round"
    pair_down
}

# bench_security SECTION VARIABLE WITHOUT WITH: what the second of the variable's values costs. In turn: what else the
# machine does falls on both alike.
bench_security() {
    local round
    for ((round = 1; round <= bench_rounds; round++)); do
        say_passing "round $round of $bench_rounds"
        local -x "$2=$3"
        bench_security_round "$1" without
        local -x "$2=$4"
        bench_security_round "$1" with
    done
    jq -sc --arg rounds "$1-round" '
        def median: sort | .[length / 2 | floor];
        ["hold_us", "pause_us", "rtt_us", "checkpoints_per_s", "cpu_us", "copy_ms"] as $figures
        | [.[] | select(.section == $rounds)] as $all
        | $figures[] as $figure
        | {$figure, rounds: ($all | length / 2)}
          + ($all | group_by(.pair) | map({key: .[0].pair, value: map(.[$figure]) | median}) | from_entries)
        | . + {ratio: (if .without > 0 then .with / .without else null end)}' "$bench_results" | bench_add "$1"
    bench_table "$1" 'median of the rounds|without|with|ratio' '
        def name: {hold_us: "output held, p50 us", pause_us: "pause, p50 us", rtt_us: "round trip, p50 us",
            checkpoints_per_s: "checkpoints/s", cpu_us: "processor time of both daemons, us a checkpoint",
            copy_ms: "a new backup until protected, ms"}[.];
        [(.figure | name), (.without | n(1)), (.with | n(1)), (.ratio | n(2))]'
    say "$bench_rounds rounds; a client's requests on one connection for $bench_epoch_s s; then a backup that starts" \
        "anew, with $((bench_security_pages / 256)) MiB that no codec makes smaller"
}

bench_tls() {
    bench_title 'TLS 1.3 on the link between the hosts'
    bench_security tls FT_SECURITY none tls
}

bench_confinement() {
    bench_title 'Confined threads: filters of system calls, and no capabilities'
    bench_security confinement FT_CONFINEMENT none full
    "$FTD_BIN_DIR/ft-bench" confined | bench_add confined
    bench_table confined 'a system call|ns|of a confined thread, ns' '[.call, (.free_ns, .confined_ns | n(0))]'
}
