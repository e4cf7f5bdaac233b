# The README's tables that come from the bench: each stands between the marks `<!-- bench: begin NAME -->` and
# `<!-- bench: end NAME -->`, on lines of their own. Sourced.
[[ -z ${bench_readme_sourced:-} ]] || return 0
bench_readme_sourced=1
source "${BASH_SOURCE[0]%/*}/say.sh"
bench_readme_lib=$(cd "${BASH_SOURCE[0]%/*}" && pwd)

# bench_write_readme FIGURES README: puts tables of the figures between the marks; FIGURES is a file with the object
# that `scripts/bench --json` prints. All is written or nothing. A table whose figures were not all measured stays as it
# is; a mark that is missing is an error.
bench_write_readme() {
    local figures=$1 readme=$2
    if ! bench_readme_replace main "$figures" <"$readme" | bench_readme_replace soft "$figures" |
        bench_readme_replace replay "$figures" | bench_readme_replace disk "$figures" |
        bench_readme_replace return "$figures" | bench_readme_replace net "$figures" >"$readme.new"; then
        rm "$readme.new"
        die "$readme stays as it was"
    fi
    chmod --reference="$readme" "$readme.new"
    mv "$readme.new" "$readme"
}

# bench_readme_replace NAME FIGURES: stdin with the new table, on stdout.
bench_readme_replace() {
    local table
    table=$(jq -r -L "$bench_readme_lib" --arg name "$1" 'include "bench"; readme($name)' "$2") || return 1
    [[ -n $table ]] || say_warn "README, table $1: not all of it was measured, it stays as it is"
    table=$table awk -v begin="<!-- bench: begin $1 -->" -v end="<!-- bench: end $1 -->" '
        $0 == end { if (begun != 1 || ended++) exit 1; inside = 0 }
        !inside { print }
        $0 == begin {
            if (begun++) exit 1
            if (ENVIRON["table"] != "") { inside = 1; print "\n" ENVIRON["table"] "\n" }
        }
        END { if (begun != 1 || ended != 1) exit 1 }' ||
        { say_error "README, table $1: its marks are not there, each once: <!-- bench: begin $1 -->" && return 1; }
}
