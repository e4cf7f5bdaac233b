# The frame of a fault trial. A script under scripts/faults sources this, defines its fault, and calls run_trials "$@".
# Every trial has a protected pair (the last trial's, if it is healthy again), a client that checks its own history, one
# of several connections on shared keys whose answers some order must explain, a capture on the client's bridge, and the
# cell's history. The fault strikes at a moment drawn by the seed. The verdict comes from evidence seen outside the
# hosts.
#
# A script defines
#   fault_about        one line for --help
#   inject             the fault; calls mark_fault at its moment
#   settle             waits until the pair has come to rest; calls `violation TEXT` when it does not, and
#                      `lose_clients` when the VM is allowed to be gone
# and may define
#   parse_option       takes an option of its own: sets option_words to the number of words taken, or returns 1
#   prepare            brings up what the trial starts from (default: a protected pair)
#   restore            brings the pair back to health for the next trial (default: pair_heal)
#   can_run            whether it can be tried here; says why not (default: pair_can_run)
# and may set, before run_trials or in inject:
#   expect_client      survives (default) | lost (the VM is allowed to be gone) | any
#   expect_gap_ms      the longest time that the client may wait for an answer: a number | any (default)
#   expect_switches    changes of speaker: a number | any (default)
#   expect_exits       exit codes of ftd that are in order besides 0 and those it was killed with (default: none)
#   fresh_pair         1: every trial starts a new pair
#   fault_guest        the guest that it needs, whatever the others of a campaign run with
#
# From the environment: FT_TRIALS, a file to which each trial adds what became of it, as a line of JSON.

set -euo pipefail
FTD_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$FTD_ROOT/scripts/lib/setup.sh"
source "$FTD_ROOT/scripts/lib/pair.sh"

fault_name=$(basename "$0")
expect_client=survives
expect_gap_ms=any
expect_switches=any
expect_exits=''
fresh_pair=0
# Exit status of a process that SIGKILL ended, as the shell counts it.
faults_killed=137
# How long the client talks before the fault at least, and at most how much longer; after it, at least.
faults_before_ms=150 faults_jitter_ms=400 faults_after_ms=300
# An answer that takes longer does not come: the connection is lost.
faults_answer_s=${FT_ANSWER_S:-120}
# A write to this host's storage that takes longer has disturbed the trial: whatever was late in it may be so for that.
faults_storage_ms=2000
# A trial that was disturbed is done again, so often.
faults_again=2
# Of what must happen; a machine that is busy is no violation.
faults_patience_s=${FT_PATIENCE_S:-300}

parse_option() { return 1; }
prepare() { pair_healthy || { pair_down && pair_up "$faults_patience_s"; }; }
restore() { pair_heal "$faults_patience_s"; }
can_run() { pair_can_run || { echo ' (--engine soft needs none)' && return 1; }; }

# can_run_linux: the same for a fault whose guest is Linux, whoever insists on KVM apart.
can_run_linux() {
    [[ ${FT_MODE:-} == replay || ${FT_ENGINE:-} || $(host_kvm) != software ]] ||
        { echo 'KVM is emulated here, Linux takes minutes to boot on it: --engine soft, or --engine kvm' && return 1; }
    pair_can_run || { echo ' (--engine soft needs none)' && return 1; }
}

faults_usage() {
    cat <<EOF
scripts/faults/$fault_name: ${fault_about:-}

usage: scripts/faults/$fault_name [--count N] [--seed S] [--guest G] [--mode M] [--engine E] [--arbiter A] [--keep]
       ${fault_options:-}

  --count N     trials (default 10)
  --seed S      seed of the first trial (default 1); trial i has seed S+i-1; to repeat one trial, use
                --count 1 --seed ITS-SEED
  --guest G     the guest in the VM: builtin, linux (a small kernel), debian (Debian's own), or debian-disk (a whole
                Debian on its disk; its client is PostgreSQL's); default ${FT_GUEST:-builtin}
  --mode M      the way of protection: checkpoint or replay; default ${FT_MODE:-checkpoint}
  --engine E    the engine that executes it: kvm (default) or soft; replay mode is always on soft
  --arbiter A   the pair's arbiter: file (shared storage), service (ftd arbiter on a machine of its own), majority
                (three of them there, of which two decide), or etcd (one member there); default $FT_ARBITER
  --keep        keep the run's directory even when all is well
${fault_options_help:-}
One line a trial and a total on stdout. Exit status: 0 no violation, 1 violations (the run's directory is kept and
named), 2 usage, 77 cannot run here (the reason is printed).
EOF
}

# random_between VARIABLE LOW HIGH: the next number of the trial's seed.
random_between() { printf -v "$1" '%s' $(($2 + (RANDOM << 15 | RANDOM) % ($3 - $2 + 1))); }

# sleep_ms N
sleep_ms() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }

# mark_fault: now is the moment of the fault.
mark_fault() { now_us fault_us; }

# violation TEXT...: the trial fails; it goes on, to see everything.
violation() { violations+=("$*"); }

# harm TEXT...: the same, of what may never happen, however slow the host is.
harm() { harmed=1 && violation "$@"; }

# detail TEXT...: what was drawn in this trial, for its line.
detail() { details+=" $*"; }

# build_shim: from now on a host's kernel can be made to refuse what ftd asks of it (host_fail).
build_shim() {
    setup_need shim
    cc -shared -fPIC -O2 -o "$run_dir/shim.so" "$FTD_ROOT/scripts/faults/shim/shim.c" -ldl || return 1
    export FT_SHIM=$run_dir/shim.so
}

pair_healthy() { host_is_up a && pair_is_protected; }

run_trials() {
    local count=10 seed=1
    while (($#)); do
        case $1 in
        --count) count=${2:?} && shift 2 ;;
        --seed) seed=${2:?} && shift 2 ;;
        --guest) export FT_GUEST=${2:?} && shift 2 ;;
        --mode) export FT_MODE=${2:?} && shift 2 ;;
        --engine) export FT_ENGINE=${2:?} && shift 2 ;;
        --arbiter) export FT_ARBITER=${2:?} && shift 2 ;;
        --keep) keep_run_dir=1 && shift ;;
        -h | --help) faults_usage && exit 0 ;;
        *)
            option_words=0
            parse_option "$@" || { faults_usage >&2 && exit 2; }
            shift "$option_words"
            ;;
        esac
    done
    [[ -z ${fault_guest:-} ]] || export FT_GUEST=$fault_guest
    # It boots for minutes, and for more beside other work.
    [[ ${FT_GUEST:-} != debian-disk ]] || faults_patience_s=${FT_PATIENCE_S:-1200}
    [[ $count =~ ^[1-9][0-9]*$ && $seed =~ ^[0-9]+$ && ${FT_MODE:-replay} =~ ^(checkpoint|replay)$ &&
        ${FT_ENGINE:-kvm} =~ ^(kvm|soft)$ && $FT_ARBITER =~ ^(file|service|majority|etcd)$ ]] ||
        { faults_usage >&2 && exit 2; }
    setup_need network
    [[ $FT_ARBITER != etcd ]] || setup_need etcd
    local missing
    net_preflight ||
        { say_error "SKIPPED $fault_name: this needs root, network namespaces and /dev/net/tun" && exit 77; }
    missing=$(can_run) || { say_error "SKIPPED $fault_name: ${missing//$'\n'/}" && exit 77; }
    setup_binaries
    make_run_dir "$fault_name"
    net_up

    local trial failed=0
    take_overs_ms=() gaps_ms=()
    # It does not see the trouble that a fault makes: the storage of that is elsewhere.
    spawn storage "$FTD_ROOT/scripts/lib/storage-watch" "$run_dir/storage"
    for ((trial = 1; trial <= count; trial++)); do
        run_trial_undisturbed "$trial" "$count" $((seed + trial - 1)) || ((++failed))
    done
    printf '%s: %d trials from seed %d, %d ok, %d with violations%s%s\n' "$fault_name" "$count" "$seed" \
        $((count - failed)) "$failed" "$(spread '; take-over' "${take_overs_ms[@]}")" \
        "$(spread '; gap' "${gaps_ms[@]}")"
    if ((failed)); then
        keep_run_dir=1
        exit 1
    fi
}

# spread LABEL NUMBER...: minimum, median and maximum, in ms.
spread() {
    local label=$1 sorted
    shift
    (($#)) || return 0
    mapfile -t sorted < <(printf '%s\n' "$@" | sort -n)
    printf '%s %s/%s/%s ms' "$label" "${sorted[0]}" "${sorted[$# / 2]}" "${sorted[-1]}"
}

# run_trial_undisturbed NUMBER COUNT SEED: a trial that fails while this host's storage hangs is done again, unless it
# did harm.
run_trial_undisturbed() {
    local again began worst_ms
    for ((again = faults_again; ; again--)); do
        now_us began
        harmed=0
        run_trial "$@" && return
        worst_ms=$(storage_worst_ms "$began")
        ((worst_ms > faults_storage_ms && again > 0 && harmed == 0)) || return 1
        printf '    disturbed: a write to the storage of this host took %d ms; once more\n' "$worst_ms"
        mv "$run_dir/trial-$1" "$run_dir/trial-$1-disturbed-$again"
    done
}

# storage_worst_ms SINCE: the longest time that a write took, of those that were under way since then.
storage_worst_ms() {
    local now
    now_us now
    awk -v since="$1" -v now="$now" '
        function saw(ended, ms) { if (ended >= since && ms > worst) worst = ms }
        /^begun / { begun = $2; writes = 1; next }
        { saw(begun + $1 * 1000, $1); writes = 0 }
        END { if (writes) saw(now, int((now - begun) / 1000)); print worst + 0 }' "$run_dir/storage.log"
}

# run_trial NUMBER COUNT SEED: fails on a violation.
run_trial() {
    local number=$1 count=$2 seed=$3 wait_ms
    violations=() details='' take_over_ms='' gap_ms='' fault_us='' trial_faults=("$fault_name") own_take_overs_ms=()
    RANDOM=$((seed % 32768))
    trial_seed=$seed
    trial_dir=$run_dir/trial-$number
    mkdir -p "$trial_dir"
    say_passing "trial $number/$count seed $seed: preparing"
    ((fresh_pair == 0)) || pair_down
    if ! prepare; then
        violation "trouble: the pair did not get ready: $(pair_explain 2>&1 | tr -s ' \n' ' ')"
    elif ! watch_start; then
        violation "trouble: no client or capture: $(tail -qn 1 "$trial_dir"/{client,wire,owners}.log 2>&1 |
            tr '\n' ' ')"
        watch_end || true
    else
        random_between wait_ms "$faults_before_ms" $((faults_before_ms + faults_jitter_ms))
        sleep_ms "$wait_ms"
        say_passing "trial $number/$count seed $seed: $fault_name"
        inject
        settle
        sleep_ms "$faults_after_ms"
        watch_end
        judge
        judge_shared
    fi
    local text="trial $number/$count seed $seed $fault_name$details "
    [[ -z $take_over_ms ]] || { text+=" take-over $take_over_ms ms" && own_take_overs_ms+=("$take_over_ms"); }
    take_overs_ms+=("${own_take_overs_ms[@]}")
    [[ -z $gap_ms ]] || { text+=" gap $gap_ms ms" && gaps_ms+=("$gap_ms"); }
    note_trial
    if ((${#violations[@]})); then
        keep_run_dir=1
        printf '%s%s  %sVIOLATION%s\n' "$say_line" "$text" "$say_red" "$say_off"
        printf '    %s\n' "${violations[@]:0:8}"
        ((${#violations[@]} <= 8)) || printf '    and %d more\n' $((${#violations[@]} - 8))
        printf '    see %s\n' "$trial_dir"
        save_logs
        # Nothing that follows should build on a state that is already wrong.
        pair_down || true
        return 1
    fi
    printf '%s%s  %sok%s\n' "$say_line" "$text" "$say_green" "$say_off"
    # A pair that does not heal is a violation of its own, told by the next trial's beginning or here by the last.
    if ! restore; then
        violation "the pair was not protected again within $faults_patience_s s"
        printf '    %s\n' "VIOLATION: ${violations[*]}"
        note_trial
        keep_run_dir=1
        mkdir -p "$trial_dir"
        save_logs
        pair_down || true
        return 1
    fi
    [[ $keep_run_dir == 1 ]] || rm -rf -- "$trial_dir"
}

# note_trial: adds it to FT_TRIALS; one that did not heal is there twice, and the later line counts.
note_trial() {
    [[ -n ${FT_TRIALS:-} ]] || return 0
    local primary metrics='' file
    ! primary=$(pair_primary) || metrics=$(ctl "$primary" metrics 2>/dev/null) || metrics=''
    for file in client shared; do
        grep -s '"connections"' "$trial_dir/$file.log" | tail -n 1 >"$trial_dir/$file.json" || true
    done
    [[ -e $trial_dir/capture.json ]] || echo '{}' >"$trial_dir/capture.json"
    jq -cn --arg fault "$fault_name" --argjson seed "$trial_seed" --arg detail "${details# }" --arg dir "$trial_dir" \
        --arg take_overs_ms "${own_take_overs_ms[*]}" --arg gap_ms "$gap_ms" --arg struck "${trial_faults[*]}" \
        --arg metrics "$metrics" --slurpfile client "$trial_dir/client.json" \
        --slurpfile shared "$trial_dir/shared.json" --slurpfile capture "$trial_dir/capture.json" '
        def metric($name; $part):
            [$metrics | split("\n")[] | select(startswith($name) and contains($part)) | split(" ")[-1] | tonumber][0];
        {
            $fault, $seed, $detail, $dir, violations: $ARGS.positional, struck: ($struck | split(" ")),
            take_overs_ms: [$take_overs_ms | scan("[0-9]+") | tonumber], gap_ms: ($gap_ms | tonumber? // null),
            client: $client[0], shared: $shared[0],
            frames: ([$capture[0].speakers[]?.bursts[].frames] | add // 0),
            hold_us_p50: metric("ftd_hold_us{"; "\"0.5\""), hold_us_p99: metric("ftd_hold_us{"; "\"0.99\""),
            sent_bytes: metric("ftd_sent_bytes_total{"; "")
        }' --args "${violations[@]}" >>"$FT_TRIALS"
}

# The next trial goes on in the same files; this keeps them as they are now.
save_logs() {
    local host
    for host in a b; do
        cp "$run_dir/$host/ftd.log" "$trial_dir/$host-ftd.log" 2>/dev/null || true
        host_status "$host" . >"$trial_dir/$host-status.json" 2>/dev/null || true
    done
    arbiter_save "$trial_dir"
}

# watch_start: the capture, the cell's history and the client are running, the client with its first answers.
watch_start() {
    local name=${trial_dir##*/}
    spawn "$name/wire" ip netns exec "$(net_ns w)" "$FTD_BIN_DIR/ft-wire" capture --mac "$pair_mac" \
        --port "${pair_node[a]}=to-a" --port "${pair_node[b]}=to-b" --out "$trial_dir/capture.json"
    arbiter_watch "$name/owners" "$pair_vm" "$trial_dir/owners.jsonl"
    wait_until "$faults_patience_s" grep -qs ready "$trial_dir/wire.log" || return 1
    wait_until "$faults_patience_s" grep -qs ready "$trial_dir/owners.log" || return 1
    # A kernel that boots is protected before its service is up.
    wait_until "$faults_patience_s" service_answers || return 1
    pair_start_client "$name/client" "$trial_dir/client.stop" --timeout-s "$faults_answer_s"
    if shares_keys; then
        spawn "$name/shared" ip netns exec "$(net_ns c)" "$FTD_BIN_DIR/ft-client" shared \
            --addr "$net_vm_address:$pair_client_port" --seed "$trial_seed" --timeout-s "$faults_answer_s" \
            --history "$trial_dir/shared.history" --stop-file "$trial_dir/client.stop" \
            --gone-file "$trial_dir/client.gone"
        wait_until "$faults_patience_s" grep -qs ready "$trial_dir/shared.log" || return 1
    fi
    wait_until "$faults_patience_s" client_has_answers 20
}

# Whether the guest's service is the key-value one.
shares_keys() { [[ ${FT_GUEST:-} != debian-disk ]]; }

service_answers() { pair_service_answers 2 >>"$trial_dir/calls.log" 2>&1; }

# client_has_answers N: it had at least that many.
client_has_answers() {
    local ops
    ops=$(tail -n 1 "$trial_dir/client.log" 2>/dev/null | jq -r '.ops // 0' 2>/dev/null) || return 1
    [[ $ops =~ ^[0-9]+$ ]] && ((ops >= $1))
}

# client_goes_on SECONDS: new answers came.
client_goes_on() {
    local ops
    ops=$(tail -n 1 "$trial_dir/client.log" 2>/dev/null | jq -r '.ops // 0' 2>/dev/null) || ops=0
    wait_until "$1" client_has_answers $((ops + 20))
}

# lose_clients: the VM's memory is gone, and the connections with it. What was answered until now still has to be right.
lose_clients() {
    local shared=${trial_dir##*/}/shared
    touch "$trial_dir/client.gone"
    end_spawned "${trial_dir##*/}/client" KILL
    wait_until "$faults_patience_s" has_ended "$shared" || violation "trouble: ${shared##*/} did not end"
}

# end_clients: they have read everything back.
end_clients() {
    local client
    touch "$trial_dir/client.stop"
    for client in "${trial_dir##*/}"/{client,shared}; do
        wait_until "$faults_patience_s" has_ended "$client" ||
            { violation "trouble: ${client##*/} did not end" && end_spawned "$client" KILL; }
    done
}

watch_end() {
    local name=${trial_dir##*/}
    end_clients
    end_spawned "$name/wire"
    end_spawned "$name/owners"
    [[ $(spawned_exit "$name/owners") == 0 ]] || violation "trouble: the cell's history is not whole: $(tail -n 1 \
        "$trial_dir/owners.log")"
}

judge() {
    judge_client
    judge_wire
    judge_daemons
}

# The client's history: I1, I3, I6 as the user sees them.
judge_client() {
    local summary survived lost wrong gap
    summary=$(grep acked_writes "$trial_dir/client.log" | tail -n 1) || true
    if [[ -z $summary ]]; then
        violation "trouble: ft-client left no summary, see $trial_dir/client.log"
        return
    fi
    read -r survived lost wrong gap < <(
        jq -r '"\(.connection_survived) \(.acked_lost) \(.wrong_answers) \(.client_gap_ms | floor)"' <<<"$summary")
    gap_ms=$gap
    [[ $lost == 0 ]] || harm "$lost acknowledged writes were lost"
    [[ $wrong == 0 ]] || harm "$wrong answers were wrong"
    [[ $expect_client != survives || $survived == true ]] || violation "the client's connection did not survive"
    [[ $expect_gap_ms == any ]] || ((gap <= expect_gap_ms)) ||
        violation "the client waited $gap ms for an answer, longer than $expect_gap_ms ms"
    [[ $expect_client != survives ]] || ! shares_keys || while IFS= read -r lost; do
        violation "a connection on the shared keys did not survive: $lost"
    done < <(grep '"connections"' "$trial_dir/shared.log" | jq -r '.errors[]')
}

# The history of the shared keys, of whatever became of the VM: it is linearizable, up to the last answer.
judge_shared() {
    local broken summary
    shares_keys || return 0
    summary=$(grep '"connections"' "$trial_dir/shared.log" | tail -n 1) || true
    if [[ -z $summary ]]; then
        violation "trouble: no verdict on the shared keys, see $trial_dir/shared.log"
        return
    fi
    while IFS= read -r broken; do
        harm "no order of the operations explains the answers of key $broken; see $trial_dir/shared.history"
    done < <(jq -r '.broken[]' <<<"$summary")
}

# frames_between FROM_US TO_US: how many frames of the VM were heard in that time.
frames_between() {
    jq --argjson from "$1" --argjson to "$2" '
        [.speakers[].bursts[] | select(.last_ns / 1000 > $from and .first_ns / 1000 < $to) | .frames] | add // 0' \
        "$trial_dir/capture.json"
}

# Who spoke, and who had the right to: I1, I2.
judge_wire() {
    local verdict text switches
    verdict=$("$FTD_BIN_DIR/ft-wire" check --capture "$trial_dir/capture.json" --owners "$trial_dir/owners.jsonl" \
        2>"$trial_dir/check.log") || true
    if [[ -z $verdict ]]; then
        violation "trouble: no verdict on the wire, see $trial_dir/check.log"
        return
    fi
    echo "$verdict" >"$trial_dir/verdict.json"
    while IFS= read -r text; do
        harm "$text"
    done < <(jq -r '.violations[] | "wire, \(.rule): \(.text)"' <<<"$verdict")
    switches=$(jq .switches <<<"$verdict")
    [[ $expect_switches == any || $switches == "$expect_switches" ]] ||
        violation "the speaker changed $switches times, not $expect_switches"
    # From the fault to the first frame of whoever spoke next.
    [[ -z $fault_us ]] || take_over_ms=$(jq -r --argjson fault "$fault_us" '
        [.speakers[1:][] | select(.first_ns / 1000 >= $fault)][0]
        | if . then (.first_ns / 1000 - $fault) / 1000 | floor else empty end' "$trial_dir/capture.json")
}

# What the daemons left behind: I7.
judge_daemons() {
    local host code
    for host in a b; do
        ! grep -qs 'panicked at' "$run_dir/$host/ftd.log" || harm "host $host: ftd panicked, see its log"
        ! grep -qs 'refused a system call' "$run_dir/$host/ftd.log" ||
            harm "host $host: a thread asked for what its kind may not, see ftd's log"
        code=$(host_exit_code "$host") || continue
        [[ " 0 $faults_killed $expect_exits " == *" $code "* ]] || violation "host $host: ftd ended with $code"
    done
}
