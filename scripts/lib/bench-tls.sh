# What TLS on the link costs: two pairs, one without and one with it, in turn. Sourced by bench.sh.
[[ -z ${bench_tls_sourced:-} ]] || return 0
bench_tls_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"

# Guest memory that is filled with what no codec makes smaller, and the part of it that is.
bench_tls_memory_mib=512 bench_tls_pages=65536

# bench_tls_cpu_ms: processor time of both daemons so far.
bench_tls_cpu_ms() {
    local host
    for host in a b; do
        # The name of a program may have spaces; it ends with the last parenthesis.
        sed 's/.*) //' "/proc/$(spawned_pid "$host/ftd")/stat"
    done | awk -v tick="$(getconf CLK_TCK)" '{ ticks += $12 + $13 } END { printf "%d\n", ticks * 1000 / tick }'
}

# bench_tls_round SECURITY: the figures of a pair, as one result.
bench_tls_round() {
    local FT_SECURITY=$1 FT_MEMORY_MIB=$bench_tls_memory_mib cpu_ms figures backup copy_us us
    bench_pair_up 5 "$bench_patient"
    cpu_ms=$(bench_tls_cpu_ms)
    figures=$(bench_protected "$bench_epoch_s")
    cpu_ms=$(($(bench_tls_cpu_ms) - cpu_ms))
    call LOAD $((bench_tls_pages * 4)) "$bench_tls_pages" random >/dev/null
    sleep 2
    call LOAD 0 0 >/dev/null
    backup=${pair_peer[$(pair_primary)]}
    end_spawned "$backup/ftd" KILL
    now_us us
    host_start "$backup"
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected again'; }
    now_us copy_us
    jq -c --arg security "$1" --argjson copy_us $((copy_us - us)) --argjson cpu_ms "$cpu_ms" '
        {$security, hold_us: .hold_us.p50, rtt_us: .rtt_us.p50, checkpoints_per_s,
         cpu_us: ($cpu_ms * 1000 / (.checkpoints_per_s * $seconds) | round), copy_ms: ($copy_us / 1000 | round)}
        ' --argjson seconds "$bench_epoch_s" <<<"$figures" | bench_add tls-round
    pair_down
}

bench_tls() {
    local round
    bench_title 'TLS on the link between the hosts'
    # In turn: what else the machine does falls on both alike.
    for ((round = 1; round <= bench_rounds; round++)); do
        say_passing "round $round of $bench_rounds"
        bench_tls_round none
        bench_tls_round tls
    done
    jq -sc '
        def median: sort | .[length / 2 | floor];
        [.[] | select(.section == "tls-round")] | group_by(.security)
        | map({key: .[0].security, value: {rounds: length, hold_us: map(.hold_us) | median,
            rtt_us: map(.rtt_us) | median, checkpoints_per_s: map(.checkpoints_per_s) | median,
            cpu_us: map(.cpu_us) | median, copy_ms: map(.copy_ms) | median}}) | from_entries
        | . as $both | ["hold_us", "rtt_us", "checkpoints_per_s", "cpu_us", "copy_ms"][]
        | {figure: ., none: $both.none[.], tls: $both.tls[.], rounds: $both.tls.rounds}
        | . + {ratio: (.tls / .none)}' "$bench_results" | bench_add tls
    bench_table tls 'median of the rounds|in the clear|TLS 1.3|ratio' '
        def name: {hold_us: "output held, p50 us", rtt_us: "round trip, p50 us",
            checkpoints_per_s: "checkpoints/s", cpu_us: "processor time of both daemons, us a checkpoint",
            copy_ms: "a new backup until protected, ms"}[.];
        [(.figure | name), (.none | n(1)), (.tls | n(1)), (.ratio | n(2))]'
    say "$bench_rounds rounds; a client's requests on one connection for $bench_epoch_s s; then a backup that starts" \
        "anew, with $((bench_tls_pages / 256)) MiB that no codec makes smaller"
}
