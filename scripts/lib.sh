# shellcheck shell=bash
# What the other scripts share: where things are kept, how to say and fail, and Python environments. Sourced, never run.
# shellcheck disable=SC2034  # used by whoever sources this

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Everything that is built or fetched lives outside the checkout, so that a clean clone stays clean and a second one is warm.
cache=${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}
tools=$cache/tools
venv=$cache/venv
peers=$cache/peers
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
# After what the user has in front: our copies are only used where there is nothing else.
export PATH=$PATH:$tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin

say() { printf '%s\n' "$*"; }
heading() { printf '\n== %s  %s\n' "$(date +%T)" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Marks a directory as made from the given files, so that a change of a lock file is noticed and nothing else costs time.
fingerprint() { cat "$@" | cksum; }

# ensure_python DIRECTORY REQUIREMENTS [OPTION...]: a virtual environment with what the file lists; the options are pip's.
ensure_python() {
    local directory=$1 requirements=$2 wanted marker=$1/.made-from
    wanted=$(fingerprint "$requirements")
    if [[ -x $directory/bin/python && $(cat "$marker" 2>/dev/null) == "$wanted" ]]; then return; fi
    say "Installing ${requirements#"$repo"/} into $directory"
    [[ -x $directory/bin/python ]] || python3 -m venv --clear "$directory"
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "${@:3}" -r "$requirements"
    printf '%s' "$wanted" >"$marker"
}
