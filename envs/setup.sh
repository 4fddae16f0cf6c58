#!/usr/bin/env bash
# Makes .venv from the lock. Says in one sentence what the machine lacks.
set -euo pipefail
python=${1:-python3}
needed_mib=4500

fail() { printf 'longshort: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "there is no '$python' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$python' is $("$python" --version 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "'$python' comes without venv; install it (Debian: apt-get install python3-venv)"
command -v c++ >/dev/null || command -v g++ >/dev/null ||
    fail "there is no C++ compiler, which DeepSpeed needs at its first run; install one (Debian: apt-get install g++)"
free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge "$needed_mib" ] || fail "the disk of $(pwd) has $free_mib MiB free, the environment and the demo need $needed_mib MiB; free some space"

echo "Making .venv (once; a few minutes, about 2 GB) ..."
"$python" -m venv .venv
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
{ install --require-hashes --no-deps --requirement envs/requirements.lock && install --requirement envs/torch.lock; } ||
    fail "pip could not install envs/*.lock (see above; $(df -Pm . | awk 'NR == 2 { print $4 }') MiB of disk are free); mend that and run make again"
install --no-deps --editable . ||
    fail "pip could not install this package (see above); mend that and run make again"
# Byte code, with all cores, which pip would make with one; and of what is imported here. Where Python is told to write none
# (PYTHONDONTWRITEBYTECODE), every start would compile torch and transformers anew, for twice as long as all else takes.
# Some packages have files that are not Python: templates.
.venv/bin/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/(?!auto/|llama/)' .venv/lib/python*/site-packages &
byte_code=$!
echo "Compiling DeepSpeed's CPU collective (once) ..."
.venv/bin/python -m longshort.training.launch >.venv/compile.log 2>&1 || compiled=no
wait $byte_code || true
[ "${compiled:-yes}" = yes ] ||
    fail "DeepSpeed's CPU collective does not compile, see .venv/compile.log; mend that and run make again"
touch .venv/installed
