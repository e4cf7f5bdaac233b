# Runs a list of checks in their order, even after a failure, and sums up. Sourced.
#
# A step is a shell command: status 0 is passed, 77 skipped (its output says why), anything else failed. Its output is
# in $steps_log_dir/NAME.log. A step has the machine to itself, unless it was added as one that may run beside others.
[[ -z ${steps_sourced:-} ]] || return 0
steps_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"
: "${FTD_ROOT:=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)}"

steps_names=()
declare -A steps_about steps_command steps_beside steps_result steps_seconds steps_note
steps_log_dir=${CARGO_TARGET_DIR:-$FTD_ROOT/target}/logs
# No step takes longer when nothing hangs, on a slow and busy machine as well.
steps_time_limit=${FT_STEP_TIME_LIMIT:-60m}
steps_verbose=0
# How many run at the same time, of those that may run beside others.
steps_at_once=1

# step [--beside] NAME ABOUT COMMAND: adds a step. The command runs in the repository's directory, in a shell with
# errexit. --beside: it may run at the same time as others of its kind, since most of it is waiting.
step() {
    local beside=0
    [[ $1 != --beside ]] || { beside=1 && shift; }
    steps_names+=("$1")
    steps_beside[$1]=$beside
    steps_about[$1]=$2
    steps_command[$1]=$3
}

# step_for_each_fault [--as SUFFIX ABOUT] ARGUMENT...: a step for each script of scripts/faults, with these arguments.
# What a script does in several ways has a step for each. SUFFIX and ABOUT tell them from others of the same scripts.
step_for_each_fault() {
    local script name about reached suffix='' how='' beside
    [[ ${1:-} != --as ]] || { suffix=-$2 how=", $3" && shift 3; }
    for script in "$FTD_ROOT"/scripts/faults/*; do
        [[ -x $script && ! -d $script ]] || continue
        beside=(--beside)
        # A fault that asks for a quiet machine.
        if grep -q '^# campaign only:' "$script"; then
            ((${steps_campaign:-0})) || continue
            beside=()
        fi
        name=${script##*/}
        about=$(sed -n "s/^fault_about='\(.*\)'$/\1/p" "$script")
        if [[ $name == cut-link ]]; then
            for reached in both one none; do
                step "${beside[@]}" "$name-$reached$suffix" "$about (here: $reached)$how" \
                    "scripts/faults/$name --reached-by $reached $*"
            done
        else
            step "${beside[@]}" "$name$suffix" "$about$how" "scripts/faults/$name $*"
        fi
    done
}

steps_list() {
    local name
    for name in "${steps_names[@]}"; do
        printf '%-24s %s\n' "$name" "${steps_about[$name]}"
    done
}

steps_exist() {
    local name
    for name in "$@"; do
        [[ -n ${steps_about[$name]:-} ]] || { say_error "there is no step \`$name\`; --list names them"; return 1; }
    done
}

# steps_run NAME...: runs these, in the order of the list.
steps_run() {
    local name beside wanted=" $* "
    mkdir -p "$steps_log_dir"
    # Nobody can read the output of two as it comes.
    ((steps_verbose == 0)) || steps_at_once=1
    for name in "${steps_names[@]}"; do
        [[ $wanted == *" $name "* ]] || continue
        beside=${steps_beside[$name]}
        steps_await $((beside ? steps_at_once - 1 : 0))
        step_start "$name"
        ((beside)) || steps_await 0
    done
    steps_await 0
}

# Of the steps that run.
declare -A steps_pid=() steps_started=()
steps_tail=

step_start() {
    local log=$steps_log_dir/$1.log started
    say_title "== $1: ${steps_about[$1]}"
    now_us started
    # In the background, so that a signal is taken at once; timeout passes it on to all that the step has started.
    (
        cd "$FTD_ROOT" || exit
        exec timeout --kill-after=30 "$steps_time_limit" bash -euo pipefail -c "${steps_command[$1]}"
    ) >"$log" 2>&1 </dev/null &
    steps_pid[$1]=$! steps_started[$1]=$started
    if [[ $steps_verbose == 1 ]]; then
        tail -n +1 -f --pid="${steps_pid[$1]}" "$log" >&2 &
        steps_tail=$!
    fi
}

# steps_await COUNT: until no more than so many run; each that ends is judged.
steps_await() {
    local name
    while ((${#steps_pid[@]} > $1)); do
        for name in "${!steps_pid[@]}"; do
            kill -0 "${steps_pid[$name]}" 2>/dev/null || step_judge "$name"
        done
        ((${#steps_pid[@]} <= $1)) || { steps_show && sleep 0.2; }
    done
}

# The last line of each that runs, where there is a terminal and nothing else says how it goes.
steps_show() {
    local name line=''
    [[ $steps_verbose == 0 && -n $say_line ]] || return 0
    for name in "${!steps_pid[@]}"; do
        line+="   $name: $(tail -c 400 "$steps_log_dir/$name.log" | tr '\r' '\n' | tail -n 1)"
    done
    say_passing "$line"
}

# step_judge NAME: what became of a step that has ended.
step_judge() {
    local name=$1 log=$steps_log_dir/$1.log status=0 ended
    wait "${steps_pid[$name]}" || status=$?
    [[ -z $steps_tail ]] || wait "$steps_tail" || true
    now_us ended
    steps_seconds[$name]=$(((ended - steps_started[$name]) / 1000000))
    unset "steps_pid[$name]"
    say_passing ''
    steps_note[$name]=$(step_note "$log")
    { grep -aE '^ *SKIPPED ' "$log" || true; } | sort -u | while IFS= read -r line; do say_warn "   $line"; done
    case $status in
    0)
        steps_result[$name]=passed
        say_ok "   $name passed in ${steps_seconds[$name]} s  ${steps_note[$name]}"
        ;;
    77)
        steps_result[$name]=skipped
        steps_note[$name]=$(tail -n 1 "$log")
        say_warn "   $name skipped"
        ;;
    *)
        steps_result[$name]=failed
        steps_note[$name]="status $status, see $log"
        ((status != 124)) || steps_note[$name]="not done within $steps_time_limit, see $log"
        [[ $steps_verbose == 1 ]] || step_failure "$log" >&2
        say_error "   $name failed after ${steps_seconds[$name]} s: ${steps_note[$name]}"
        ;;
    esac
}

# Ends those that run, and waits until they have cleaned up.
steps_kill() {
    ((${#steps_pid[@]})) || return 0
    kill "${steps_pid[@]}" 2>/dev/null || true
    wait "${steps_pid[@]}" || true
}
on_exit steps_kill

# What a failed step's log says about the failure: of tests which ones failed and where, else the end.
step_failure() {
    if grep -aq '^test .* FAILED$' "$1"; then
        grep -aE -A4 "^test .* FAILED$|panicked at|^error: |process didn't exit successfully" "$1" |
            grep -avE '^(--|test .* ok|stack backtrace:)$' | cut -c 1-300 | head -n 100
    else
        tail -n 60 "$1"
    fi
}

# What a passed step has to tell: tests and trials, counted.
step_note() {
    awk '
        /^test result: / { tests += $4 }
        /^ *SKIPPED / { skipped[$0] = 1 }
        /^[a-z-]+: [0-9]+ trials from seed / { trials = $0; sub(/^[a-z-]+: /, "", trials) }
        END {
            if (tests) note = tests " tests"
            for (line in skipped) skips++
            if (skips) note = note (note ? ", " : "") skips " skipped in it"
            print trials ? trials : note
        }' "$1"
}

# steps_sum_up: the table, and on stdout the last line. Fails if a step failed.
steps_sum_up() {
    local name passed=0 failed=0 skipped=0
    {
        printf 'step\tresult\ttime\t\n'
        for name in "${steps_names[@]}"; do
            [[ -n ${steps_result[$name]:-} ]] || continue
            printf '%s\t%s\t%s s\t%s\n' \
                "$name" "${steps_result[$name]}" "${steps_seconds[$name]}" "${steps_note[$name]}"
        done
    } | say_table
    for name in "${!steps_result[@]}"; do
        case ${steps_result[$name]} in
        passed) ((++passed)) ;;
        failed) ((++failed)) ;;
        skipped) ((++skipped)) ;;
        esac
    done
    # Once more, where whoever sees nothing but the end finds it.
    for name in "${steps_names[@]}"; do
        [[ ${steps_result[$name]:-} == failed ]] || continue
        say_error "== $name: ${steps_note[$name]}"
        step_failure "$steps_log_dir/$name.log" | tail -n 40 >&2
    done
    local line="$passed passed, $failed failed"
    ((skipped == 0)) || line+=", $skipped skipped"
    printf '%s\n' "$line"
    ((failed == 0))
}
