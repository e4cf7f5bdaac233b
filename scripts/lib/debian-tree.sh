# Small Debian trees of this host's release: made by debootstrap, once, and kept in the cache. Sourced.
[[ -z ${debian_tree_sourced:-} ]] || return 0
debian_tree_sourced=1
source "${BASH_SOURCE[0]%/*}/cache.sh"
source "${BASH_SOURCE[0]%/*}/setup.sh"

# debian_tree [PACKAGE...]: prints the directory of a tree with the essential packages, apt, and these. The tree is
# shared: a program that runs in it writes elsewhere (to an overlay). Where no tree can be made, the script says so and
# ends with 77; like `cached`, do not call this in a condition.
debian_tree() {
    ((EUID == 0)) || debian_tree_skip 'making a Debian tree needs root'
    setup_need tree
    debian_tree_packages=$(IFS=, && echo "$*")
    # The host's own release has the libraries that programs built here want.
    debian_tree_suite=$(source /etc/os-release && [[ $ID == debian ]] && echo "$VERSION_CODENAME") ||
        debian_tree_skip 'this host is no Debian'
    cached "$(cache_key "debian-$debian_tree_suite" <<<"2 $debian_tree_packages")" debian_tree_fill
}

debian_tree_skip() { say_error "SKIPPED ${0##*/}: $*" && exit 77; }

# Fills $1, from the mirror and through the proxy that apt uses here.
debian_tree_fill() {
    local log=$1.log mirror proxy=''
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
        "Codename: $debian_tree_suite" | head -n 1)
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [[ -z $proxy || -n ${http_proxy:-} ]] || export http_proxy=$proxy
    say "making a small Debian in ${1%/*} (once)"
    if ! debootstrap --variant=minbase ${debian_tree_packages:+--include="$debian_tree_packages"} \
        "$debian_tree_suite" "$1" ${mirror:+"$mirror"} >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        debian_tree_skip 'debootstrap failed (above): is there no network?'
    fi
    rm -rf "$log" "$1"/var/cache/apt/archives/*.deb
}
