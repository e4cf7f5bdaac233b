# shellcheck shell=bash disable=SC2154,SC2034,SC2016
# The sections of scripts/bench. Each measures, adds its figures as JSON lines to $bench_results, and prints its table.
# Sourced; needs say.sh, cleanup.sh (run_dir), setup.sh, net.sh (up) and pair.sh.

for bench_part in soft replay; do
    # shellcheck source=/dev/null
    source "$FTD_ROOT/scripts/lib/bench-$bench_part.sh"
done

# In the order in which they are measured.
bench_sections=(pause epochs traffic takeover slowdown codec soft replay)

# bench_needs SECTION: what it cannot do without, as words: kvm, network.
bench_needs() {
    case $1 in
    pause) echo kvm ;;
    epochs | traffic | takeover | slowdown) echo kvm network ;;
    replay) echo network ;;
    esac
}

bench_ready_s=${FT_PATIENCE_S:-300}

# bench_begin QUICK: lengths of the measurements.
bench_begin() {
    bench_results=$run_dir/results.jsonl
    : >"$bench_results"
    bench_page_ms=2500 bench_epoch_s=8 bench_traffic_s=6 bench_kills=30 bench_rounds=5 bench_spin_ms=2000 bench_codec_ms=1500
    bench_quick=$1 bench_emulations=3 bench_golive_kills=20
    if [[ $1 == 1 ]]; then
        bench_page_ms=400 bench_epoch_s=3 bench_traffic_s=3 bench_kills=5 bench_rounds=3 bench_spin_ms=1000 bench_codec_ms=300
        bench_emulations=1 bench_golive_kills=5
    fi
    # What else the machine does, before anything is measured: it takes its part of every figure.
    bench_ticks && sleep 1
    bench_busy_before_pct=$(bench_ticks_since busy)
    bench_ticks
    say "$(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), shared by both hosts and the client"
    ((bench_busy_before_pct < 10)) ||
        say_warn "other work keeps them $bench_busy_before_pct % busy: every figure suffers, and slow-downs mean little"
}

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
bench_add() { jq -c --arg section "$1" --argjson load "$bench_load" '{$section, load_average: $load} + .' >>"$bench_results"; }

# bench_table SECTION HEAD FILTER: the section's table. Cells of the head are separated by `|`, the filter makes an array
# of an object.
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
bench_wait_service() { wait_until "$bench_ready_s" bench_service_answers || die 'the service in the VM does not answer'; }

bench_pause() {
    bench_title 'Pause against dirty pages, and what follows it'
    local pages
    for pages in 16 64 256 1000 4096 16384 32768; do
        say_passing "$pages pages"
        "$FTD_BIN_DIR/ft-bench" pause --ms "$bench_page_ms" "$pages" | bench_add pause
    done
    bench_table pause 'pages|pause p50/p99 us|stop|harvest|state|copy|resume|encode|send and seal|bytes sent' '
        [.pages, (.pause_us | spread),
         ((.stop_us, .harvest_us, .capture_us, .copy_us, .resume_us, .encode_us, .send_us).p50 | n(0)), .sent_bytes]'
    say 'one vCPU that never stops writing one word a page; parts are medians; send and seal: TCP on loopback until the backup'
    say 'has decoded, verified and sealed it, and its answer is back'
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

bench_epochs() {
    bench_title 'Checkpoints, hold time and round trip under client load'
    local epoch_ms
    for epoch_ms in 1 2 5 10 25; do
        say_passing "epochs of $epoch_ms ms"
        bench_pair_up "$epoch_ms" "$bench_patient"
        bench_protected "$bench_epoch_s" | jq -c --argjson epoch_ms "$epoch_ms" '{$epoch_ms} + .' | bench_add epochs
        pair_down
    done
    bench_table epochs 'epoch ms|checkpoints/s|hold p50/p99 us|round trip p50/p99 us|requests/s|pause p50/p99 us|encode|commit p50/p99 us|pages' '
        [.epoch_ms, .checkpoints_per_s, (.hold_us | spread), (.rtt_us | spread), .ops_per_s, (.pause_us | spread),
         .parts.encode_us.p50, (.parts.commit_us | spread), .parts.dirty_pages.p50]'
    say 'one client, one request after the other; commit: from the beginning of the pause until the ack is there'
}

# bench_flow LABEL SECONDS [COMMAND...]: what is shipped while the command runs, or while the time passes.
bench_flow() {
    local primary label=$1 seconds=$2 us
    local -A before
    shift 2
    primary=$(pair_primary) || die 'no primary'
    say_passing "$label"
    sleep 0.5
    bench_counters "$primary"
    us=$bench_count_us
    for name in checkpoints_total pages_total raw_bytes_total encoded_bytes_total sent_bytes_total; do
        before[$name]=${bench_count[$name]}
    done
    if (($#)); then "$@" >/dev/null; else sleep "$seconds"; fi
    bench_counters "$primary"
    jq -nc --arg guest "$label" --argjson us $((bench_count_us - us)) \
        --argjson checkpoints $((bench_count[checkpoints_total] - before[checkpoints_total])) \
        --argjson pages $((bench_count[pages_total] - before[pages_total])) \
        --argjson raw $((bench_count[raw_bytes_total] - before[raw_bytes_total])) \
        --argjson encoded $((bench_count[encoded_bytes_total] - before[encoded_bytes_total])) \
        --argjson sent $((bench_count[sent_bytes_total] - before[sent_bytes_total])) '
        {$guest, pages_per_s: ($pages * 1e6 / $us | round),
         pages_per_checkpoint: ($pages / ([$checkpoints, 1] | max) | round),
         checkpoints_per_s: ($checkpoints * 1e7 / $us | round / 10),
         compression_ratio: ($raw / ([$encoded, 1] | max) * 10 | round / 10),
         raw_bytes_per_s: ($raw * 1e6 / $us | round), bytes_per_s: ($sent * 1e6 / $us | round)}' | bench_add traffic
}

bench_traffic() {
    bench_title 'Compression and bytes on the wire, epochs of 5 ms'
    local pattern
    bench_pair_up 5 "$bench_patient"
    bench_flow idle "$bench_traffic_s"
    bench_flow key-value "$bench_traffic_s" bench_client "$bench_traffic_s"
    for pattern in count text random; do
        call LOAD 20000 4000 "$pattern" >/dev/null
        bench_flow "memory, $pattern" "$bench_traffic_s"
    done
    call LOAD 0 0 >/dev/null
    pair_down
    bench_table traffic 'guest|checkpoints/s|pages each|pages/s|MB/s dirty|ratio|MB/s sent' '
        [.guest, .checkpoints_per_s, .pages_per_checkpoint, .pages_per_s, (.raw_bytes_per_s / 1e6 | n(2)),
         .compression_ratio, (.bytes_per_s / 1e6 | n(2))]'
    say 'memory: 20,000 pages a second asked for, of 4,000; count changes a word of each, text and random all of it'
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
    host_status "$heir" .take_over | jq -c --argjson kill_us "$kill_us" --argjson kill "$2" --argjson lag_us "${lag_us:-0}" '
        def ms: . / 100 | round / 10;
        {$kill, $kill_us, takeover_ms: (.running_unix_us - $kill_us | ms),
         notice_ms: (if .total_us > 0 then .running_unix_us - .total_us - $kill_us | ms else null end),
         decide_ms: (if .total_us > 0 then .total_us - .resume_us | ms else null end), resume_ms: (.resume_us | ms), pending_pages,
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

bench_takeover() {
    bench_title "Take-over after SIGKILL of the primary, $bench_kills times, under client load"
    bench_kills_of takeover "$bench_kills"
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
        {$what, iterations_per_ms: ($spins | median), iterations_per_cpu_ms: ($cpu_spins | median), pages_per_s: ($loads | median),
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

bench_slowdown() {
    bench_title 'What the guest gets done, unprotected and protected, epochs of 5 ms'
    FT_EPOCH_MS=5 FT_REPLICATION=$bench_patient pair_prepare
    host_start a
    wait_until "$bench_ready_s" host_is a primary solo || { pair_explain && die 'host a did not start'; }
    bench_wait_service
    bench_guest_speed speed unprotected
    host_start b
    pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected'; }
    bench_guest_speed speed protected
    pair_down
    jq -sc 'def slow(f): (1 - (.[1] | f) / (.[0] | f)) * 1000 | round / 10;
        [.[] | select(.section == "speed")]
        | {slowdown_pct: slow(.iterations_per_ms), memory_slowdown_pct: slow(.pages_per_s), serving_slowdown_pct: slow(.ops_per_s),
           unprotected_rtt_us: .[0].rtt_us, protected_rtt_us: .[1].rtt_us}' "$bench_results" | bench_add slowdown
    bench_table speed 'guest|computing, iterations/ms|writing, pages/s|serving, requests/s|round trip p50/p99 us' '
        [.what, .iterations_per_ms, .pages_per_s, .ops_per_s, (.rtt_us | spread)]'
    bench_table slowdown 'slow-down|computing %|writing %|serving %' '
        ["", .slowdown_pct, .memory_slowdown_pct, .serving_slowdown_pct]'
    say 'the same VM before and after its backup came. Computing: one vCPU, nothing written; writing: as fast as it can, over'
    say '1,000 pages; serving: one request after the other, so each waits for its checkpoint. The backup host, encoding and'
    say 'sending take their time from the same processors.'
}

bench_codec() {
    bench_title 'Codec, GB of dirty memory a second of one core'
    "$FTD_BIN_DIR/ft-bench" codec --ms "$bench_codec_ms" | bench_add codec
    bench_table codec 'pages|encode GB/s|decode GB/s|ratio' '
        [.kind, (.encode_gb_per_s, .decode_gb_per_s | n(2)), (.ratio | n(1))]'
    say 'mixed: 15 % zero, 15 % unchanged, 40 % small changes, 20 % new and structured, 10 % new and random; CPU time of a thread'
}

# bench_summary: everything in one object, on stdout.
bench_summary() {
    jq -s --argjson stolen_pct "$(bench_ticks_since stolen)" --argjson busy_before_pct "$bench_busy_before_pct" --arg guest "${FT_GUEST:-builtin}" --argjson processors "$(nproc)" '
        def all($section): [.[] | select(.section == $section) | del(.section)];
        def one($section): all($section)[0];
        def soft($guest; $on): all("soft") | map(select(.guest == $guest and .on == $on))[0];
        # Speed against QEMU: what QEMU took for what soft took one.
        def against($on; part): (soft("debian"; $on) | part) as $speed | if $speed then 1 / $speed else null end;
        (all("epochs") | map(select(.epoch_ms == 5))[0]) as $at_5ms
        | (all("replay_log") | map(select(.requests_per_s))[0]) as $load
        | {pause_us_p50_at_1000_pages: (all("pause") | map(select(.pages == 1000))[0].pause_us.p50),
           checkpoints_per_s_at_5ms: $at_5ms.checkpoints_per_s, hold_us_p50_at_5ms: $at_5ms.hold_us.p50,
           takeover_ms_p50: one("takeover").takeover_ms.p50, takeover_ms_p99: one("takeover").takeover_ms.p99,
           encode_gb_per_s: (all("codec") | map(select(.kind == "mixed"))[0].encode_gb_per_s),
           slowdown_pct_at_5ms: one("slowdown").slowdown_pct,
           soft_mips: soft("debian"; "soft").integer.mips, soft_boot_mips: soft("debian"; "soft").boot.mips,
           soft_vs_qemu_tcg: against("qemu"; .integer_speed), soft_boot_vs_qemu_tcg: against("qemu"; .boot_speed),
           soft_vs_qemu_icount_record: against("qemu-record"; .integer_speed),
           soft_boot_vs_qemu_icount_record: against("qemu-record"; .boot_speed),
           replay_slowdown_pct: one("replay").slowdown_pct, replay_slowdown_cpu_pct: one("replay").slowdown_cpu_pct,
           replay_serving_slowdown_pct: one("replay").serving_slowdown_pct,
           replay_log_mbit_per_s: $load.log_mbit_per_s, replay_log_entries_mbit_per_s: $load.entries_mbit_per_s,
           replay_log_idle_mbit_per_s: (all("replay_log") | map(select(.load == "idle"))[0].log_mbit_per_s),
           replay_log_boot_mbit_per_s: (((soft("debian"; "soft-record") // soft("small"; "soft-record")).boot
               | select(.log_bytes) | .log_bytes * 8 / 1e6 / .wall_s) // null),
           replay_hold_us_p50: $load.hold_us.p50, replay_rtt_us_p50: $load.rtt_us.p50,
           replay_lag_ms_p50: (if $load then $load.lag_us.p50 / 1e3 else null end),
           replay_golive_ms_p50: one("golive").takeover_ms.p50, replay_golive_ms_p99: one("golive").takeover_ms.p99,
           replay_golive_lag_ms_p50: one("golive").lag_ms.p50,
           $guest, $processors, load_average_max: (map(.load_average) | max), $busy_before_pct, $stolen_pct,
           pause: all("pause"), epochs: all("epochs"), traffic: all("traffic"), takeover: one("takeover"),
           kills: all("takeover-kill"), slowdown: one("slowdown"), speed: all("speed"), codec: all("codec"),
           soft: all("soft"), replay: one("replay"), replay_log: all("replay_log"), golive: one("golive"),
           golive_kills: all("golive-kill"), soft_checkpoint: one("soft_checkpoint")}' "$bench_results"
}

# bench_targets: what was to be reached, and where the time goes of what was not.
bench_targets() {
    bench_load=0
    say ''
    bench_summary | jq -c '
        def n: . * 100 | round / 100;
        def line($figure; $value; $bound; $most; $unit; why):
            select($value != null)
            | (if $most then $value <= $bound else $value >= $bound end) as $reached
            | {$figure, target: "\(if $most then "at most" else "at least" end) \($bound) \($unit)", value: "\($value | n) \($unit)",
               verdict: (if $reached then "reached" else "MISSED" end), why: (if $reached then "" else why end)};
        (.epochs | map(select(.epoch_ms == 5))[0]) as $e | (.pause | map(select(.pages == 1000))[0]) as $p
        | line("pause at 1,000 pages, median"; .pause_us_p50_at_1000_pages; 2000; true; "us";
              "stop \($p.stop_us.p50 | n), harvest \($p.harvest_us.p50 | n), state \($p.capture_us.p50 | n), copy \($p.copy_us.p50 | n), resume \($p.resume_us.p50 | n) us"),
          line("checkpoints at 5 ms under client load"; .checkpoints_per_s_at_5ms; 150; false; "/s";
              "\(1e6 / .checkpoints_per_s_at_5ms | round) us each: 5000 epoch, \($e.pause_us.p50) pause, the rest waits for a processor or for room (commit \($e.parts.commit_us.p50) us)"),
          line("hold time at 5 ms, median"; .hold_us_p50_at_5ms; 8000; true; "us";
              "up to 5000 until the epoch ends, \($e.pause_us.p50) pause, \($e.parts.commit_us.p50) from capture to ack (encoding \($e.parts.encode_us.p50))"),
          line("take-over, median"; .takeover_ms_p50; 50; true; "ms";
              "\(.takeover.notice_ms.p50) until noticed, \(.takeover.decide_ms.p50) arbitration, \(.takeover.resume_ms.p50) resume"),
          line("encode, mixed pages, one core"; .encode_gb_per_s; 1; false; "GB/s"; "see the kinds of pages above"),
          line("software engine, integer"; .soft_mips; 60; false; "MIPS"; "an interpreter of decoded blocks: QEMU translates"),
          line("software engine, Linux boot"; .soft_boot_mips; 60; false; "MIPS"; "page tables, code seen once and devices, beside the above"),
          line("replay, slow-down, computing"; .replay_slowdown_pct; 5; true; "%"; "\(.replay_slowdown_cpu_pct) % by processor time; primary, backup and all else share \(.processors) processors"),
          line("replay, log at \(.replay_log[1].requests_per_s) requests/s"; .replay_log_mbit_per_s; 2; true; "Mbit/s";
              "\(.replay_log[1].entries_mbit_per_s | n) are entries; the frames of \(.replay_log[1].batches_per_s) batches a second are the rest"),
          line("replay, hold time, median"; .replay_hold_us_p50; 2000; true; "us";
              "\(.replay_log[1].batches_per_s) batches a second; each waits for a processor on its way there and back"),
          line("replay, going live, median"; .replay_golive_ms_p50; 50 + (.replay_golive_lag_ms_p50 // 0); true; "ms";
              "\(.golive.notice_ms.p50) until noticed, \(.golive.decide_ms.p50) for the rest of the log and the arbitration, \(.golive.resume_ms.p50) to run")' |
        bench_add target
    bench_table target 'figure|target|measured||why' '[.figure, .target, .value, .verdict, .why]'
    say "load average now $(cut -d' ' -f1-3 /proc/loadavg), other work before $bench_busy_before_pct %, time stolen by the machine's host $(bench_ticks_since stolen) %"
}
