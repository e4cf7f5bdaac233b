# The cache of guests and Debian trees that were made once, and the way to put one there. No reader ever sees a
# half-made one: a directory is filled under another name and renamed, by one maker at a time. Sourced.
[[ -z ${cache_sourced:-} ]] || return 0
cache_sourced=1
shopt -s inherit_errexit

# Prints the cache directory.
cache_dir() {
    printf '%s\n' "${FTD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ftd}"
}

# cached KEY FUNCTION: prints the directory KEY of the cache. If it is not there, FUNCTION is called with an empty
# directory to fill, and that becomes it. Relies on errexit: a failed FUNCTION must end it all, so
# do not call this in a condition.
cached() {
    local key=$1 make=$2 cache directory
    cache=$(cache_dir)
    directory=$cache/$key
    mkdir -p "$cache"
    if [[ ! -d $directory ]]; then
        (
            flock 9
            # Another maker may have been faster.
            [[ ! -d $directory ]] || exit 0
            # What a killed maker left behind; nobody else is here while the lock is held.
            rm -rf --one-file-system "$cache/.making-$key"
            mkdir "$cache/.making-$key"
            "$make" "$cache/.making-$key"
            mv -T "$cache/.making-$key" "$directory"
        ) 9>"$cache/.lock-$key" >&2
    fi
    printf '%s\n' "$directory"
}

# cache_key NAME FILE...: prints NAME-<hash over the files' names and contents, and standard input>.
cache_key() {
    local name=$1
    shift
    printf '%s-%s\n' "$name" "$({ cat; for file in "$@"; do printf '%s\n' "${file##*/}"; cat "$file"; done; } |
        sha256sum | cut -c1-16)"
}
