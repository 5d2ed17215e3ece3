#!/usr/bin/env bash
# A whole board in a folder: an arm64 Debian root, emulated, with CPU torch and the aarch64 wheel, and our tests in it.
# As root, for debootstrap and chroot: `make board`, or `tests/board/board.sh WHEEL FOLDER`. Prints each command that it runs.
set -euo pipefail
wheel=$(realpath "$1") board=$2 here=$(cd "$(dirname "$0")/../.." && pwd)
torch=2.10.0 suite=bookworm python=3.11
site=$board/opt/flower/lib/python$python/site-packages

fetch=("${PIP:-python3}" -m pip install -q --only-binary=:all: --no-compile --target "$site" --python-version $python
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)

run() {
    printf '\n$ %s\n' "${*//$board/BOARD}"
    "$@"
}
inside() { run chroot "$board" /usr/bin/env -i HOME=/root PATH=/opt/flower/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 "$@"; }

for tool in debootstrap qemu-aarch64-static python3; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install debootstrap qemu-user-static python3-pip"; exit 1; }
done
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
qemu-aarch64-static --version | head -1

# Each of the two large parts is made once.
if [ ! -e "$board/.debian" ]; then
    run debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv,ca-certificates,libgomp1 $suite "$board"
    touch "$board/.debian"
fi
mountpoint -q "$board/proc" || mount -t proc proc "$board/proc"
trap 'umount "$board/proc"' EXIT
if [ ! -e "$board/.packages" ]; then
    inside python3 -m venv --without-pip /opt/flower
    # pip here instead of there: it unpacks the same files many times faster. It takes this machine for the target when
    # it asks what torch needs, so that is named.
    run "${fetch[@]}" --no-deps torch==$torch
    run "${fetch[@]}" filelock fsspec jinja2 networkx sympy typing-extensions flwr numpy pytest pytest-xdist hypothesis
    touch "$board/.packages"
fi
rm -rf "$site"/flower_edge*
run "${fetch[@]}" --no-deps --no-index "$wheel"
rm -rf "$board/repo" && mkdir "$board/repo"
cp -r "$here/tests" "$here/benchmarks" "$here/pyproject.toml" "$board/repo"

inside uname -m
inside QEMU_CPU=cortex-a53 python /repo/tests/wheel_runs.py
inside QEMU_CPU=cortex-a76 python /repo/tests/board/steps.py
# One node in the board, one outside it.
PYTHONPATH=$here run "${PIP:-python3}" "$here/tests/board/gossip.py" "$board"
# A Raspberry Pi 4: torch 2.10 has instructions that it lacks, and the doctor has to find that.
status=0 found=$(inside QEMU_CPU=cortex-a72 python -m flower_edge.cli doctor) || status=$?
echo "$found"
[ $status = 1 ]
grep -q SIGILL <<<"$found"
# The tests that are marked for boards. On a core that there is: as qemu's own `max`, torch runs into an illegal instruction.
tests=$(cd "$here" && grep -rl --include='test_*.py' 'pytest\.mark\.board' tests | sort | tr '\n' ' ')
inside QEMU_CPU=cortex-a76 sh -c "cd /repo && python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile \
    -m 'board and not slow' --hypothesis-profile=ci --durations=15 $tests"
