# The arbiter of a pair, and its troubles. Sourced by pair.sh; needs run_dir and the network up.
#
#   FT_ARBITER file      a directory of this machine that both hosts mount (the default)
#              service   `ftd arbiter` on a machine of its own, the place s of net.sh
#              majority  three of them there, of which two decide
#              etcd      an etcd of one member there
#
# Whatever kind it is, what it keeps lies in $run_dir/arbiter/shared.
[[ -z ${arbiter_sourced:-} ]] || return 0
arbiter_sourced=1
source "${BASH_SOURCE[0]%/*}/net.sh"
source "${BASH_SOURCE[0]%/*}/security.sh"

: "${FT_ARBITER:=file}"
arbiter_port=7390 arbiter_etcd_port=2379
# No database of etcd's grows beyond this: then it is full.
arbiter_etcd_bytes_max=$((16 << 20))
# What a host mounts as the shared storage, if another directory than its peer does.
declare -A arbiter_storage=()

arbiter_is_file() { [[ $FT_ARBITER == file ]]; }
arbiter_is_majority() { [[ $FT_ARBITER == majority ]]; }
# arbiter_names PLACE: the processes there. A majority of them is all but the first.
arbiter_names() {
    if arbiter_is_majority; then echo "arbiter-$1" "arbiter-$1-2" "arbiter-$1-3"; else echo "arbiter-$1"; fi
}
arbiter_addresses() {
    local n
    for n in 0 1 2; do echo "$net_arbiter_address:$((arbiter_port + n))"; done
}
# The list as TOML has it.
arbiter_members() { arbiter_addresses | jq -cnR '[inputs]'; }
# arbiter_end PLACE SIGNAL: all of them.
arbiter_end() {
    local name
    for name in $(arbiter_names "$1"); do end_spawned "$name" "$2"; done
}
# What is struck: those without which there is no majority.
arbiter_struck() {
    local -a names
    read -ra names <<<"$(arbiter_names s)"
    if arbiter_is_majority; then echo "${names[@]:1}"; else echo "${names[@]}"; fi
}
arbiter_signal() {
    local name
    for name in $(arbiter_struck); do signal_spawned "$name" "$1" || return 1; done
}
arbiter_endpoint() { echo "http://$net_arbiter_address:$arbiter_etcd_port"; }

# arbiter_config HOST VM: the configuration's section, on stdout.
arbiter_config() {
    echo '[arbiter]'
    case $FT_ARBITER in
    file) printf 'kind = "file"\npath = "%s"\n' "$run_dir/$1/arbiter/shared/$2.cell" ;;
    service) printf 'kind = "service"\naddress = "%s"\n' "$net_arbiter_address:$arbiter_port" && security_lines ;;
    majority) printf 'kind = "service"\naddresses = %s\n' "$(arbiter_members)" && security_lines ;;
    etcd) printf 'kind = "etcd"\nendpoints = ["%s"]\nsecurity = "none"\n' "$(arbiter_endpoint)" ;;
    esac
}

# arbiter_place HOST: by what that host names its arbiter.
arbiter_place() {
    case $FT_ARBITER in
    file) echo "$run_dir/$1/arbiter" ;;
    service) echo "service $net_arbiter_address:$arbiter_port" ;;
    majority) echo "services $(arbiter_addresses | paste -sd ' ')" ;;
    etcd) echo "etcd $(arbiter_endpoint)" ;;
    esac
}

# arbiter_prepare: one that has never heard of a VM.
arbiter_prepare() {
    arbiter_end s KILL
    rm -rf --one-file-system -- "$run_dir/arbiter"/{shared,older,true}
    mkdir -p "$run_dir/arbiter/shared"
    arbiter_run s "$run_dir/arbiter/shared"
}

# arbiter_run PLACE DIRECTORY: the service or etcd over what lies there, which is made if nothing does.
arbiter_run() {
    local -a command names
    local n
    case $FT_ARBITER in
    file) return 0 ;;
    majority)
        read -ra names <<<"$(arbiter_names "$1")"
        for n in 0 1 2; do
            is_running "${names[n]}" ||
                arbiter_run_member "$1" "${names[n]}" "$2/cells-$n" $((arbiter_port + n)) || return 1
        done
        wait_until 60 arbiter_answers "$1" || { tail -n 5 "$run_dir/arbiter-$1"*.log >&2 && return 1; }
        return 0
        ;;
    service)
        {
            printf 'store = "%s"\nlisten = "%s"\n' "$2/cells" "$net_arbiter_address:$arbiter_port"
            security_lines
            security_table arbiter
        } >"$run_dir/arbiter-$1.toml"
        command=("$FTD_BIN_DIR/ftd" arbiter --config "$run_dir/arbiter-$1.toml")
        [[ -e $2/cells ]] || "${command[@]}" --create >>"$run_dir/arbiter-$1.log" || return 1
        ;;
    etcd)
        command=(etcd --data-dir "$2/etcd" --log-level warn --quota-backend-bytes "$arbiter_etcd_bytes_max"
            --listen-client-urls "$(arbiter_endpoint)" --advertise-client-urls "$(arbiter_endpoint)")
        ;;
    esac
    spawn "arbiter-$1" ip netns exec "$(net_ns "$1")" "${command[@]}"
    wait_until 60 arbiter_answers "$1" || { tail -n 5 "$run_dir/arbiter-$1.log" >&2 && return 1; }
}

# arbiter_run_member PLACE NAME STORE PORT: one of three.
arbiter_run_member() {
    local file=$run_dir/$2.toml
    {
        printf 'store = "%s"\nlisten = "%s"\nmembers = %s\n' "$3" "$net_arbiter_address:$4" "$(arbiter_members)"
        security_lines
        security_table arbiter
    } >"$file"
    [[ -e $3 ]] || "$FTD_BIN_DIR/ftd" arbiter --config "$file" --create >>"$run_dir/$2.log" || return 1
    spawn "$2" ip netns exec "$(net_ns "$1")" "$FTD_BIN_DIR/ftd" arbiter --config "$file"
}

arbiter_answers() {
    local address
    local -a addresses=("$net_arbiter_address:$arbiter_port")
    case $FT_ARBITER in
    service | majority)
        local -a operator=()
        ! security_is_tls || operator=(--keys "$run_dir/keys/operator")
        ! arbiter_is_majority || mapfile -t addresses < <(arbiter_addresses)
        for address in "${addresses[@]}"; do
            in_ns "$1" "$FTD_BIN_DIR/ftctl" arbiter list --address "$address" "${operator[@]}" >/dev/null 2>&1 ||
                return 1
        done
        ;;
    etcd) arbiter_etcdctl "$1" get / >/dev/null 2>&1 ;;
    esac
}

# arbiter_etcdctl PLACE ARGUMENT...
arbiter_etcdctl() {
    local place=$1
    shift
    in_ns "$place" env ETCDCTL_API=3 etcdctl --endpoints "$(arbiter_endpoint)" --command-timeout 5s "$@"
}

# arbiter_watch NAME VM OUT: spawns what writes the cell's history there, seen without any daemon of a VM.
arbiter_watch() {
    local -a which=(--config "$run_dir/a/ftd.toml")
    if arbiter_is_file; then
        spawn "$1" "$FTD_BIN_DIR/ft-wire" watch-cell --cell "$run_dir/arbiter/shared/$2.cell" --out "$3"
    else
        spawn "$1" ip netns exec "$(net_ns s)" "$FTD_BIN_DIR/ft-wire" watch-cell "${which[@]}" --out "$3"
    fi
}

# arbiter_save DIRECTORY: what it keeps, as it is now. Of etcd the history that was watched has to do.
arbiter_save() { [[ $FT_ARBITER == etcd ]] || cp -r "$run_dir/arbiter/shared" "$1/arbiter" 2>/dev/null || true; }

# --- It hangs or ends ----------------------------------------------------------------------------------------------

# arbiter_hang VM: whoever asks it from now on, on either host, waits: its process stands still; or the newest
# generation of the cell is a pipe that a process holds and nobody fills. arbiter_unhang lets them go, and leaves the
# cell as it was.
arbiter_hang() {
    arbiter_is_file || { arbiter_signal STOP && return 0; }
    arbiter_cell=$run_dir/arbiter/shared/$1.cell
    arbiter_pipe=$arbiter_cell/00000000000099999999
    mkfifo "$arbiter_pipe"
    # shellcheck disable=SC2016 # The inner shell expands its own arguments.
    spawn arbiter-pipe bash -c 'exec sleep infinity <>"$1"' _ "$arbiter_pipe"
}
arbiter_unhang() {
    arbiter_is_file || { arbiter_signal CONT || true; return 0; }
    [[ -n ${arbiter_pipe:-} ]] || return 0
    rm -f -- "$arbiter_pipe"
    end_spawned arbiter-pipe KILL
    arbiter_pipe=
    rm -rf -- "$arbiter_cell.old"
}

# After arbiter_hang: another process over the same store is in the place of the one that hangs; or other storage with
# the same content is, and the calls that hang return only after arbiter_unhang.
arbiter_replace() {
    local file
    arbiter_is_file || { arbiter_end s KILL && arbiter_run s "$run_dir/arbiter/shared" && return 0; }
    rm -rf -- "$arbiter_cell.old" "$arbiter_cell.new"
    mkdir "$arbiter_cell.new"
    for file in "$arbiter_cell"/*; do
        [[ ! -f $file ]] || cp -p -- "$file" "$arbiter_cell.new/"
    done
    mv -- "$arbiter_cell" "$arbiter_cell.old"
    mv -- "$arbiter_cell.new" "$arbiter_cell"
    arbiter_pipe=$arbiter_cell.old/${arbiter_pipe##*/}
}

# arbiter_away: for both hosts, so that asking it fails at once. arbiter_back ends it.
arbiter_away() {
    local name
    if arbiter_is_file; then
        arbiter_lose a && arbiter_lose b
    else
        for name in $(arbiter_struck); do end_spawned "$name" KILL; done
    fi
}
arbiter_back() {
    arbiter_return a && arbiter_return b
    arbiter_is_file || { ! arbiter_is_majority && is_running arbiter-s; } || arbiter_run s "$run_dir/arbiter/shared"
}

# arbiter_heal: it is there for both hosts again, whatever was done to it.
arbiter_heal() { arbiter_unhang && arbiter_back; }

# --- One host has lost it, or has another --------------------------------------------------------------------------

# arbiter_lose HOST: it is out of this host's reach: the link to it drops everything; or the shared storage's path ends
# in an empty read-only directory, as when a mount was lost. arbiter_return brings it back.
arbiter_lose() {
    arbiter_is_file || { net_drop "$1" arb && return 0; }
    nsenter --mount --target "$(spawned_pid "$1/ftd")" mount -t tmpfs -o ro,size=4k lost "$run_dir/$1/arbiter"
}
arbiter_return() {
    local mounted
    arbiter_is_file || { net_undrop "$1" arb && return 0; }
    is_running "$1/ftd" || return 0
    # A daemon that ends at this moment has nothing to be brought back to.
    mounted=$(nsenter --mount --target "$(spawned_pid "$1/ftd")" \
        findmnt -n -o SOURCE --mountpoint "$run_dir/$1/arbiter" \
        2>/dev/null | tail -n 1) || return 0
    [[ $mounted != lost ]] || arbiter_unmount "$1"
}

# arbiter_unmount HOST: what was mounted over the shared storage goes, as soon as the daemon does not ask it.
arbiter_unmount() {
    wait_until 10 nsenter --mount --target "$(spawned_pid "$1/ftd")" umount "$run_dir/$1/arbiter" 2>/dev/null
}

# arbiter_other HOST none|cell: this host has another one than its peer, with another cell of the VM or with none: other
# storage is mounted, or its cable leads to another machine with the same address. The host may run or not.
arbiter_other() {
    local host=$1 other=$run_dir/elsewhere
    local -a wrapped=()
    arbiter_end t KILL
    rm -rf --one-file-system -- "$other"
    mkdir -p "$other/shared"
    if ! arbiter_is_file; then
        net_mislead "$host"
        arbiter_run t "$other/shared" || return 1
        wrapped=(in_ns t)
    fi
    if [[ $2 == cell ]]; then
        sed "s|^path = \".*/shared/|path = \"$other/shared/|; s|^state_dir = .*|state_dir = \"$other/state\"|" \
            "$run_dir/$host/ftd.toml" >"$other/ftd.toml"
        "${wrapped[@]}" "$FTD_BIN_DIR/ftd" init --config "$other/ftd.toml" >/dev/null || return 1
    fi
    arbiter_is_file || return 0
    if is_running "$host/ftd"; then
        nsenter --mount --target "$(spawned_pid "$host/ftd")" mount --bind "$other" "$run_dir/$host/arbiter"
    else
        arbiter_storage[$host]=$other
    fi
}

# arbiter_same HOST: it has its peer's again.
arbiter_same() {
    if ! arbiter_is_file; then
        arbiter_end t KILL
        net_lead_back "$1"
    elif [[ -z ${arbiter_storage[$1]:-} ]]; then
        arbiter_unmount "$1"
    else
        unset "arbiter_storage[$1]"
        nsenter --mount --target "$(spawned_pid "$1/ftd")" mount --bind "$run_dir/arbiter" "$run_dir/$1/arbiter"
    fi
}

# --- It goes back --------------------------------------------------------------------------------------------------

# arbiter_remember: what it keeps now is what arbiter_go_back makes of it.
arbiter_remember() {
    arbiter_pause
    rm -rf --one-file-system -- "$run_dir/arbiter/older"
    cp -a -- "$run_dir/arbiter/shared" "$run_dir/arbiter/older"
    arbiter_run s "$run_dir/arbiter/shared"
}

# arbiter_go_back removed|restored: nothing is left of what it kept, or what was remembered is in its place.
arbiter_go_back() {
    arbiter_pause
    mv -- "$run_dir/arbiter/shared" "$run_dir/arbiter/true"
    if [[ $1 == restored ]]; then
        cp -a -- "$run_dir/arbiter/older" "$run_dir/arbiter/shared"
    else
        mkdir "$run_dir/arbiter/shared"
    fi
    arbiter_run s "$run_dir/arbiter/shared"
}

# arbiter_be_true: it keeps again what it kept before arbiter_go_back.
arbiter_be_true() {
    arbiter_pause
    rm -rf --one-file-system -- "$run_dir/arbiter/shared"
    mv -- "$run_dir/arbiter/true" "$run_dir/arbiter/shared"
    arbiter_run s "$run_dir/arbiter/shared"
}

# Nothing changes what it keeps, until arbiter_run.
arbiter_pause() { arbiter_is_file || arbiter_end s TERM; }
