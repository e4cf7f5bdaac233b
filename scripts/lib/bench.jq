# The output that scripts/bench makes of the object with all its figures: the aims, and the README's tables.

# The aim of each figure that has one: a bound, and whether it is the most or the least.
def aims: {
    pause_us_p50_at_1000_pages: {most: 2000, unit: "us"},
    checkpoints_per_s_at_5ms: {least: 150, unit: "/s"},
    hold_us_p50_at_5ms: {most: 8000, unit: "us"},
    takeover_ms_p50: {most: 50, unit: "ms"},
    encode_gb_per_s: {least: 1, unit: "GB/s"},
    soft_mips: {least: 60, unit: "MIPS"},
    soft_boot_mips: {least: 60, unit: "MIPS"},
    replay_slowdown_pct: {most: 5, unit: "%"},
    replay_log_mbit_per_s: {most: 2, unit: "Mbit/s"},
    replay_hold_us_p50: {most: 2000, unit: "us"},
    replay_lag_ms_p50: {most: 100, unit: "ms"},
    # Its bound is added to the backup's lag.
    replay_golive_ms_p50: {most: (50 + (.replay_golive_lag_ms_p50 // 0)), unit: "ms"}
};
def aim($key): aims[$key];
def reaches($value): if .most then $value <= .most else $value >= .least end;
def aim_text: "\(if .most then "at most" else "at least" end) \(.most // .least) \(.unit)";

# A number with two digits that count, or all of a longer one's; milliseconds of microseconds.
def digits:
    if . >= 10 then round | tostring
    elif . >= 1 then . * 10 | round / 10 | tostring
    else . * 100 | round / 100 | tostring end;
def ms: . / 1000;
# A few words are clearer than noise.
def or_none: if . < 0.1 then "none" else "\(digits) %" end;
def or_less: if . < 0.1 then "below 0.1" else digits end;

def row($figure; $measured; $aim): "| \($figure) | \($measured) | \($aim) |";
# The text of an aim, which says so if the figure misses it.
def with_aim($key; $text):
    aim($key) as $aim | .[$key] as $value
    | if $aim | reaches($value) then $text else "\($text): **missed**" end;
def has_all($keys): . as $figures | all($keys[]; $figures[.] != null);

def main_table:
    row("pause at 1,000 dirty pages, median"; "\(.pause_us_p50_at_1000_pages | ms | digits) ms";
        with_aim("pause_us_p50_at_1000_pages"; "at most 2 ms")),
    row("checkpoints a second at epochs of at most 5 ms, client load"; .checkpoints_per_s_at_5ms | digits;
        with_aim("checkpoints_per_s_at_5ms"; "at least 150")),
    row("output held at epochs of at most 5 ms, median"; "\(.hold_us_p50_at_5ms | ms | digits) ms";
        with_aim("hold_us_p50_at_5ms"; "at most 8 ms")),
    row("take-over after SIGKILL, median / p99 (\(.takeover.kills) kills)";
        "\(.takeover_ms_p50 | digits) / \(.takeover_ms_p99 | digits) ms";
        with_aim("takeover_ms_p50"; "at most 50 ms / -")),
    row("encoding, a core, mixed pages"; "\(.encode_gb_per_s | digits) GB/s";
        with_aim("encode_gb_per_s"; "at least 1 GB/s")),
    row("guest slow-down at epochs of at most 5 ms, computing"; .slowdown_pct_at_5ms | or_none; "-");

def soft_row($work; $mips; $tcg; $recording):
    "| \($work) | \($mips | digits) | \($tcg | digits) | \($recording | digits) |";
def soft_table:
    soft_row("integer work"; .soft_mips; .soft_vs_qemu_tcg; .soft_vs_qemu_icount_record),
    soft_row("boot of Debian's cloud kernel"; .soft_boot_mips; .soft_boot_vs_qemu_tcg;
        .soft_boot_vs_qemu_icount_record);

def replay_table:
    (.replay_log | map(select(.requests_per_s))[0].lag_us.max) as $lag_us_max
    | row("log, key-value load of 1,000 requests/s, with all framing"; "\(.replay_log_mbit_per_s | digits) Mbit/s";
        with_aim("replay_log_mbit_per_s"; "at most 2 Mbit/s")),
    row("log, idle"; "\(.replay_log_idle_mbit_per_s | digits) Mbit/s"; "-"),
    (select(.replay_log_boot_mbit_per_s)
        | row("log, boot of a Linux kernel"; "\(.replay_log_boot_mbit_per_s | digits) Mbit/s"; "-")),
    row("output held at 1,000 requests/s, median"; "\(.replay_hold_us_p50 | ms | digits) ms";
        with_aim("replay_hold_us_p50"; "at most 2 ms")),
    row("round trip at 1,000 requests/s, median"; "\(.replay_rtt_us_p50 | ms | digits) ms"; "-"),
    row("lag of the backup at 1,000 requests/s, median / most";
        "\(.replay_lag_ms_p50 | or_less) / \($lag_us_max | ms | or_less) ms";
        with_aim("replay_lag_ms_p50"; "below 100 ms")),
    row("going live after SIGKILL, median / p99 (\(.golive.kills) kills)";
        "\(.replay_golive_ms_p50 | digits) / \(.replay_golive_ms_p99 | digits) ms";
        with_aim("replay_golive_ms_p50"; "at most 50 ms and the lag")),
    row("slow-down, computing, by the clock"; .replay_slowdown_pct | or_none;
        with_aim("replay_slowdown_pct"; "at most 5 %")),
    row("slow-down, computing, by the vCPU's processor time"; .replay_slowdown_cpu_pct | or_none; "-"),
    row("slow-down, one client, one request after the other"; .replay.one_client_slowdown_pct | or_none; "-");

# What a guest's disk does: throughput, and a request's time in ms.
def fine: if . >= 1 then digits else . * 1000 | round / 1000 | tostring end;
def disk_cell($block_bytes):
    if . == null then "-"
    else (if $block_bytes < 1048576 then "\(.requests_per_s)/s" else "\(.mib_per_s | digits) MiB/s" end)
        + ", \(.p50_us | ms | fine) / \(.p99_us | ms | fine)" end;
def disk_name:
    {"read": "reads", "write": "writes", "flushed-write": "writes, each flushed"}[.kind] as $kind
    | "\(if .block_bytes < 1048576 then "4 KiB" else "1 MiB" end) \(.order) \($kind)";
def disk_table:
    .disk.measured[]
    | . as $row
    | "| \(disk_name) | \(.in_flight) | "
        + ([.qemu, .unprotected, .commit, .sync] | map(disk_cell($row.block_bytes)) | join(" | ")) + " |";
def disk_about:
    ", on \(if .disk.engine == "kvm" then "KVM" else "the software engine" end),"
    + (if .disk.qemu then " beside \(.disk.qemu)," else "" end)
    + " with images of \(.disk.image_mib) MiB on \(.disk.file_system),";
def disk_missing: select(.disk.qemu == null) | "**Not measured beside QEMU**: \(.disk.qemu_missing).", "";

def mib: if . == null then "-" else . / 1048576 | "\(digits) MiB" end;
def return_table:
    .return.measured[]
    | row(if .changed == "first" then "unknown: the first pairing" else .changed end;
        "\(.protected_s | digits) s | \(.connected_s | digits) s";
        "\(.wire_bytes | mib) | \(.disks_to_compare_bytes | mib) | \(.disks_sent_bytes | mib)");
def return_about:
    ", on \(if .return.engine == "kvm" then "KVM" else "the software engine" end), with a sparse disk of "
    + "\(.return.image_gib) GiB on \(.return.file_system) and \(.return.memory_mib) MiB of memory,";

# What a guest's network card carries.
def net_cell: if . == null then "-" elif .turn_us then .turn_us | "\(.p50 | ms | fine) / \(.p99 | ms | fine) ms"
    else "\(.mib_per_s | digits) MiB/s" end;
def net_table:
    {in: "bulk into the guest", out: "bulk out of the guest", turn: "a byte and its answer, p50 / p99"} as $names
    | .net.measured[] | "| \($names[.way]) | "
        + ([.qemu, .unprotected, .checkpoint, .replay] | map(net_cell) | join(" | ")) + " |";
def net_about:
    ", on \(if .net.engine == "kvm" then "KVM" else "the software engine" end),"
    + (if .net.qemu then " beside \(.net.qemu), the same guest on the same bridge," else "" end)
    + " in turn, the medians of \(.net.rounds) rounds of \(.net.ms / 1000) s, epochs of \(.net.epoch_ms) ms,";
def net_missing: select(.net.qemu == null) | "**Not measured beside QEMU**: \(.net.qemu_missing).", "";

# A text as lines of at most so many columns.
def wrap($columns):
    reduce splits(" ") as $word ([""];
        if .[-1] == "" then [$word]
        elif .[-1] + $word | length < $columns then .[-1] += " " + $word
        else . + [$word] end) | .[];

# How, and on which kind of machine.
def measured_on($about):
    "Measured by `scripts/bench\(if .quick then " --quick" else "" end)`\($about) on one machine: "
    + "\(.processors) processors (\(.processor_model)), shared by both hosts and the client; "
    + {hardware: "KVM with the processor's own virtualisation",
        software: "KVM without the processor's own virtualisation", none: "no KVM"}[.kvm]
    + "; load average up to \(.load_average_max), the bench's own work included; "
    + "before it began, other work kept them \(.busy_before_pct) % busy"
    + if .stolen_pct > 0 then "; \(.stolen_pct) % of their time was taken by the machine's own host." else "." end
    | wrap(120);

# What each table cannot do without.
def needed: {
    main: ["pause_us_p50_at_1000_pages", "checkpoints_per_s_at_5ms", "hold_us_p50_at_5ms", "takeover_ms_p50",
        "takeover_ms_p99", "encode_gb_per_s", "slowdown_pct_at_5ms"],
    soft: ["soft_mips", "soft_vs_qemu_tcg", "soft_vs_qemu_icount_record", "soft_boot_mips", "soft_boot_vs_qemu_tcg",
        "soft_boot_vs_qemu_icount_record"],
    replay: ["replay_log_mbit_per_s", "replay_log_idle_mbit_per_s", "replay_hold_us_p50", "replay_rtt_us_p50",
        "replay_lag_ms_p50", "replay_golive_ms_p50", "replay_golive_ms_p99", "replay_slowdown_pct",
        "replay_slowdown_cpu_pct"],
    disk: ["disk"],
    return: ["return"],
    net: ["net"]
};

# The lines that stand between the README's marks of that name, or nothing if what they need was not measured.
def readme($name):
    select(has_all(needed[$name]))
    | if $name == "main" then
        measured_on(""), "", row("figure"; "measured"; "aim"), "|---|---|---|", main_table
    elif $name == "soft" then
        measured_on(", beside \(.qemu), by processor time,"), "",
        "| | million instructions/s | of QEMU's TCG | of QEMU recording (`-icount`) |", "|---|---|---|---|", soft_table
    elif $name == "disk" then
        measured_on(disk_about), "", disk_missing,
        "| requests; p50 / p99 in ms | in flight | QEMU | unprotected | `\"commit\"` | `\"sync\"` |",
        "|---|---|---|---|---|---|", disk_table
    elif $name == "return" then
        measured_on(return_about), "",
        row("extents changed"; "until protected | of that until the copy begins";
            "on the wire | of disks compared | of disks sent"),
        "|---|---|---|---|---|---|", return_table
    elif $name == "net" then
        measured_on(net_about), "", net_missing,
        "| one TCP connection | QEMU | unprotected | protected | protected, replay mode |",
        "|---|---|---|---|---|", net_table
    else
        measured_on(""), "", row("replay mode"; "measured"; "aim"), "|---|---|---|", replay_table
    end;
