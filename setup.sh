#!/bin/sh
# Make .venv from requirements.lock. Safe to repeat: a half-made environment is completed.
set -eu
cd "$(dirname "$0")"

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if fits "$name"; then echo "$name"; return 0; fi
    done
    return 1
}

if [ ! -x .venv/bin/python ] || ! fits .venv/bin/python; then
    python=$(find_python) || {
        echo "setup: Python 3.11, 3.12 or 3.13 is needed, found none as ${PYTHON:-python3... on PATH};" >&2
        echo "       install one, or name it: make demo PYTHON=/path/to/python3.12" >&2
        exit 1
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        echo "setup: $python lacks the venv module (Debian, Ubuntu: install python3-venv)" >&2
        exit 1
    }
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free" -lt 8 ]; then
        echo "setup: the environment takes about 7 GB and only $free GB are free here" >&2
        exit 1
    fi
    echo "setup: making .venv with $("$python" --version) (about 7 GB, one to three minutes)"
    rm -rf .venv
    "$python" -m venv .venv
fi

.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
touch .venv/.ready
echo "setup: .venv is ready"
