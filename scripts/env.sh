# shellcheck shell=bash
# Read by the other scripts, never run: where things are, how messages look, and how a tool is found.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Everything that the scripts install without a system package goes here. A CI cache may point it elsewhere.
TOOLS="${RESOURCE_ALLOCATOR_TOOLS:-$ROOT/.tools}"
export ROOT TOOLS PATH="$TOOLS/bin:$PATH"
# The SQL statements are checked against .sqlx, whatever database the environment names.
export SQLX_OFFLINE=true

# Talk goes to standard error, so that a script's output can be piped.
say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# need_go_tool PACKAGE@VERSION: builds a program into the tools folder; a note beside it says which version it is.
need_go_tool() {
    local name="${1%@*}"
    # A module's major version is no part of its program's name.
    if [[ "$name" =~ /v[0-9]+$ ]]; then name="${name%/*}"; fi
    local program="$TOOLS/bin/${name##*/}" note="$TOOLS/bin/.${name##*/}.version"
    if [[ -x "$program" && "$(cat "$note" 2>/dev/null)" == "$1" ]]; then return; fi
    has go || fail "${name##*/} is built by Go, which is not on this machine"
    say "building $1 (up to a minute and a half on two cores)"
    mkdir -p "$TOOLS/bin"
    GOBIN="$TOOLS/bin" go install "$1" || fail "go could not build $1; its own message is above"
    printf '%s\n' "$1" >"$note"
}

# need_cargo_tool NAME VERSION: the same for a crate whose program cargo runs as a command of its own, such as cargo-deny.
need_cargo_tool() {
    if [[ "$(cargo "${1#cargo-}" --version 2>/dev/null)" == "$1 $2" ]]; then return; fi
    say "building $1 $2 (up to two minutes on two cores)"
    # Without optimisation, which would take three times as long. The build's target folder must not be the project's, which
    # CARGO_TARGET_DIR may name.
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --profile dev --root "$TOOLS" "$1@$2" ||
        fail "could not build $1; cargo's own message is above"
}

cargo_target_dir() {
    cargo metadata --manifest-path "$ROOT/Cargo.toml" --no-deps --offline --format-version 1 |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Prints the folder of a PostgreSQL server's programs, looking where the service looks, then where the set-up puts them.
find_postgres() {
    local folder folders
    mapfile -t folders < <(postgres_folders)
    for folder in "${folders[@]}"; do
        if [[ -n "$folder" && -x "$folder/initdb" && -x "$folder/postgres" ]]; then
            printf '%s\n' "$folder"
            return 0
        fi
    done
    return 1
}

postgres_folders() {
    printf '%s\n' "${RESOURCE_ALLOCATOR_POSTGRES_BIN:-}"
    if has initdb; then dirname "$(command -v initdb)"; fi
    if has pg_config; then pg_config --bindir || true; fi
    # Newest version first.
    compgen -G '/usr/lib/postgresql/*/bin' | sort -Vr || true
    compgen -G '/usr/pgsql-*/bin' | sort -Vr || true
    compgen -G '/opt/homebrew/opt/postgresql@*/bin' | sort -Vr || true
    compgen -G '/usr/local/opt/postgresql@*/bin' | sort -Vr || true
    printf '%s\n' "$TOOLS/postgres/bin"
}

# The service does not look into the tools folder by itself.
export_postgres() {
    local folder
    folder="$(find_postgres)" || return 1
    if [[ "$folder" == "$TOOLS/"* ]]; then export RESOURCE_ALLOCATOR_POSTGRES_BIN="$folder"; fi
}
