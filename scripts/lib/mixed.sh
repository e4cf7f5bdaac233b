# The mixed campaign: for a time, trials of the fault scripts, with what is drawn from one seed: which script, which
# arbiter, which engine. Half of the trials are lives of a pair under many faults. Sourced by scripts/campaign.
[[ -z ${mixed_sourced:-} ]] || return 0
mixed_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"
: "${FTD_ROOT:=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)}"

# What finds most, since states follow each other that no script thought of.
mixed_life=fault-after-fault
mixed_stopped=0 mixed_child=''
# What is drawn from, and where the report goes: the caller's to say.
mixed_scripts=() mixed_report=/dev/null

# mixed_draw VARIABLE WORD...: one of these.
mixed_draw() {
    local -n drawn=$1
    shift
    drawn=${*:$((RANDOM % $# + 1)):1}
}

mixed_stop() {
    mixed_stopped=1
    [[ -z $mixed_child ]] || kill -s TERM "$mixed_child" 2>/dev/null || true
}

# mixed_left UNTIL_US: what is left of the time.
mixed_left() {
    local now left_s
    now_us now
    left_s=$((($1 - now) / 1000000))
    ((left_s > 0)) || left_s=0
    printf '%d:%02d:%02d left' $((left_s / 3600)) $((left_s / 60 % 60)) $((left_s % 60))
}

# mixed_run SECONDS SEED ARBITER|mixed OPTION...: trials with these options until the time is over, or a signal comes;
# then the report, in the file mixed_report, and as a table. In mixed_scripts: what is drawn from. Fails if a trial had
# a violation.
mixed_run() {
    local seconds=$1 first_seed=$2 kind=$3 seed=$2 until_us began_us now script arbiter engine
    shift 3
    make_run_dir campaign
    trap mixed_stop INT TERM HUP
    RANDOM=$((first_seed % 32768))
    now_us began_us
    until_us=$((began_us + seconds * 1000000))
    now=$began_us
    while ((now < until_us && mixed_stopped == 0)); do
        mixed_draw script "${mixed_scripts[@]}"
        [[ " ${mixed_scripts[*]} " != *" $mixed_life "* ]] || mixed_draw script "$script" "$mixed_life"
        arbiter=$kind
        [[ $kind != mixed ]] || mixed_draw arbiter file service majority etcd
        # One of five is on the software engine, where none was asked for.
        mixed_draw engine '' '' '' '' '--engine soft'
        [[ " $* " != *' --engine '* && " $* " != *' --mode '* ]] || engine=''
        # shellcheck disable=SC2086  # two words
        mixed_trial "$until_us" "$script" --count 1 --seed "$seed" --arbiter "$arbiter" $engine "$@"
        ((++seed))
        now_us now
    done
    mixed_sum_up "$first_seed" "$seconds" $(((now - began_us) / 1000000))
}

# mixed_trial UNTIL_US SCRIPT OPTION...: each of its lines as it comes, and what became of it as one of the trials.
mixed_trial() {
    local until_us=$1 script=$2 again="scripts/faults/$2 ${*:3}" line='' last='' lines code=0 result
    shift 2
    rm -f "$run_dir/trial.json"
    exec {lines}< <(FT_TRIALS=$run_dir/trial.json exec "$FTD_ROOT/scripts/faults/$script" "$@" 2>&1)
    mixed_child=$!
    # A signal may have come before the child was known.
    ((mixed_stopped == 0)) || mixed_stop
    while IFS= read -r line <&"$lines"; do
        [[ $line =~ ^[a-z-]+:\ [0-9]+\ trials ]] || { last=$line && say "$(mixed_left "$until_us")  $line"; }
    done
    exec {lines}<&-
    wait "$mixed_child" || code=$?
    mixed_child=''
    case $code in
    0) result=ok ;;
    77) result=skipped ;;
    *) result=violation ;;
    esac
    if ((mixed_stopped && code != 0)); then
        say "cut short: $again"
        return 0
    fi
    [[ $result != violation ]] || say_error "again by: $again"
    { [[ ! -e $run_dir/trial.json ]] || tail -n 1 "$run_dir/trial.json"; } |
        jq -c --null-input --arg fault "$script" --arg result "$result" --arg again "$again" --arg last "$last" \
            --argjson code "$code" '
            ([inputs][0] // {$fault, violations: (if $result == "violation" then ["ended with \($code): \($last)"]
                else [] end)}) + {$result, $again}' >>"$run_dir/trials.jsonl"
}

# mixed_sum_up SEED SECONDS RAN_SECONDS: the report.
mixed_sum_up() {
    touch "$run_dir/trials.jsonl"
    jq -n --argjson seed "$1" --argjson wanted_s "$2" --argjson ran_s "$3" -L "$FTD_ROOT/scripts/lib" \
        'include "campaign"; report($seed; $wanted_s; $ran_s)' <"$run_dir/trials.jsonl" >"$mixed_report"
    jq -r -L "$FTD_ROOT/scripts/lib" 'include "campaign"; fault_rows' "$mixed_report" | say_table
    jq -r -L "$FTD_ROOT/scripts/lib" 'include "campaign"; figure_rows' "$mixed_report" | say_table
    jq -r -L "$FTD_ROOT/scripts/lib" 'include "campaign"; violation_lines' "$mixed_report" >&2
    [[ $(jq .trials.violation "$mixed_report") == 0 ]]
}
