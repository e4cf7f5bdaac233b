# All figures of a run of scripts/bench in one object, and each aim beside the measured figure. Sourced.
[[ -z ${bench_summary_sourced:-} ]] || return 0
bench_summary_sourced=1
source "${BASH_SOURCE[0]%/*}/bench-measure.sh"

bench_summary_lib=$(cd "${BASH_SOURCE[0]%/*}" && pwd)

# bench_summary: everything in one object, on stdout.
bench_summary() {
    jq -s --argjson stolen_pct "$(bench_ticks_since stolen)" --argjson busy_before_pct "$bench_busy_before_pct" \
        --arg guest "${FT_GUEST:-builtin}" --argjson processors "$(nproc)" --arg processor_model "$(bench_processor)" \
        --arg kvm "$(host_kvm)" --arg qemu "$(bench_qemu)" --arg quick "$bench_quick" '
        def all($section): [.[] | select(.section == $section) | del(.section)];
        def one($section): all($section)[0];
        # How a section was measured, and what it came to.
        def with($setup; $section): all($section) as $measured | one($setup) | if . then . + {$measured} else null end;
        def soft($guest; $on): all("soft") | map(select(.guest == $guest and .on == $on))[0];
        # Speed against QEMU: what QEMU took for what soft took one.
        def against($on; part): (soft("debian"; $on) | part) as $speed | if $speed then 1 / $speed else null end;
        (all("epochs") | map(select(.epoch_ms == 5))[0]) as $at_5ms
        | (all("replay_log") | map(select(.requests_per_s))[0]) as $load
        | {pause_us_p50_at_1000_pages: (all("pause") | map(select(.pages == 1000))[0].pause_us.p50),
           checkpoints_per_s_at_5ms: $at_5ms.checkpoints_per_s, hold_us_p50_at_5ms: $at_5ms.hold_us.p50,
           takeover_ms_p50: one("takeover").takeover_ms.p50, takeover_ms_p99: one("takeover").takeover_ms.p99,
           encode_gb_per_s: (all("codec") | map(select(.kind == "mixed"))[0].encode_gb_per_s),
           slowdown_pct_at_5ms: one("slowdown").slowdown_pct,
           soft_mips: soft("debian"; "soft").integer.mips, soft_boot_mips: soft("debian"; "soft").boot.mips,
           soft_vs_qemu_tcg: against("qemu"; .integer_speed), soft_boot_vs_qemu_tcg: against("qemu"; .boot_speed),
           soft_vs_qemu_icount_record: against("qemu-record"; .integer_speed),
           soft_boot_vs_qemu_icount_record: against("qemu-record"; .boot_speed),
           replay_slowdown_pct: one("replay").slowdown_pct, replay_slowdown_cpu_pct: one("replay").slowdown_cpu_pct,
           replay_serving_slowdown_pct: one("replay").serving_slowdown_pct,
           replay_log_mbit_per_s: $load.log_mbit_per_s, replay_log_entries_mbit_per_s: $load.entries_mbit_per_s,
           replay_log_idle_mbit_per_s: (all("replay_log") | map(select(.load == "idle"))[0].log_mbit_per_s),
           replay_log_boot_mbit_per_s: (((soft("debian"; "soft-record") // soft("small"; "soft-record")).boot
               | select(.log_bytes) | .log_bytes * 8 / 1e6 / .wall_s) // null),
           replay_hold_us_p50: $load.hold_us.p50, replay_rtt_us_p50: $load.rtt_us.p50,
           replay_lag_ms_p50: (if $load then $load.lag_us.p50 / 1e3 else null end),
           replay_golive_ms_p50: one("golive").takeover_ms.p50, replay_golive_ms_p99: one("golive").takeover_ms.p99,
           replay_golive_lag_ms_p50: one("golive").lag_ms.p50,
           $guest, $processors, $processor_model, $kvm, qemu: ($qemu | select(. != "") // null),
           quick: ($quick == "1"), load_average_max: (map(.load_average) | max), $busy_before_pct, $stolen_pct,
           pause: all("pause"), ram: all("ram"), epochs: all("epochs"), traffic: all("traffic"),
           takeover: one("takeover"),
           kills: all("takeover-kill"), slowdown: one("slowdown"), speed: all("speed"), codec: all("codec"),
           soft: all("soft"), replay: one("replay"), replay_log: all("replay_log"), golive: one("golive"),
           golive_kills: all("golive-kill"), soft_checkpoint: one("soft_checkpoint"),
           disk: with("disk-setup"; "disk"), return: with("return-setup"; "return"),
           net: with("net-setup"; "net"), tls: all("tls"),
           confinement: all("confinement"), confined: all("confined")}' "$bench_results"
}

# bench_targets: what was to be reached, and where the time goes of what was not.
bench_targets() {
    bench_load=0
    say ''
    bench_summary | jq -c -L "$bench_summary_lib" '
        include "bench";
        def n: . * 100 | round / 100;
        def line($figure; $key; why):
            .[$key] as $value | aim($key) as $aim
            | select($value != null)
            | ($aim | reaches($value)) as $reached
            | {$figure, target: ($aim | aim_text), value: "\($value | n) \($aim.unit)",
               verdict: (if $reached then "reached" else "MISSED" end), why: (if $reached then "" else why end)};
        (.epochs | map(select(.epoch_ms == 5))[0]) as $e | (.pause | map(select(.pages == 1000))[0]) as $p
        | line("pause at 1,000 pages, median"; "pause_us_p50_at_1000_pages";
              "stop \($p.stop_us.p50 | n), harvest \($p.harvest_us.p50 | n), state \($p.capture_us.p50 | n), " +
              "copy \($p.copy_us.p50 | n), resume \($p.resume_us.p50 | n) us"),
          line("checkpoints at 5 ms under client load"; "checkpoints_per_s_at_5ms";
              "\(1e6 / .checkpoints_per_s_at_5ms | round) us each: 5000 epoch, \($e.pause_us.p50) pause, " +
              "the rest waits for a processor or for room (commit \($e.parts.commit_us.p50) us)"),
          line("hold time at 5 ms, median"; "hold_us_p50_at_5ms";
              "up to 5000 until the epoch ends, \($e.pause_us.p50) pause, " +
              "\($e.parts.commit_us.p50) from capture to ack (encoding \($e.parts.encode_us.p50))"),
          line("take-over, median"; "takeover_ms_p50";
              "\(.takeover.notice_ms.p50) until noticed, \(.takeover.decide_ms.p50) arbitration, " +
              "\(.takeover.resume_ms.p50) resume"),
          line("encode, mixed pages, one core"; "encode_gb_per_s"; "see the kinds of pages above"),
          line("software engine, integer"; "soft_mips"; "an interpreter of decoded blocks: QEMU translates"),
          line("software engine, Linux boot"; "soft_boot_mips";
              "page tables, code seen once and devices, beside the above"),
          line("replay, slow-down, computing"; "replay_slowdown_pct";
              "\(.replay_slowdown_cpu_pct) % by processor time; " +
              "primary, backup and all else share \(.processors) processors"),
          line("replay, log at \(.replay_log[1].requests_per_s) requests/s"; "replay_log_mbit_per_s";
              "\(.replay_log[1].entries_mbit_per_s | n) are entries; " +
              "the frames of \(.replay_log[1].batches_per_s) batches a second are the rest"),
          line("replay, hold time, median"; "replay_hold_us_p50";
              "\(.replay_log[1].batches_per_s) batches a second; each waits for a processor on its way there and back"),
          line("replay, going live, median"; "replay_golive_ms_p50";
              "\(.golive.notice_ms.p50) until noticed, " +
              "\(.golive.decide_ms.p50) for the rest of the log and the arbitration, " +
              "\(.golive.resume_ms.p50) to run")' |
        bench_add target
    bench_table target 'figure|target|measured||why' '[.figure, .target, .value, .verdict, .why]'
    say "load average now $(cut -d' ' -f1-3 /proc/loadavg), other work before $bench_busy_before_pct %," \
        "time stolen by the machine's host $(bench_ticks_since stolen) %"
}
