# scripts/bench --compare: two builds in turn, so that what else the machine does falls on both alike. Sourced.
[[ -z ${bench_compare_sourced:-} ]] || return 0
bench_compare_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"

# bench_compare ROUNDS A B OPTION...: measures with the programs of A and those of B, with these options of
# scripts/bench, and leaves what it comes to in $run_dir/compared.jsonl.
bench_compare() {
    local rounds=$1 round side dir
    local -A builds=([a]=$(realpath "$2") [b]=$(realpath "$3"))
    shift 3
    for dir in "${builds[@]}"; do
        for side in ftd ftctl ft-bench ft-client; do [[ -x $dir/$side ]] || die "there is no $side in $dir"; done
    done
    for ((round = 1; round <= rounds; round++)); do
        # Each is first in every other round.
        local -a order=(a b)
        ((round % 2)) || order=(b a)
        for side in "${order[@]}"; do
            say_at "round $round of $rounds, ${side^^}: ${builds[$side]}"
            if ! FTD_BIN_DIR=${builds[$side]} "$FTD_ROOT/scripts/bench" --json "$@" \
                >"$run_dir/$side-$round.json" 2>"$run_dir/$side-$round.log"; then
                tail -n 20 "$run_dir/$side-$round.log" >&2
                die "the benchmark of ${builds[$side]} failed (above)"
            fi
        done
    done
    bench_compared "$run_dir" "$rounds" >"$run_dir/compared.jsonl"
    {
        printf '%s\t' figure A B 'B / A' 'least to most' && echo 'every round the same way'
        jq -r 'def n: if . >= 100 then round else . * 100 | round / 100 end;
            [.figure, (.a, .b | n), (.ratio | n), "\(.least | n) to \(.most | n)", (if .sure then "yes" else "" end)]
            | @tsv' "$run_dir/compared.jsonl"
    } | say_table
    say "medians of $rounds rounds, in turn; B / A is the median of the rounds' ratios"
}

# bench_compared DIRECTORY ROUNDS: of the rounds' figures there.
bench_compared() {
    local -a a=() b=()
    local round
    for ((round = 1; round <= $2; round++)); do
        a+=("$1/a-$round.json") b+=("$1/b-$round.json")
    done
    jq -nc --slurpfile a <(cat "${a[@]}") --slurpfile b <(cat "${b[@]}") '{$a, $b}' |
        jq -c -f "${BASH_SOURCE[0]%/*}/bench-compare.jq"
}
