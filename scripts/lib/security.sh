# What protects a pair's connections: FT_SECURITY tls (the default) or none. Sourced; needs run_dir.
[[ -z ${security_sourced:-} ]] || return 0
security_sourced=1
source "${BASH_SOURCE[0]%/*}/cleanup.sh"

# Whether they are in TLS.
security_is_tls() { [[ ${FT_SECURITY:-tls} == tls ]]; }

# security_lines: the line for connections in the clear, if they are.
security_lines() { security_is_tls || echo 'security = "none"'; }

# security_keys NODE...: a certificate for each, for the arbiter and for an operator, unless they are there.
security_keys() {
    ! security_is_tls || [[ -d $run_dir/keys ]] ||
        "$FTD_BIN_DIR/ftd" keygen --directory "$run_dir/keys" "$@" >"$run_dir/keys.log"
}

# security_table NAME: the table [tls] of that name, if there is one.
security_table() {
    local its=$run_dir/keys/$1
    ! security_is_tls || printf '%s\n' '[tls]' "ca = \"$its/ca.pem\"" "identity = \"$its/identity.pem\""
}
