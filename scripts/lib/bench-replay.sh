# The bench's section on replay mode: what the log takes, how long output is held, what the guest loses, and how long it
# takes to go live; and a line on checkpoint mode with the same engine. Sourced.
[[ -z ${bench_replay_sourced:-} ]] || return 0
bench_replay_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"

# Enough at a time for a thousand requests a second, whatever a round trip takes.
bench_clients_count=8

# bench_clients SECONDS [RATE]: several connections at once, with so many requests a second together, or as fast as the
# answers come; their summary on stdout.
bench_clients() {
    local client
    local -a pids=() rate=()
    [[ -z ${2:-} ]] || rate=(--rate $(($2 / bench_clients_count)))
    for ((client = 0; client < bench_clients_count; client++)); do
        in_ns c "$FTD_BIN_DIR/ft-client" --json --duration-s "$1" --seed "$client" "${rate[@]}" \
            --addr "$net_vm_address:$pair_client_port" >"$run_dir/client-$client.json" &
        pids+=($!)
    done
    for client in "${pids[@]}"; do
        wait "$client" || say_warn "a client saw wrong answers or lost its connection"
    done
    jq -sc '{ops: (map(.ops) | add), duration_ms: (map(.duration_ms) | max),
        ops_per_s: (map(.ops * 1e3 / .duration_ms) | add | round),
        rtt_us: {p50: (map(.rtt_us.p50) | sort | .[length / 2 | floor]), p99: (map(.rtt_us.p99) | max)}}' \
        "$run_dir"/client-*.json
}

# bench_log_flow LABEL SECONDS [RATE]: what replay mode ships, and how far behind the backup is, while the clients ask
# for so much, or without a client.
bench_log_flow() {
    local primary us sent entries batches clients
    primary=$(pair_primary) || die 'no primary'
    say_passing "log: $1"
    sleep 1
    : >"$run_dir/lag"
    bench_counters "$primary"
    us=$bench_count_us sent=${bench_count[sent_bytes_total]} entries=${bench_count[log_bytes_total]}
    batches=${bench_count[checkpoints_total]}
    if [[ -n ${3:-} ]]; then
        bench_clients "$2" "$3" >"$run_dir/clients.json" &
    else
        echo null >"$run_dir/clients.json" && sleep "$2" &
    fi
    clients=$!
    while kill -0 "$clients" 2>/dev/null; do
        host_status "$primary" '[.lag_us, .throttle_pct] | @json' >>"$run_dir/lag" || true
        sleep 0.1
    done
    wait "$clients"
    bench_counters "$primary"
    jq -nc --arg load "$1" --slurpfile samples "$run_dir/lag" --slurpfile clients "$run_dir/clients.json" \
        --argjson us $((bench_count_us - us)) --argjson sent $((bench_count[sent_bytes_total] - sent)) \
        --argjson entries $((bench_count[log_bytes_total] - entries)) \
        --argjson batches $((bench_count[checkpoints_total] - batches)) \
        --argjson hold "$(host_status "$primary" '.hold_us | @json')" '
        ($samples | map(.[0]) | sort) as $lag
        | {$load, log_mbit_per_s: ($sent * 8 / $us),
           entries_mbit_per_s: ($entries * 8 / $us), batches_per_s: ($batches * 1e6 / $us | round),
           requests_per_s: $clients[0].ops_per_s, rtt_us: $clients[0].rtt_us,
           bytes_per_request: (if $clients[0] then $sent / $clients[0].ops | round else null end),
           hold_us: (if $clients[0] then $hold else null end),
           lag_us: {p50: $lag[$lag | length / 2 | floor], max: $lag[-1]},
           throttle_pct_max: ($samples | map(.[1]) | max)}' | bench_add replay_log
}

bench_replay() {
    bench_title 'Replay mode: what the guest gets done on the software engine, unprotected and protected'
    local FT_MODE=replay
    FT_EPOCH_MS=5 FT_REPLICATION=$bench_patient pair_prepare
    host_start a
    wait_until "$bench_ready_s" host_is a primary solo || { pair_explain && die 'host a did not start'; }
    bench_wait_service
    bench_guest_speed replay_speed unprotected
    bench_clients "$((bench_rounds + 1))" | jq -c '{what: "unprotected"} + .' | bench_add replay_served
    host_start b
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected'; }
    bench_guest_speed replay_speed protected
    bench_clients "$((bench_rounds + 1))" | jq -c '{what: "protected"} + .' | bench_add replay_served
    jq -sc 'def slow(f): (1 - (.[1] | f) / (.[0] | f)) * 1000 | round / 10;
        [.[] | select(.section == "replay_served")] as $served
        | [.[] | select(.section == "replay_speed")]
        | {slowdown_pct: slow(.iterations_per_ms), slowdown_cpu_pct: slow(.iterations_per_cpu_ms),
           memory_slowdown_pct: slow(.pages_per_s),
           one_client_slowdown_pct: slow(.ops_per_s), serving_slowdown_pct: ($served | slow(.ops_per_s)),
           unprotected_rtt_us: .[0].rtt_us, protected_rtt_us: .[1].rtt_us,
           unprotected_served: $served[0], protected_served: $served[1]}' "$bench_results" | bench_add replay
    local columns='guest|computing, iterations/ms|iterations/CPU ms|writing, pages/s|one client, requests/s'
    bench_table replay_speed "$columns|round trip p50/p99 us" '
        [.what, .iterations_per_ms, .iterations_per_cpu_ms, .pages_per_s, .ops_per_s, (.rtt_us | spread)]'
    bench_table replay_served "guest|$bench_clients_count clients, requests/s|round trip p50/p99 us" \
        '[.what, .ops_per_s, (.rtt_us | spread)]'
    bench_table replay "slow-down|computing %|computing, CPU %|writing %|one client %|$bench_clients_count clients %" '
        ["", .slowdown_pct, .slowdown_cpu_pct, .memory_slowdown_pct, .one_client_slowdown_pct, .serving_slowdown_pct]'

    say 'CPU: for each millisecond that the vCPU had a processor, whatever else the machine does; the rest by the clock'

    bench_title 'Replay mode: the log, the output it holds, and how far the backup is behind'
    bench_log_flow idle "$bench_traffic_s"
    bench_log_flow 'key-value, 1000/s' "$bench_traffic_s" 1000
    pair_down
    columns='load|requests/s|log Mbit/s|entries alone|bytes each|batches/s|hold p50/p99 us|round trip p50/p99 us'
    bench_table replay_log "$columns|lag p50/max ms|slowed %" '
        def maybe(f): if . == null then "-" else f end;
        [.load, (.requests_per_s | maybe(.)), (.log_mbit_per_s | n(3)),
         (.entries_mbit_per_s | n(3)), (.bytes_per_request | maybe(.)),
         .batches_per_s,
         (.hold_us | maybe(spread)), (.rtt_us | maybe(spread)),
         "\(.lag_us.p50 / 1e3 | n(1)) / \(.lag_us.max / 1e3 | n(1))",
         (.throttle_pct_max | n(1))]'
    say "log: all that is sent to the backup, frames and heartbeats included; $bench_clients_count connections," \
        "each with one request at a time"

    bench_title "Replay mode: going live after SIGKILL of the primary, $bench_golive_kills times, under client load"
    bench_kills_of golive "$bench_golive_kills"

    bench_title 'Checkpoint mode on the software engine, epochs of 5 ms'
    FT_MODE=checkpoint FT_ENGINE=soft bench_pair_up 5 "$bench_patient"
    bench_protected "$bench_traffic_s" | bench_add soft_checkpoint
    pair_down
    columns='checkpoints/s|hold p50/p99 us|round trip p50/p99 us|requests/s|pause p50/p99 us|pages'
    bench_table soft_checkpoint "$columns" '
        [.checkpoints_per_s, (.hold_us | spread), (.rtt_us | spread), .ops_per_s, (.pause_us | spread),
         .parts.dirty_pages.p50]'
}
