# Two builds' figures, measured in turn. Input: {a: [object of scripts/bench, ...], b: [the same, ...]}, in the order of
# the rounds. Output: a line for each figure that both have in every round.

# What a row of a table is about, in words: everything but what was measured.
def subject:
    if type != "object" then "" else
        [(.ram_mib | numbers | "\(.) MiB"), (.pages | numbers | "\(.) pages"), (.epoch_ms | numbers | "\(.) ms"),
         (.kind, .figure, .way, .order, .work, .call | strings)] | join(", ") end;
# Conditions and counts, which are no figures of a build.
def is_measured: all(.[]; . as $name
    | ["load_average", "load_average_max", "busy_before_pct", "stolen_pct", "processors", "epochs", "ops", "rounds",
       "max", "ram_mib", "pages", "dirty_pages", "epoch_ms"] | index([$name]) == null);

# A figure by its name. Two rows about the same thing are told apart by their places.
def figures:
    . as $all
    # Single kills are what the take-over's spread is of.
    | [paths(numbers) | select((map(strings) | is_measured) and (.[0] | IN("kills", "golive_kills") | not))]
    | map(. as $path
        | {key: ([range($path | length) as $at | $path[$at]
            | if type == "string" then . else ($all | getpath($path[:$at + 1]) | subject) end
            | select(. != "")] | join(" ")), value: ($all | getpath($path)), path: $path})
    | (group_by(.key) | map({key: .[0].key, value: length}) | from_entries) as $count
    | map(if $count[.key] > 1 then .key += " #\(.path | map(numbers | tostring) | join("."))" else . end)
    | from_entries;

def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;

(.a | map(figures)) as $a | (.b | map(figures)) as $b
| $a[0] | keys_unsorted[] as $figure
| select(all($a[], $b[]; .[$figure] != null))
| [range($a | length) | {a: $a[.][$figure], b: $b[.][$figure]}] as $rounds
| [$rounds[] | select(.a > 0) | .b / .a] as $ratios
| select($ratios | length > 0)
| {$figure, a: ($rounds | map(.a) | median), b: ($rounds | map(.b) | median), ratio: ($ratios | median),
   least: ($ratios | min), most: ($ratios | max), rounds: ($rounds | length)}
# Every round the same way: of the same program, one figure in sixteen is so in five rounds.
| . + {sure: (.rounds > 4 and (.least > 1 or .most < 1))}
