#!/bin/sh
# Makes .venv ready for work: finds a Python, installs what the system lacks where that is allowed (apt-get, as root or by sudo
# without a password), else says exactly what to install. Called by the Makefile: bootstrap.sh PYTHON VENV
# It does not build the C programs' objects by itself: the editable install runs the Makefile for that.
set -eu
python=$1 venv=$2
cd "$(dirname "$0")"

missing() { # the Debian packages of what is not here
    command -v "$python" >/dev/null 2>&1 || { echo python3 python3-venv; }
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
    command -v cc >/dev/null 2>&1 || echo gcc
    command -v c++ >/dev/null 2>&1 || echo g++
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c - -o /dev/null 2>/dev/null || echo libc6-dev
    printf '#include <sodium.h>\nint main(void) { return sodium_init() < 0; }\n' | cc -x c - -o /dev/null -lsodium 2>/dev/null || echo libsodium-dev
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

wanted=$(missing | tr ' ' '\n' | sort -u | paste -sd ' ')
if [ -n "$wanted" ]; then
    echo "dwrap: installing what is missing: $wanted"
    # shellcheck disable=SC2086 # the list is words
    if ! { command -v apt-get >/dev/null 2>&1 && as_root apt-get -qq update && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $wanted; }; then
        echo "dwrap: cannot set up: these Debian packages (or their like) are missing: $wanted; install them and run make again" >&2
        exit 1
    fi
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "dwrap: cannot set up: $("$python" --version) is too old; install Python 3.11 or newer and run make PYTHON=python3.11" >&2
    exit 1
fi
[ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -e '.[dev]'
# An editable install copies the programs; links never go stale.
for program in dwrap dwrap-runner; do
    ln -sf "$PWD/build/bin/$program" "$venv/bin/$program"
done
touch "$venv/ready"
