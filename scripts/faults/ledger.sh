# The ledger of the guest linux-disk under a fault: a client on the client's host that counts what is acknowledged, and
# the verdicts on the guest's disk and on the hosts' images. Sourced in the place of lib.sh.
source "${BASH_SOURCE[0]%/*}/lib.sh"

ledger_port=7778
# Whatever guest the others of a campaign run with.
fault_guest=linux-disk
# The least, so that it is full now and then.
export FT_REPLICATION=${FT_REPLICATION:-journal_mib = 64}

# What was acknowledged belongs to the images, which a new pair makes anew.
ledger_acked() { echo "$run_dir/a/ledger.acked"; }
ledger_number() { cat "$(ledger_acked)" 2>/dev/null || echo 0; }

# The images of a pair on disks that can be made bad (ft-bad-disk).
bad_disks_can_run() { [[ -c /dev/fuse ]] || { echo 'there is no /dev/fuse' && return 1; }; }

# set_mood HOST WORD...: its bad disk is so from now on.
set_mood() {
    echo "${*:2}" >"$run_dir/$1/mood.new" && mv "$run_dir/$1/mood.new" "$run_dir/$1/mood"
}

bad_disks_off() {
    local host
    # Where it cannot run there are none.
    [[ -n ${run_dir:-} ]] || return 0
    for host in a b; do
        end_spawned "$host/disk"
        umount -l "$run_dir/$host/disk.img" 2>/dev/null || true
    done
}

# bad_disks_prepare: a new pair, whose images are disks that behave, for now.
bad_disks_prepare() {
    local host
    on_exit bad_disks_off
    bad_disks_off
    pair_prepare
    for host in a b; do
        spawn "$host/disk" "$FTD_BIN_DIR/ft-bad-disk" --mood "$run_dir/$host/mood" "$run_dir/$host/disk.img"
        wait_until 60 grep -qs ready "$run_dir/$host/disk.log" || return 1
    done
    host_start a
    wait_until "$faults_patience_s" host_is a primary solo && host_start b && pair_wait_protected "$faults_patience_s"
}

ledger_answers() {
    in_ns c "$FTD_BIN_DIR/ft-client" call --timeout-s 2 --addr "$net_vm_address:$ledger_port" PING \
        >>"$trial_dir/calls.log" 2>&1
}

# ledger_beyond NUMBER: so many entries are acknowledged; fails as well when the client has ended.
ledger_beyond() { [[ $(ledger_number) -gt $1 ]]; }

# ledger_start: the guest checks its disk and writes on, and is followed.
ledger_start() {
    wait_until "$faults_patience_s" ledger_answers || { violation 'the ledger does not answer' && return 1; }
    local before
    before=$(ledger_number)
    rm -f "$trial_dir/ledger.stop"
    spawn "${trial_dir##*/}/ledger" ip netns exec "$(net_ns c)" "$FTD_BIN_DIR/ft-ledger" follow \
        --acked "$(ledger_acked)" --addr "$net_vm_address:$ledger_port" --stop-file "$trial_dir/ledger.stop"
    wait_until "$faults_patience_s" ledger_beyond "$before" ||
        { violation "the ledger acknowledges nothing: $(tail -n 1 "$trial_dir/ledger.log")" && return 1; }
}

# ledger_goes_on: new entries are acknowledged, over the same connection.
ledger_goes_on() {
    wait_until "$faults_patience_s" ledger_beyond "$(ledger_number)" ||
        violation "no entry was acknowledged any more: $(tail -n 1 "$trial_dir/ledger.log")"
}

# ledger_end: no more entries; all must be on the guest's disk.
ledger_end() {
    local name=${trial_dir##*/}/ledger
    touch "$trial_dir/ledger.stop"
    wait_until "$faults_patience_s" has_ended "$name" || { end_spawned "$name" KILL && return 0; }
    [[ $(spawned_exit "$name") == 0 ]] || violation "the ledger: $(tail -n 1 "$trial_dir/ledger.log")"
}

# ledger_forget: its connection is gone for good.
ledger_forget() { end_spawned "${trial_dir##*/}/ledger" KILL; }

# ledger_whole HOST FILE: what the host's overlay and the base hold, as one image.
ledger_whole() {
    rm -f "$2"
    "$FTD_BIN_DIR/ftd" disk import --config "$run_dir/$1/ftd.toml" "$run_dir/$1/disk.img" "$2" \
        >"$trial_dir/import.log" 2>&1
}

# ledger_image HOST [NUMBER]: the host's image, which nobody uses, has all that was acknowledged, or so much of it.
# With ledger_past=failing the guest may have been told of I/O errors.
ledger_past=well
ledger_image() {
    local said acked=$trial_dir/acked-$1 failed=() image=$run_dir/$1/disk.img
    if [[ ${FT_BASE:-} ]]; then
        image=$trial_dir/whole-$1.img
        # The kernel may be busy with what the dead has asked for; so long the image is locked.
        wait_until "$faults_patience_s" ledger_whole "$1" "$image" ||
            { violation "host $1's overlay: $(tail -n 1 "$trial_dir/import.log")" && return 0; }
    fi
    [[ $ledger_past == well ]] || failed=(--failed)
    echo "${2:-$(ledger_number)}" >"$acked"
    said=$("$FTD_BIN_DIR/ft-ledger" image --work "$FT_LEDGER" --acked "$acked" "${failed[@]}" "$image" 2>&1) ||
        violation "host $1's image: $said"
    [[ ! ${FT_BASE:-} ]] || rm -f "$image"
}
