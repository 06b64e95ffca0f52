# shellcheck shell=bash
# Read after env.sh by the set-up scripts, never run: system packages through apt-get.

can_install() {
    has apt-get && { ((EUID == 0)) || { has sudo && sudo -n true 2>/dev/null; }; }
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

install_packages() {
    local log
    say "installing with apt-get: $*"
    log="$(mktemp)"
    as_root apt-get update -qq >"$log" 2>&1 || say "apt-get update failed; trying with the lists that are here"
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: $*"
    fi
    rm -f "$log"
}

# unpack_program PACKAGE PROGRAM: takes one program out of Debian's package into the tools folder, which needs no right to
# install anything.
unpack_program() {
    local work status=0
    say "unpacking $2 of Debian's $1 into $TOOLS/bin"
    work="$(mktemp -d)"
    chmod 755 "$work"
    {
        download_package "$work" "$1" && dpkg-deb -x "$work/$1"_*.deb "$work/root" &&
            install -D "$work/root/usr/bin/$2" "$TOOLS/bin/$2" &&
            "$TOOLS/bin/$2" --version
    } >"$work/log" 2>&1 || status=1
    if ((status != 0)); then
        cat "$work/log" >&2
        rm -f "$TOOLS/bin/$2"
        say "could not unpack $1; apt-get's own message is above"
    fi
    rm -rf "$work"
    return "$status"
}

# With the system's package lists, which may be missing or old; else with fresh ones of our own, for which nobody need be root.
download_package() (
    cd "$1" || return
    if apt-get download "$2"; then return; fi
    mkdir -p lists/partial archives/partial
    local own=(-o "Dir::State::lists=$1/lists" -o "Dir::Cache=$1" -o APT::Sandbox::User=)
    apt-get "${own[@]}" update && apt-get "${own[@]}" download "$2"
)
