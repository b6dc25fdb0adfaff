#!/bin/sh
# Make .venv from requirements.lock. Safe to repeat: a half-made environment is completed.
# TORCH=cpu takes PyTorch's CPU build, whose two files are the only ones not checked by hash.
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

install() {
    .venv/bin/uv pip install --quiet --python .venv/bin/python "$@"
}

# First torch itself, which may not be within reach, then all that is not CUDA's. Bytecode, half a
# gigabyte if all of it is compiled, comes with the first import of what is used.
install_cpu() {
    # shellcheck disable=SC2046
    install --no-deps --torch-backend cpu $(awk '/^torch(vision)?==/ {print $1}' requirements.lock) \
        2>/dev/null || return 1
    others='^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)=='
    awk -v others="$others" '/^[^ ]/ {keep = $0 !~ others} keep' requirements.lock > .venv/cpu.lock
    install --no-deps --require-hashes -r .venv/cpu.lock
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
    need=8
    if [ "${TORCH:-}" = cpu ]; then need=3; fi
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free" -lt "$need" ]; then
        echo "setup: the environment needs $need GB and only $free GB are free here" >&2
        exit 1
    fi
    echo "setup: making .venv with $("$python" --version) (up to $need GB, one to three minutes)"
    rm -rf .venv
    "$python" -m venv .venv
fi

.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
if [ "${TORCH:-}" != cpu ] || ! install_cpu; then
    if [ "${TORCH:-}" = cpu ]; then
        echo "setup: no CPU build of torch within reach; the ordinary one is installed"
    fi
    install --compile-bytecode --require-hashes -r requirements.lock
fi
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
.venv/bin/python -m compileall -q iqa_utils
touch .venv/.ready
echo "setup: .venv is ready"
