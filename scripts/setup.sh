#!/usr/bin/env bash
# Sets up .venv with what training and reports need, system packages included; with --tests, also with what the tests
# and the site need: FFCV (and OpenCV, which it builds against), checkers, peers, a browser, Sphinx. A second run ends
# at once.
# Called by quickstart.sh, test.sh and docs.sh. PYTHON=... chooses an interpreter other than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

python=${PYTHON:-python3}
stamp=.venv/installed-for
all=train,report,ffcv,dev,docs
case "$*" in
    "") extras=train,report ;;
    --tests) extras=$all ;;
    *) fail "scripts/setup.sh $*: expected --tests or nothing" ;;
esac
wanted() { "$python" -VV; cat constraints.txt pyproject.toml; echo "$1"; }
for installed in "$extras" "$all"; do
    if [ -f "$stamp" ] && command -v "$python" >/dev/null && wanted "$installed" | cmp -s - "$stamp"; then
        say "set-up: .venv is up to date"
        exit 0
    fi
done
# What has been set up for the tests stays so.
if [ -f "$stamp" ] && [ "$(tail -n 1 "$stamp")" = "$all" ]; then extras=$all; fi

missing=()
if ! command -v "$python" >/dev/null; then
    missing+=(python3 python3-venv)
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" -V): expected Python 3.10 or newer; set PYTHON=..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi
command -v g++ >/dev/null || missing+=(g++)
optional=()
[ -d /usr/share/datasets/fashion-mnist ] || optional+=(dataset-fashion-mnist) # else torchvision downloads it
if [ "$extras" = "$all" ]; then # FFCV is built, and a report is opened
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        missing+=(python3-dev)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
    command -v chromium >/dev/null || optional+=(chromium)
fi

install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq)
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(no)
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then as_root=(sudo); fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        fail "missing: ${missing[*]} (Debian's names): install them with this system's package manager"
    [ "${as_root[0]:-}" != no ] ||
        fail "missing: ${missing[*]}: run: sudo apt-get install -y ${missing[*]}"
fi
if [ $((${#missing[@]} + ${#optional[@]})) -gt 0 ] && [ "${as_root[0]:-}" != no ] && command -v apt-get >/dev/null; then
    say "set-up: apt-get install ${missing[*]} ${optional[*]}"
    "${as_root[@]}" apt-get update -qq ||
        say "set-up: apt-get update failed; continuing with the existing package lists"
    if [ ${#missing[@]} -gt 0 ]; then
        "${as_root[@]}" "${install[@]}" --no-install-recommends "${missing[@]}" >/dev/null ||
            fail "missing: ${missing[*]}: apt-get install failed"
    fi
    for package in "${optional[@]}"; do
        "${as_root[@]}" "${install[@]}" --no-install-recommends "$package" >/dev/null ||
            say "set-up: no package $package here (dataset-fashion-mnist: torchvision downloads it; chromium: its test fails)"
    done
fi

say "set-up: installing Python packages into .venv (several GB with PyTorch's CUDA libraries; minutes the first time)"
clear=()
if [ -e .venv/bin/python ] && [ "$(.venv/bin/python -VV 2>&1)" != "$("$python" -VV)" ]; then
    say "set-up: .venv is of another Python: made anew"
    clear=(--clear)
fi
"$python" -m venv ${clear[@]+"${clear[@]}"} .venv
.venv/bin/python -m pip install -q --no-compile --disable-pip-version-check --progress-bar off -c constraints.txt \
    -e ".[$extras]"
# pip would compile on one core, and packages' own tests too; what does not compile is a template or of another Python.
.venv/bin/python -m compileall -qq -j 0 -x /tests/ .venv/lib || true
wanted "$extras" >"$stamp"
say "set-up: done; to use it by hand: source .venv/bin/activate"
