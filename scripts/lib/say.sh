# Output of the scripts: steps with the time they took, tables, failures. Colour only on a terminal.
# Everything goes to stderr, so that stdout stays free for data (--json). Sourced.
[[ -z ${say_sourced:-} ]] || return 0
say_sourced=1

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
    say_bold=$'\e[1m' say_dim=$'\e[2m' say_red=$'\e[31m' say_green=$'\e[32m' say_yellow=$'\e[33m' say_off=$'\e[0m'
    say_line=$'\r\e[K'
    read -r _ say_columns < <(stty size <&2 2>/dev/null) || say_columns=80
    ((say_columns > 20)) || say_columns=80
else
    say_bold='' say_dim='' say_red='' say_green='' say_yellow='' say_off='' say_line=''
fi
say_quiet=${say_quiet:-0}

# The time of day in microseconds, without a process.
now_us() { printf -v "$1" '%s' "${EPOCHREALTIME//[!0-9]/}"; }

say_started_us=0
now_us say_started_us

# say TEXT...: a line.
say() { [[ $say_quiet == 1 ]] || printf '%s%s\n' "$say_line" "$*" >&2; }

# say_title TEXT...: a line that stands out.
say_title() { say "$say_bold$*$say_off"; }

# say_when US TEXT...: a line with the seconds that had passed since the script began at that time of day.
say_when() {
    local since=$((($1 - say_started_us) / 1000))
    shift
    say "$(printf '%s%8.3f s%s  %s' "$say_dim" "${since}e-3" "$say_off" "$*")"
}

# say_at TEXT...: the same, now.
say_at() {
    local now
    now_us now
    say_when "$now" "$@"
}

# say_passing TEXT...: progress that the next line replaces; nothing where there is no terminal.
say_passing() {
    [[ $say_quiet == 1 || -z $say_line ]] ||
        printf '%s%s%.*s%s' "$say_line" "$say_dim" "$((say_columns - 1))" "$*" "$say_off" >&2
}

say_ok() { say "${say_green}$*${say_off}"; }
say_warn() { printf '%s%s%s%s\n' "$say_line" "$say_yellow" "$*" "$say_off" >&2; }
say_error() { printf '%s%s%s%s\n' "$say_line" "$say_red" "$*" "$say_off" >&2; }

# die TEXT...: says why and ends the script.
die() {
    say_error "$*"
    exit 1
}

# say_table: aligns lines of tab-separated cells from stdin; the first line is the head. Where `column` could not be
# installed, they are not aligned.
say_table() {
    [[ $say_quiet == 1 ]] && return 0
    { if command -v column >/dev/null; then column -t -s $'\t' -o '  '; else cat; fi; } | {
        IFS= read -r head
        printf '%s%s%s\n' "$say_bold" "$head" "$say_off"
        cat
    } >&2
}
