# The bench's section on the software engine: a Linux guest there and, in the same run, on QEMU's emulated processor.
# Sourced; needs neither /dev/kvm nor the network.
[[ -z ${bench_soft_sourced:-} ]] || return 0
bench_soft_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"
source "${BASH_SOURCE[0]%/*}/setup.sh"

# bench_emulate GUEST EMULATOR DIRECTORY: one run, added to the results. What fails is said and is missing from the
# table.
bench_emulate() {
    local figures
    say_passing "$1 on $2"
    if figures=$("$FTD_BIN_DIR/ft-bench" soft "$3" --on "$2" 2>"$run_dir/ft-bench.log"); then
        jq -c --arg guest "$1" '{$guest} + .' <<<"$figures" | bench_add emulated
    else
        say_warn "$1 on $2: $(tail -n 1 "$run_dir/ft-bench.log")"
    fi
}

bench_soft() {
    bench_title 'The software engine beside QEMU: Linux from its start to userland, and a billion integer instructions'
    setup_need linux-guest qemu
    local guest emulator directory round
    for guest in debian small; do
        say_passing "the guest $guest: building, if it is not there"
        directory=$("$FTD_ROOT/scripts/guest/build" "$guest" 2>"$run_dir/guest.log") ||
            die "the guest $guest could not be built: $(tail -n 1 "$run_dir/guest.log")"
        for emulator in soft soft-record qemu qemu-record; do
            # In short: each kernel on what shows most.
            [[ $bench_quick == 0 || $guest == debian && $emulator != soft-record || $emulator == soft-record ]] ||
                continue
            for ((round = 0; round < bench_emulations; round++)); do
                bench_emulate "$guest" "$emulator" "$directory"
            done
        done
    done
    # Medians of the rounds, and what they are compared with.
    jq -sc 'def median: map(select(. != null)) | sort | .[length / 2 | floor];
        def part(f): {wall_s: (map(f.wall_s) | median), cpu_s: (map(f.cpu_s) | median),
            instructions: (map(f.instructions) | median), log_bytes: (map(f.log_bytes) | median)}
            | .mips = (if .instructions then .instructions / .cpu_s / 1e6 else null end);
        [[.[] | select(.section == "emulated")] | group_by([.guest, .on])[]
            | {guest: .[0].guest, on: .[0].on, rounds: length, boot: part(.boot), integer: part(.integer),
               sums: (map(.sum) | unique)}] as $all
        | $all[] | . as $this
        | ($all | map(select(.guest == $this.guest and .on == "soft"))[0]) as $soft
        # The integer work is the same everywhere, and so is its number of instructions, but for those of interrupts.
        | .integer.mips //= (if $soft then $soft.integer.instructions / .integer.cpu_s / 1e6 else null end)
        | .boot_speed = (if $soft then $soft.boot.cpu_s / .boot.cpu_s else null end)
        | .integer_speed = (if $soft then $soft.integer.cpu_s / .integer.cpu_s else null end)' "$bench_results" |
        bench_add soft
    bench_table soft 'guest|on|boot s|CPU s|MIPS|speed|integer s|CPU s|MIPS|speed|log kB, boot|Mbit/s' '
        def maybe(f): if . == null then "-" else f end;
        [.guest, .on, (.boot.wall_s | n(2)), (.boot.cpu_s | n(2)),
         (.boot.mips | maybe(n(0))), (.boot_speed | maybe(n(2))),
         (.integer.wall_s | n(2)), (.integer.cpu_s | n(2)),
         (.integer.mips | maybe(n(0))), (.integer_speed | maybe(n(2))),
         (.boot.log_bytes | maybe(. / 1e3 | n(0))),
         (if .boot.log_bytes then .boot.log_bytes * 8 / 1e6 / .boot.wall_s | n(2) else "-" end)]'
    say 'MIPS and speed are of processor time, so that other work on the machine takes nothing from them;' \
        "speed 1 is soft's."
    say 'The integer work is the same everywhere; the boot is not' \
        '(QEMU has a firmware and a PCI bus, soft has neither).'
    say 'soft-record, qemu-record: with what a replay needs being written; soft counts instructions in any case.'
    jq -rs '[.[] | select(.section == "soft") | .sums[]] | unique |
        if length > 1 then "the integer work came to different results: \(join(", "))" else empty end' \
        "$bench_results" | while IFS= read -r guest; do say_error "$guest"; done
}
