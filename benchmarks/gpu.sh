#!/usr/bin/env bash
# What a GPU is asked, in one call of at most 8 minutes, as tables and one file of figures:  bash benchmarks/gpu.sh [FOLDER]
# FOLDER/gpu.json is written as figures come, so that a run that is cut has lost the last ones alone.
# Runs with $PYTHON, else with the project's environment, else with the python3 of the path.
# `bash benchmarks/gpu.sh --toy [FOLDER]` runs the same on the CPU at toy size: does it work, not how fast.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PATH="$(dirname "$python"):$PATH"
options=(--device cuda --rounds 3)
is_toy=no
if [ "${1:-}" = --toy ]; then
    is_toy=yes
    options=(--toy --rounds 1)
    shift
elif ! "$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device: use --toy to try the scripts"'; then
    exit 1
fi
folder=${1:-.}
mkdir -p "$folder"
rm -f "$folder/gpu.json"
failed=0

measure() { # seconds that a GPU may take, script
    local limit=$1
    [ $is_toy = no ] || limit=0 # none: a processor may have other work
    timeout --kill-after=5 "$limit" "$python" "benchmarks/$2.py" "${options[@]}" --json "$folder/gpu.json"
    local code=$?
    if [ $code = 124 ] || [ $code = 137 ]; then
        echo "$2.py was cut after $1 s: its figures so far are in $folder/gpu.json" >&2
    elif [ $code != 0 ]; then
        failed=1
    fi
}

measure 190 objective
if "$python" -c 'import deepspeed' 2> /dev/null; then
    measure 180 training
else
    echo "training.py was not run: this Python has no deepspeed" >&2
fi
measure 95 evaluation
exit $failed
