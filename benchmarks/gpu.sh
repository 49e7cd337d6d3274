#!/usr/bin/env bash
# Measure on one GPU: bash benchmarks/gpu.sh [the flags of python -m benchmarks.gpu]
#
# On a machine with a network install requirements.txt and "jax[cuda13]<0.12" first. For one without,
# that has Python 3.12 or newer and JAX for its card, fetch the rest elsewhere and take it along:
#
#     bash benchmarks/gpu.sh wheels    # into .whl, 30 MB; copy that folder beside this repository
#
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = wheels ]; then
    platforms=()
    for platform in manylinux_2_35 manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 \
        manylinux2014 manylinux1; do
        platforms+=(--platform "${platform}_x86_64")
    done
    fetch() {
        python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
            --implementation cp "${platforms[@]}" -d "$@"
    }
    fetch .whl "gymnax>=1.0.1,<2" six gymnasium farama-notifications cloudpickle \
        tyro docstring-parser typeguard rich \
        "brax>=0.14.2" mujoco mujoco-core mujoco-mjx glfw pyopengl jaxopt ml-collections absl-py \
        tensorboardx trimesh flask flask-cors blinker itsdangerous
    fetch .whl/peers rejax "gymnax<1" flashbax || echo "the peers cannot be fetched: go without"
    exit
fi

if [ -d .whl ]; then
    install() {
        python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$@"
    }
    install .cache/site .whl/*.whl
    export PYTHONPATH="$PWD/.cache/site${PYTHONPATH:+:$PYTHONPATH}"
    if [ -d .whl/peers ]; then
        install .cache/site-peers $(ls .whl/*.whl | grep -v /gymnax-) .whl/peers/*.whl
        set -- --peers .cache/site-peers "$@"
    fi
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}"
exec python3 -m benchmarks.gpu "$@"
