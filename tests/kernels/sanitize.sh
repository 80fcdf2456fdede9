#!/bin/sh
# Run the tests of the native kernels with a library that checks itself: every access to memory (AddressSanitizer) and
# what C++ leaves undefined (UndefinedBehaviorSanitizer). Any finding ends the run with its stack.
#
#     tests/kernels/sanitize.sh [what pytest takes, such as -k product]
#
# Needs g++ on Linux; PYTHON names the interpreter (default: .venv/bin/python). The repository stays as it is: library and
# tests are copied to a temporary directory. XLA's own code is not instrumented, but its buffers are malloc's, so that
# an access beside one of them is found. ThreadSanitizer would need all of jaxlib to be built with it: it does not see
# the locks of code that is not instrumented, and reports what they order as races. SANITIZE=thread checks the part that
# threads share, native/team.h, on its own instead.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

cd "$root"
cp -r kangaroo_jax bench convert train tests pyproject.toml "$place"
cd "$place"
include=$("$python" -c 'import jax; print(jax.ffi.include_dir())')
name=$("$python" -c 'import sysconfig; print("_native" + sysconfig.get_config_var("EXT_SUFFIX"))')
echo "building with sanitizers"
rm -f kangaroo_jax/kernels/_native.*
g++ -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -fno-math-errno -ffp-contract=fast -Wno-psabi -fPIC -shared -isystem "$include" \
    kangaroo_jax/kernels/native/*.cc -o "kangaroo_jax/kernels/$name"

# Leaks: Python and XLA never free some of what they hold. Memory that XLA's LLVM frees in its own ways is not ours.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:alloc_dealloc_mismatch=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
export PYTHONPATH=.
"$python" -m pytest -n 0 -s -p no:cacheprovider -p no:faulthandler tests/kernels "$@"

