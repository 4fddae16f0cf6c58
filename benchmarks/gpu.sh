#!/usr/bin/env bash
# All benchmarks on one CUDA device, in under 8 minutes, as two tables and two JSON files:  bash benchmarks/gpu.sh [FOLDER]
# Runs with $PYTHON, else with the project's environment, else with the python3 of the path.
# `bash benchmarks/gpu.sh --toy [FOLDER]` runs the same on the CPU at toy size: does it work, not how fast.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PATH="$(dirname "$python"):$PATH"
options=(--device cuda --rounds 3)
if [ "${1:-}" = --toy ]; then
    options=(--toy --rounds 1)
    shift
else
    "$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device: use --toy to try the scripts"'
fi
folder=${1:-.}
mkdir -p "$folder"

"$python" benchmarks/objective.py "${options[@]}" --json "$folder/objective.json"
if "$python" -c 'import deepspeed' 2> /dev/null; then
    "$python" benchmarks/training.py "${options[@]}" --json "$folder/training.json"
else
    echo "training.py was not run: this Python has no deepspeed" >&2
fi
