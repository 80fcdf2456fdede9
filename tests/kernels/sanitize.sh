#!/bin/sh
# Run the native kernels where they are watched: any finding ends the run, and shows its stack.
#
#     tests/kernels/sanitize.sh [what pytest takes, such as -k product]
#
# 1. ThreadSanitizer watches native/team.h, all that threads share, in a program of its own (team_threads.cc). Within XLA
#    that is not feasible: jaxlib is not instrumented, and what its locks put in order would be reported as races.
# 2. AddressSanitizer and UndefinedBehaviorSanitizer watch the library in the tests of this folder. XLA's own code is
#    not instrumented, but its buffers are malloc's, so that an access beside one of them is found.
#
# Needs g++ on Linux, and takes some minutes. PYTHON names the interpreter (default: .venv/bin/python). Everything is
# built and run in a copy, in a temporary directory.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(command -v "${PYTHON:-$root/.venv/bin/python}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$root"
cp -r kangaroo_jax bench convert train tests pyproject.toml "$place"
cd "$place"

echo "threads: building and running team_threads.cc"
g++ -std=c++17 -O1 -g -fsanitize=thread -pthread -Ikangaroo_jax/kernels/native tests/kernels/team_threads.cc -o threads
TSAN_OPTIONS=halt_on_error=1 ./threads

echo "memory: building the library"
include=$("$python" -c 'import jax; print(jax.ffi.include_dir())')
name=$("$python" -c 'import sysconfig; print("_native" + sysconfig.get_config_var("EXT_SUFFIX"))')
rm -f kangaroo_jax/kernels/_native.*
g++ -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -fno-math-errno -ffp-contract=fast -Wno-psabi -fPIC -shared -isystem "$include" \
    kangaroo_jax/kernels/native/*.cc -o "kangaroo_jax/kernels/$name"

# Not leaks, since Python and XLA never free some of what they hold, nor in which of its ways XLA frees the rest.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:alloc_dealloc_mismatch=0
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=.
# Not captured: what is found is written when the process ends.
"$python" -m pytest -n 0 -s -p no:cacheprovider tests/kernels "$@"
