# The sections of scripts/bench. Each measures, adds its figures to the results, and prints its table. Sourced.
[[ -z ${bench_sourced:-} ]] || return 0
bench_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"
source "${BASH_SOURCE[0]%/*}/bench-soft.sh"
source "${BASH_SOURCE[0]%/*}/bench-replay.sh"
source "${BASH_SOURCE[0]%/*}/bench-disk.sh"
source "${BASH_SOURCE[0]%/*}/bench-net.sh"
source "${BASH_SOURCE[0]%/*}/bench-security.sh"

# In the order in which they are measured.
bench_sections=(pause ram epochs traffic takeover slowdown codec soft replay disk return net tls confinement)

# bench_needs SECTION: what it cannot do without, as words: kvm, network.
bench_needs() {
    case $1 in
    pause | ram) echo kvm ;;
    epochs | traffic | takeover | slowdown | tls | confinement) echo kvm network ;;
    replay | disk | return | net) echo network ;;
    esac
}

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
    say 'one vCPU that never stops writing one word a page; parts are medians; send and seal: TCP on loopback until'
    say 'the backup has decoded, verified and sealed it, and its answer is back'
}

bench_ram() {
    bench_title 'Pause against the size of the memory, of which 16 pages are dirty'
    local gib
    for gib in 1 2 4 8 16; do
        say_passing "$gib GiB"
        "$FTD_BIN_DIR/ft-bench" pause --ms "$bench_page_ms" --ram-mib $((1024 * gib)) 16 | bench_add ram
    done
    bench_table ram 'GiB|pause p50/p99 us|stop|harvest|state|copy|resume' '
        [.ram_mib / 1024, (.pause_us | spread),
         ((.stop_us, .harvest_us, .capture_us, .copy_us, .resume_us).p50 | n(0))]'
    say 'the guest has touched little else: what it never touched is a hole of the memory file'
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
    local columns='epoch ms|checkpoints/s|hold p50/p99 us|round trip p50/p99 us|requests/s|pause p50/p99 us'
    bench_table epochs "$columns|encode|commit p50/p99 us|pages" '
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

bench_takeover() {
    bench_title "Take-over after SIGKILL of the primary, $bench_kills times, under client load"
    bench_kills_of takeover "$bench_kills"
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
        | {slowdown_pct: slow(.iterations_per_ms), memory_slowdown_pct: slow(.pages_per_s),
           serving_slowdown_pct: slow(.ops_per_s),
           unprotected_rtt_us: .[0].rtt_us, protected_rtt_us: .[1].rtt_us}' "$bench_results" | bench_add slowdown
    bench_table speed 'guest|computing, iterations/ms|writing, pages/s|serving, requests/s|round trip p50/p99 us' '
        [.what, .iterations_per_ms, .pages_per_s, .ops_per_s, (.rtt_us | spread)]'
    bench_table slowdown 'slow-down|computing %|writing %|serving %' '
        ["", .slowdown_pct, .memory_slowdown_pct, .serving_slowdown_pct]'
    say 'the same VM before and after its backup came. Computing: one vCPU, nothing written; writing: as fast as it'
    say 'can, over 1,000 pages; serving: one request after the other, so each waits for its checkpoint. The backup'
    say 'host, encoding and sending take their time from the same processors.'
}

bench_codec() {
    bench_title 'Codec, GB of dirty memory a second of one core'
    "$FTD_BIN_DIR/ft-bench" codec --ms "$bench_codec_ms" | bench_add codec
    bench_table codec 'pages|encode GB/s|decode GB/s|ratio' '
        [.kind, (.encode_gb_per_s, .decode_gb_per_s | n(2)), (.ratio | n(1))]'
    say 'mixed: 15 % zero, 15 % unchanged, 40 % small changes, 20 % new and structured, 10 % new and random;' \
        'CPU time of a thread'
}
