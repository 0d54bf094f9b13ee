#!/bin/sh
# Builds llama-cpp-python with CUDA in an environment of its own, then runs bench/cuda.py with the arguments given:
#   bench/cuda.sh                       random model of 1 billion parameters
#   bench/cuda.sh --size 8b             one of 8 billion (9 GB on disk)
#   bench/cuda.sh --model my.gguf
# PYTHON and VENV choose the interpreter and the environment (.venv-cuda), CMAKE_ARGS adds switches for llama.cpp,
# such as -DCMAKE_CUDA_ARCHITECTURES=90.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
VENV=${VENV:-$ROOT/.venv-cuda}

command -v nvcc >/dev/null || { echo "error: no nvcc on PATH; install the CUDA toolkit" >&2; exit 1; }
nvidia-smi -L || { echo "error: no NVIDIA GPU that its driver can use" >&2; exit 1; }
if [ ! -e "$VENV/.built" ]; then
    "${PYTHON:-python3}" -m venv "$VENV"
    # pip would take a wheel that was once built without CUDA
    (cd "$ROOT" && CMAKE_ARGS="-DGGML_CUDA=on -DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" PIP_NO_CACHE_DIR=1 \
        PIP_NO_BINARY=llama-cpp-python "$VENV/bin/python" tools/install_llama.py)
    touch "$VENV/.built"
fi
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$ROOT"
exec "$VENV/bin/python" "$ROOT/bench/cuda.py" "$@"
