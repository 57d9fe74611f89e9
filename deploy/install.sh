#!/usr/bin/env bash
# Makes .venv: system packages where they are missing, an interpreter, uv, the locked dependencies.
#
#   deploy/install.sh        what studies, workers and an MLflow server need (requirements.txt)
#   deploy/install.sh dev    the tools of development as well (requirements-dev.txt)
#   deploy/install.sh uv     only uv, in .venv-uv (what `make lock` needs)
#
# The very last step leaves .venv/.installed and, where the tools are there too, .venv/.installed-dev. Tools that are
# there stay, whichever of the two is asked for.
#
# PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=.venv-uv/bin/uv
# Our wheels are up to half a gigabyte, and a slow mirror may need more than uv's 30 s for a first byte.
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

say() { echo "install: $*" >&2; }
die() { say "$*"; exit 1; }

# --- which Python ---------------------------------------------------------------------------------

runs() { "$1" -c "import sys; sys.exit(not ($2))" >/dev/null 2>&1; }  # a pyenv shim exists, but may not run
in_range() { runs "$1" "sys.implementation.name == 'cpython' and (3, 11) <= sys.version_info[:2] <= (3, 13)"; }
# Not the link inside an activated environment: that may be the very .venv that is made anew.
where() { "$1" -c 'import os, sys; print(os.path.realpath(sys.executable))'; }

choose_python() {  # sets `python`: what .venv is made from, and `bootstrap`: what uv is installed with
    local candidate
    python="" bootstrap=""
    if [ -n "${PYTHON:-}" ]; then
        in_range "$PYTHON" || die "PYTHON=$PYTHON is not a working Python 3.11, 3.12 or 3.13: name another, or none"
        python=$(where "$PYTHON") bootstrap=$python
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if in_range "$candidate"; then
            python=$(where "$candidate") bootstrap=$python
            return
        fi
    done
    # None fits. Any other Python 3 can still run pip, and uv then fetches one that does.
    runs python3 "sys.version_info >= (3, 8)" ||
        die "no Python here: install Python 3.11, 3.12 or 3.13, or name it with PYTHON=/path/to/python3.12"
    bootstrap=$(where python3)
    say "no Python 3.11 to 3.13 here: uv fetches one"
}

# --- system packages ------------------------------------------------------------------------------

missing_packages() {  # looked for by what they provide, so that other ways to have them count as well
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    "$bootstrap" -c 'import ensurepip, sys, venv; print(end="")' 2>/dev/null ||
        "$bootstrap" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
    if [ -n "$python" ]; then  # a fetched Python brings its headers
        "$python" -c 'if True:
            import os, sys, sysconfig
            if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
                print("python%d.%d-dev" % sys.version_info[:2])'
    fi
}

install_system_packages() {
    local packages as_root=()
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" != 0 ] || return 0
    local advice="as root: apt-get update && apt-get install ${packages[*]}"
    command -v apt-get >/dev/null || die "system packages are missing (Debian's names): ${packages[*]}"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "system packages are missing, $advice"
        as_root=(sudo)
        [ -t 0 ] || as_root=(sudo -n)  # nobody there to type a password
        "${as_root[@]}" true 2>/dev/null || die "system packages are missing and sudo does not work, $advice"
    fi
    say "system packages: ${packages[*]}"
    # A machine that has just booted may hold apt's lock for its own updates.
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update >&2 && "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >&2 ||
        die "apt-get failed; $advice"
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" = 0 ] || die "apt-get ran, but these are still not usable: ${packages[*]}"
}

# --- the environments -----------------------------------------------------------------------------

install_uv() {
    local pinned
    pinned=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' deploy/uv.txt)
    [[ "$("$uv" --version 2>/dev/null)" != "uv $pinned "* ]] || return 0
    "$bootstrap" -m venv --clear .venv-uv
    .venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --require-hashes -r deploy/uv.txt || die "uv $pinned could not be installed: see pip's message above"
}

install_venv() {  # with the tools of development, if $1 is dev
    local lock=requirements.txt stamps=(.venv/.installed)
    if [ "$1" = dev ] || [ -e .venv/.installed-dev ]; then
        lock=requirements-dev.txt
        stamps+=(.venv/.installed-dev)
    fi
    # Without the stamp the environment was never finished, or broke off while it was changed: begin again.
    [ -e .venv/.installed ] || rm -rf .venv
    rm -f .venv/.installed-dev .venv/.installed
    if [ ! -d .venv ]; then
        "$uv" venv --quiet --python "${python:-3.13}" .venv ||
            die "no Python 3.11 to 3.13 could be had: install one, or name it with PYTHON=/path/to/python3.12"
    fi
    # FFCV comes as source; its build takes setuptools from the same lock, so nothing unpinned is fetched.
    # Bytecode is compiled here, once, and not by the first study: there it would cost half a minute.
    "$uv" pip sync --python .venv/bin/python --require-hashes --compile-bytecode \
        --build-constraints "$lock" "$lock"
    # The project itself: its folder on the path. Of its Python nothing is built, so nothing can be stale.
    local packages
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pwd > "$packages/nfnet_ray.pth"
    build_jpeg_decoder "$packages"
    touch "${stamps[@]}"
}

build_jpeg_decoder() {  # setup.py: faster, with the same pixels; all works without it
    # The container image builds it later, in a step of its own.
    [ -e nfnet_ray/data/decoding/jpeg_box.c ] || return 0
    local temporary
    temporary=$(mktemp -d)
    rm -f "$1"/_nfnet_ray_jpeg*.so
    CC="${CC:-cc}" .venv/bin/python setup.py --quiet build_ext --build-lib "$1" --build-temp "$temporary" ||
        true
    rm -rf "$temporary"
    compgen -G "$1/_nfnet_ray_jpeg*.so" >/dev/null ||
        say "nfnet_ray/data/decoding/jpeg_box.c could not be built (is libjpeg-dev there?): JPEGs are decoded more slowly"
}

what=${1:-}
case "$what" in "" | dev | uv) ;; *) die "$what is not known: dev, uv or nothing" ;; esac
choose_python
if [ "$what" = uv ]; then
    install_uv
else
    install_system_packages
    install_uv
    install_venv "$what"
fi
