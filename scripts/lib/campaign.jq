# The report of a mixed campaign: an object of its trials, and the tables of that object.

def count($result): map(select(.result == $result)) | length;
def results: {trials: length, ok: count("ok"), violation: count("violation"), skipped: count("skipped")};
# Smallest, median, largest of the numbers.
def spread: sort
    | if length == 0 then null else {count: length, min: .[0], median: .[length / 2 | floor], max: .[-1]} end;
def sum: add // 0;

def report($seed; $wanted_s; $ran_s):
    [inputs] as $all
    | [$all[] | .shared // empty] as $shared
    | {
        # Trial i, from 0, has this seed and i.
        seed: $seed, wanted_s: $wanted_s, ran_s: $ran_s,
        trials: ($all | results),
        faults: ($all | group_by(.fault) | map({fault: .[0].fault} + results)),
        # Each fault of a life counts; a script that is no life has one a trial.
        struck: ([$all[] | select(.result != "skipped") | .struck[]?] | group_by(.)
            | map({(.[0]): length}) | add // {}),
        operations: ([$shared[].operations | to_entries[]] | group_by(.key)
            | map({(.[0].key): (map(.value) | add)}) | add // {}),
        histories: {
            checked: ($shared | length), linearizable: ([$shared[] | select(.broken == [])] | length),
            operations: ([$shared[].operations[]] | sum), unanswered: ([$shared[].unanswered] | sum),
            keys: ([$shared[].keys] | sum), connections: ([$shared[].connections] | sum),
            check_ms: ([$shared[].check_ms] | sum), check_ms_longest: ([$shared[].check_ms] | max)
        },
        # Of the client that has one connection and knows each answer beforehand.
        alone: {
            operations: ([$all[] | .client.ops // empty] | sum),
            acked_writes: ([$all[] | .client.acked_writes // empty] | sum),
            acked_lost: ([$all[] | .client.acked_lost // empty] | sum)
        },
        take_over_ms: ([$all[].take_overs_ms[]?] | spread),
        longest_gap_ms: ([$all[] | .gap_ms // empty, .shared.client_gap_ms // empty] | max),
        # Of the daemons that had the VM at each trial's end; one that is alone holds nothing.
        hold_us: {p50: ([$all[] | .hold_us_p50 | values | select(. > 0)] | spread),
            p99: ([$all[] | .hold_us_p99 | values | select(. > 0)] | spread)},
        frames: ([$all[] | .frames // empty] | sum),
        sent_bytes: ([$all[] | .sent_bytes // empty] | sum),
        violations: [$all[] | select(.result == "violation") | {fault, seed, detail, violations, dir, again}]
    };

def row: map(tostring) | join("\t");
def fault_rows:
    (["fault", "trials", "ok", "violations", "skipped"] | row),
    (.faults[] | [.fault, .trials, .ok, .violation, .skipped] | row),
    (.trials | ["all", .trials, .ok, .violation, .skipped] | row);

def spread_text($unit):
    if . then "\(.min)/\(.median)/\(.max) \($unit) (least, median, most of \(.count))" else "none" end;
def counts: to_entries | map("\(.value) \(.key)") | join(", ");
def figure_rows:
    (["figure", "value"] | row),
    (["time", "\(.ran_s) s of \(.wanted_s) s: \(.trials.trials) trials from seed \(.seed)"] | row),
    (["faults struck", (.struck | counts)] | row),
    (["operations on shared keys", (.operations | counts)] | row),
    (.histories | ["histories checked", "\(.checked), of them \(.linearizable) linearizable: "
        + "\(.operations) operations, \(.unanswered) unanswered, on \(.keys) keys over \(.connections) connections"]
        | row),
    (.histories | ["time of the check", "\(.check_ms | round) ms, the longest \(.check_ms_longest // 0 | round) ms"]
        | row),
    (.alone | ["operations on own keys", "\(.operations), of them \(.acked_writes) acknowledged writes, "
        + "\(.acked_lost) lost"] | row),
    (["take-over", (.take_over_ms | spread_text("ms"))] | row),
    (["longest gap", "\(.longest_gap_ms // 0 | round) ms"] | row),
    (["hold time, p50", (.hold_us.p50 | spread_text("us"))] | row),
    (["hold time, p99", (.hold_us.p99 | spread_text("us"))] | row),
    (["output", "\(.frames) frames left; \(.sent_bytes) bytes sent to backups"] | row);

def violation_lines:
    .violations[] | "VIOLATION \(.fault) seed \(.seed) \(.detail // "")", (.violations[:8][] | "    \(.)"),
        "    again by: \(.again)";
