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
