# A script ends and removes all that it started or made: a stack of actions runs in reverse at any exit. Processes are
# known by pid only. Sourced.
[[ -z ${cleanup_sourced:-} ]] || return 0
cleanup_sourced=1
source "${BASH_SOURCE[0]%/*}/say.sh"

cleanup_actions=()
cleanup_pid=$BASHPID

# on_exit COMMAND ARGUMENT...: to be run at exit, last one first.
on_exit() {
    local action
    printf -v action '%q ' "$@"
    cleanup_actions+=("$action")
}

run_cleanup() {
    local status=$? index
    [[ $BASHPID == "$cleanup_pid" ]] || return "$status"
    # A second Ctrl-C must not leave the rest behind.
    trap '' INT TERM HUP
    for ((index = ${#cleanup_actions[@]} - 1; index >= 0; index--)); do
        eval "${cleanup_actions[index]}" || say_warn "clean-up failed: ${cleanup_actions[index]}"
    done
    cleanup_actions=()
    return "$status"
}

trap run_cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# make_run_dir NAME: creates run_dir, removed at exit unless keep_run_dir is 1. The name carries the pid; it is short,
# because the path of a Unix socket in it must stay below 108 bytes.
keep_run_dir=0
make_run_dir() {
    run_dir=$(mktemp -d "${TMPDIR:-/tmp}/ftd-$1-$$-XXXX")
    ((${#run_dir} < 80)) || die "the temporary directory's path is too long for Unix sockets in it: $run_dir"
    on_exit remove_run_dir
}

remove_run_dir() {
    if [[ $keep_run_dir == 1 ]]; then
        say "kept: $run_dir"
    else
        rm -rf --one-file-system -- "$run_dir"
    fi
}

# spawn NAME COMMAND ARGUMENT...: runs an external command in the background; $run_dir/NAME.log gets its output. Under
# processes/, NAME.pid holds its pid and, once it has ended, NAME.exit its exit status. It is killed at exit. One that
# had the name before and was killed has ended first: a VM's memory takes a while to be given back.
spawn() {
    local name=$1 base=$run_dir/processes/$1 log=$run_dir/$1.log
    wait_until 60 has_ended "$name" || die "$name runs already"
    shift
    mkdir -p "${base%/*}" "${log%/*}"
    rm -f "$base.pid" "$base.exit"
    (
        # A signal to the whole process group must not end this one before it has told how its child ended.
        trap - EXIT
        trap : HUP INT TERM
        "$@" >>"$log" 2>&1 </dev/null &
        pid=$! status=0
        echo "$pid" >"$base.pid.new" && mv "$base.pid.new" "$base.pid"
        wait "$pid" || status=$?
        while kill -0 "$pid"; do
            status=0
            wait "$pid" || status=$?
        done
        echo "$status" >"$base.exit.new" && mv "$base.exit.new" "$base.exit"
    ) 2>/dev/null &
    disown $!
    wait_until 60 test -s "$base.pid" || die "could not start $name"
    on_exit end_spawned "$name" KILL
}

spawned_pid() { cat "$run_dir/processes/$1.pid" 2>/dev/null; }
# The exit status of what has ended; nothing while it runs.
spawned_exit() { cat "$run_dir/processes/$1.exit" 2>/dev/null; }
is_running() { [[ -s $run_dir/processes/$1.pid && ! -e $run_dir/processes/$1.exit ]]; }
has_ended() { ! is_running "$1"; }

# signal_spawned NAME SIGNAL: the pid is ours as long as its waiter has not written the exit status.
signal_spawned() { is_running "$1" && kill -s "$2" "$(spawned_pid "$1")" 2>/dev/null; }

# end_spawned NAME [SIGNAL [SECONDS]]: asks it to end, and kills it if it does not within the time.
end_spawned() {
    is_running "$1" || return 0
    signal_spawned "$1" "${2:-TERM}" || true
    wait_until "${3:-60}" has_ended "$1" && return 0
    say_warn "$1 did not end on SIG${2:-TERM} within ${3:-60} s: killed"
    signal_spawned "$1" KILL || true
    wait_until 60 has_ended "$1"
}

# wait_until SECONDS COMMAND ARGUMENT...: repeats the command until it succeeds; fails when the time is over.
wait_until() {
    local now end asked=0
    now_us end
    end=$((end + $1 * 1000000))
    shift
    until "$@"; do
        now_us now
        ((now < end)) || return 1
        # What takes longer is asked less often: to ask costs the processors some milliseconds.
        if ((++asked < 20)); then sleep 0.01; else sleep 0.05; fi
    done
}
