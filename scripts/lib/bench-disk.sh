# The bench's sections on writable disks: what a guest gets of its disk, unprotected, protected and on QEMU, and what a
# backup costs that comes back. The guest is the small Linux with its load generator (scripts/guest/load). Sourced.
[[ -z ${bench_disk_sourced:-} ]] || return 0
bench_disk_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"
source "${BASH_SOURCE[0]%/*}/setup.sh"

bench_load_port=7779
# Kind, order and bytes of a request.
bench_disk_loads=('read random 4096' 'write random 4096' 'flushed-write random 4096' 'write sequential 1048576'
    'flushed-write sequential 1048576')

# bench_load REQUEST...: one request to the load generator, its answer on stdout.
bench_load() {
    in_ns c "$FTD_BIN_DIR/ft-client" call --timeout-s "${bench_load_s:-120}" \
        --addr "$net_vm_address:$bench_load_port" "$@"
}
bench_load_answers() { bench_load_s=2 bench_load PING >/dev/null 2>&1; }

# bench_disk_guest SECTION: the guest is there, in FT_LINUX_DIR, and what executes it; says so if not.
bench_disk_guest() {
    local lacks
    lacks=$(pair_can_run) || { say_error "SKIPPED bench, $1: $lacks" && return 1; }
    say_passing 'the guest with a disk: building, if it is not there'
    FT_LINUX_DIR=$("$FTD_ROOT/scripts/guest/build" disk 2>"$run_dir/guest.log") ||
        { say_error "SKIPPED bench, $1: no guest: $(tail -n 1 "$run_dir/guest.log")" && return 1; }
}

# bench_disk_replication [LINE]: the pair's [replication].
bench_disk_replication() { printf '%s\n' "$bench_patient" "journal_mib = $bench_journal_mib" "${1:-}"; }

# bench_disk_boot: host a runs the VM alone, and its load generator answers.
bench_disk_boot() {
    host_start a
    wait_until "$bench_ready_s" host_is a primary solo || { pair_explain && die 'host a did not start'; }
    wait_until "$bench_ready_s" bench_load_answers || die 'the load generator in the VM does not answer'
}

# bench_disk_fill: every block of both images has its place in the file system before anything is measured.
bench_disk_fill() {
    local host
    for host in a b; do
        dd if=/dev/zero of="$run_dir/$host/disk.img" bs=1M count="$FT_DISK_MIB" conv=notrunc,fsync status=none
    done
}

# bench_disk_on ON: every load, with each number of requests in flight.
bench_disk_on() {
    local load depth answer began ended
    local -a words
    for load in "${bench_disk_loads[@]}"; do
        read -r -a words <<<"$load"
        for depth in "${bench_disk_depths[@]}"; do
            say_passing "$1: $load, $depth in flight"
            now_us began
            answer=$(bench_load LOAD "${words[@]}" "$depth" "$bench_disk_ms") ||
                { say_warn "$1: $load: ${answer:-no answer}" && continue; }
            now_us ended
            # The guest's clock is the measure: the host's has to agree with it.
            jq -c --arg on "$1" --arg kind "${words[0]}" --arg order "${words[1]}" --argjson depth "$depth" \
                --argjson block_bytes "${words[2]}" --argjson host_us $((ended - began)) '
                {$on, $kind, $order, $block_bytes, in_flight: $depth, $host_us, prepared_us, requests, us,
                 p50_us, p99_us, max_us, requests_per_s: (.requests * 1e6 / .us | round),
                 mib_per_s: (.bytes / .us * 1e7 / 1048576 | round / 10)}' \
                <<<"$answer" | bench_add disk-load
        done
    done
}

# bench_disk_qemu_start AIO: QEMU with the same guest, on host a's image; whether its load generator answers.
bench_disk_qemu_start() {
    bench_qemu_start bench_load_answers -drive "if=none,id=disk,format=raw,cache=none,aio=$1,file=$run_dir/a/disk.img" \
        -device virtio-blk-device,drive=disk
}

# bench_disk_qemu: the loads on QEMU, and in bench_disk_beside what it was, or why it was not there.
bench_disk_qemu() {
    local aio
    [[ $bench_quick == 1 ]] || setup_need qemu
    if ! command -v qemu-system-x86_64 >/dev/null; then
        bench_disk_missing='qemu-system-x86_64 is not installed'
    else
        for aio in io_uring threads; do
            if bench_disk_qemu_start "$aio"; then
                bench_disk_beside="$(bench_qemu) (${FT_ENGINE/soft/tcg}), virtio-blk on virtio-mmio, cache=none,"
                bench_disk_beside+=" aio=$aio"
                bench_disk_on qemu
                break
            fi
            bench_disk_missing="QEMU did not run the guest: $(tail -n 1 "$run_dir/qemu.log" | tr -cd '[:print:]')"
            end_spawned qemu KILL
        done
    fi
    end_spawned qemu KILL
    [[ -z $bench_disk_beside ]] || bench_disk_missing=''
}

# bench_disk_setup: how it was measured, added to the results.
bench_disk_setup() {
    jq -nc --arg engine "$FT_ENGINE" --arg beside "$bench_disk_beside" --arg missing "$bench_disk_missing" \
        --arg file_system "$(findmnt -n -o FSTYPE -T "$run_dir")" --argjson image_mib "$FT_DISK_MIB" \
        --argjson journal_mib "$bench_journal_mib" --argjson load_ms "$bench_disk_ms" '
        def there: select(. != "") // null;
        {$engine, qemu: ($beside | there), qemu_missing: ($missing | there), $file_system, $image_mib, $journal_mib,
         $load_ms, epoch_ms: 5}' | bench_add disk-setup
}

bench_disk() {
    local FT_GUEST=linux-load FT_LINUX_DIR='' FT_MODE=checkpoint FT_ENGINE=${FT_ENGINE:-} FT_EPOCH_MS=5 FT_BUS=mmio
    local FT_DISK_MIB=$bench_disk_mib FT_REPLICATION durability bench_disk_beside='' bench_disk_missing=''
    FT_ENGINE=$(bench_linux_engine)
    bench_title "A guest's disk, on $FT_ENGINE: unprotected, protected, and on QEMU"
    bench_disk_guest disk || return 0
    for durability in commit sync; do
        FT_REPLICATION=$(bench_disk_replication "durability = \"$durability\"")
        pair_prepare
        bench_disk_fill
        bench_disk_boot
        [[ $durability != commit ]] || bench_disk_on unprotected
        host_start b
        pair_wait_protected "$bench_ready_s" || { pair_explain && die 'not protected'; }
        bench_disk_on "$durability"
        pair_down
    done
    bench_disk_qemu
    bench_disk_setup
    jq -sc '[.[] | select(.section == "disk-load") | del(.section, .load_average)]
        | group_by([.block_bytes, .kind != "read", .kind == "flushed-write", .in_flight])[]
        | .[0] as {$kind, $order, $block_bytes, $in_flight}
        | {$kind, $order, $block_bytes, $in_flight}
            + (map({key: .on, value: del(.on, .kind, .order, .block_bytes, .in_flight)}) | from_entries)' \
        "$bench_results" | bench_add disk
    bench_table disk 'the guest'\''s disk|in flight|QEMU|unprotected|"commit"|"sync"' '
        def rate($bytes): if $bytes < 1048576 then "\(.requests_per_s)/s" else "\(.mib_per_s) MiB/s" end;
        def cell($bytes): if . then "\(rate($bytes))  \(.p50_us) / \(.p99_us)" else "NOT MEASURED" end;
        [(if .block_bytes < 1048576 then "4 KiB" else "1 MiB" end) + " \(.order), \(.kind)", .in_flight,
         (.block_bytes as $bytes | (.qemu, .unprotected, .commit, .sync) | cell($bytes))]'
    say "each: throughput, and p50 / p99 of a request in us, by the guest's clock; a flushed write's time includes its"
    say "flush. Images of $FT_DISK_MIB MiB on $(findmnt -n -o FSTYPE -T "$run_dir"), all allocated; O_DIRECT in the" \
        'guest and on the host;'
    say "both hosts' images are on one disk. Protected: epochs of 5 ms, a journal of $bench_journal_mib MiB."
    if [[ -n $bench_disk_beside ]]; then
        say "Beside: $bench_disk_beside, on the same image with the same guest."
    else
        say_error "QEMU was NOT MEASURED: $bench_disk_missing"
    fi
    [[ $FT_ENGINE != soft || $(host_kvm) == hardware ]] ||
        say "Not on KVM: here it emulates the guest's kernel, or is not there (FT_ENGINE=kvm insists)."
    bench_disk_clocks
}

# bench_disk_clocks: figures by a clock that does not go as the host's are none.
bench_disk_clocks() {
    jq -rs '[.[] | select(.section == "disk-load")
            | select((.host_us - .prepared_us - .us | fabs) > 0.2 * .host_us + 1e6)]
        | if length > 0 then "the guest'\''s clock does not agree with the host'\''s in \(length) of the figures: " +
            (map("\(.on) \(.kind) \(.block_bytes)") | join(", ")) else empty end' "$bench_results" |
        while IFS= read -r guest; do say_error "$guest"; done
}

# --- Coming back ----------------------------------------------------------------------------------------------------

# bench_link_bytes: what has gone over the link between the hosts, both ways.
bench_link_bytes() { ip -n "$(net_ns a)" -s -j link show dev repl | jq '.[0].stats64 | .rx.bytes + .tx.bytes'; }

# bench_return_seen: notes how far the copy is; whether host a is protected.
bench_return_seen() {
    local seen now
    if ! is_running a/ftd || ! is_running b/ftd; then
        pair_explain
        die 'a daemon has ended'
    fi
    seen=$(host_status a '[.state, .copy, .disks.copy] | @json') && [[ -n $seen ]] || return 1
    now_us now
    printf '[%s,%s]\n' "$now" "$seen" >>"$run_dir/copies"
    [[ $seen == '["protected"'* ]]
}

# bench_come_back CHANGED: the backup's host is there again; until the VM is protected.
bench_come_back() {
    local began ended bytes differing
    differing=$(host_status a '.disks.differing_bytes') || die 'host a does not answer'
    bytes=$(bench_link_bytes)
    : >"$run_dir/copies"
    now_us began
    host_start b
    wait_until "$bench_return_s" bench_return_seen || { pair_explain && die 'not protected again'; }
    now_us ended
    jq -sc --arg changed "$1" --argjson began "$began" --argjson us $((ended - began)) \
        --argjson differing "$differing" --argjson wire_bytes $(($(bench_link_bytes) - bytes)) '
        def seconds: . / 1e4 | round / 100;
        # What a copy that ended between two looks came to is not known.
        def most(f): map(.[1] | f) | map(select(. != null)) | max;
        (map(select(.[1][0] == "resyncing" or .[1][0] == "protected"))[0][0] - $began | seconds) as $connected_s
        | {$changed, protected_s: ($us | seconds), $connected_s, $wire_bytes, differing_bytes: $differing,
         disks_to_compare_bytes: most(.[2].total_bytes), disks_same_bytes: most(.[2].same_bytes),
         disks_sent_bytes: most(.[2].sent_bytes), memory_bytes: most(.[1].total_bytes),
         memory_covered_bytes: most(.[1].done_bytes)}' "$run_dir/copies" | bench_add return
}

# bench_return_room PERCENT: the file system has room for so much of the backup's image, and a little beside; a changed
# extent is written there as a whole.
bench_return_room() {
    local wanted_mib=$((FT_DISK_MIB * $1 / 100 + 1024)) left_mib
    left_mib=$(df --output=avail -BM "$run_dir" | tail -n 1 | tr -dc '0-9')
    ((left_mib >= wanted_mib)) ||
        { say_error "NOT MEASURED: $1 % changed needs $wanted_mib MiB in $run_dir, which has $left_mib" && return 1; }
}

bench_return() {
    local FT_GUEST=linux-load FT_LINUX_DIR='' FT_MODE=checkpoint FT_ENGINE=${FT_ENGINE:-} FT_EPOCH_MS=5
    local FT_REPLICATION FT_DISK_MIB=$((bench_return_gib * 1024)) part
    FT_ENGINE=$(bench_linux_engine)
    bench_title "A backup comes back, on $FT_ENGINE: a sparse disk of $bench_return_gib GiB, by what has changed"
    bench_disk_guest return || return 0
    FT_REPLICATION=$(bench_disk_replication)
    pair_prepare
    bench_disk_boot
    say_passing 'first pairing'
    bench_come_back first
    for part in "${bench_return_parts[@]}"; do
        bench_return_room "$part" || continue
        say_passing "$part % changed"
        host_kill b
        wait_until "$bench_ready_s" host_is a primary solo || { pair_explain && die 'host a does not go on alone'; }
        bench_load_s=$bench_return_s bench_load TOUCH $((FT_DISK_MIB * part / 100)) >"$run_dir/touched" ||
            die "the guest does not write: $(<"$run_dir/touched")"
        host_wait_end b 60
        bench_come_back "$part %"
    done
    pair_down
    jq -nc --arg engine "$FT_ENGINE" --argjson image_gib "$bench_return_gib" --argjson memory_mib "$(pair_memory_mib)" \
        --arg file_system "$(findmnt -n -o FSTYPE -T "$run_dir")" '{$engine, $image_gib, $memory_mib, $file_system}' |
        bench_add return-setup
    local columns='changed|s until protected|of them until the copy began|MiB on the wire'
    bench_table return "$columns|disks: to compare|sent|memory" '
        def mib: if . == null then "-" else . / 1048576 | n(1) end;
        [.changed, .protected_s, .connected_s, (.wire_bytes | mib), (.disks_to_compare_bytes | mib),
         (.disks_sent_bytes | mib), (.memory_bytes | mib)]'
    say 'disks and memory: MiB that the status told of while it looked; the wire: both ways, frames, checkpoints and'
    say 'heartbeats included. 4 KiB change in each changed extent of 1 MiB.'
    say 'Times are from the start of the backup'\''s daemon. first: nothing was known of the images.'
}
