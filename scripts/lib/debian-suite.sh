# Packages of another release of Debian than this host's, from its mirror: for unpacking, not for installing. Sourced.
[[ -z ${debian_suite_sourced:-} ]] || return 0
debian_suite_sourced=1
source "${BASH_SOURCE[0]%/*}/setup.sh"

# debian_suite_open SUITE DIRECTORY: fills the new DIRECTORY with what apt knows of the SUITE, and sets
# debian_suite_options for apt-get and apt-cache. Fails where the suite cannot be read.
debian_suite_open() {
    local mirror here
    here=$(source /etc/os-release && [[ $ID == debian ]] && echo "$VERSION_CODENAME") || return 1
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
        "Codename: $here" | head -n 1)
    mkdir -p "$2"/{lists/partial,cache/archives/partial}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$2/sources.list"
    debian_suite_options=(-qq -o "Dir::Etc::SourceList=$2/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$2/lists" -o "Dir::Cache=$2/cache" -o APT::Sandbox::User=root
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o APT::Update::Error-Mode=any)
    apt-get "${debian_suite_options[@]}" update
}
