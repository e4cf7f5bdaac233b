# Where built guests are kept, and how to put something there; sourced. Nothing half-built is ever seen: a directory is
# made under another name and renamed, by one builder at a time.

# Prints the cache directory.
guest_cache_dir() {
    printf '%s\n' "${FTD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ftd}"
}

# guest_cached KEY FUNCTION: prints the directory KEY of the cache. If it is not there, FUNCTION is called with an empty
# directory to fill, and that becomes it. Relies on errexit (with inherit_errexit): a failed FUNCTION must end it all, so
# do not call this in a condition.
guest_cached() {
    local key=$1 build=$2 cache directory
    cache=$(guest_cache_dir)
    directory=$cache/$key
    mkdir -p "$cache"
    if [[ ! -d $directory ]]; then
        (
            flock 9
            # Another builder may have been faster.
            [[ ! -d $directory ]] || exit 0
            # What a killed builder left behind; nobody else is here while the lock is held.
            rm -rf "$cache/.building-$key"
            mkdir "$cache/.building-$key"
            "$build" "$cache/.building-$key"
            mv -T "$cache/.building-$key" "$directory"
        ) 9>"$cache/.lock-$key" >&2
    fi
    printf '%s\n' "$directory"
}

# guest_key NAME FILE...: prints NAME-<hash over the files' names and contents, and standard input>.
guest_key() {
    local name=$1
    shift
    printf '%s-%s\n' "$name" "$({ cat; for file in "$@"; do printf '%s\n' "${file##*/}"; cat "$file"; done; } |
        sha256sum | cut -c1-16)"
}
