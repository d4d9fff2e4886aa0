#!/usr/bin/env bash
# Prints the path of a Python 3.10 that really runs and can make virtual environments.
# OneFlow 0.9.0 exists for no newer one. If $PYTHON is set, it is that one or none.
set -u

works() {
    [ -n "$1" ] && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 10))' </dev/null >/dev/null 2>&1
}

# One candidate per line, best first. A pyenv shim exists for versions that are not switched on, too:
# that is why each one is run, and why pyenv's own folders are looked into.
candidates() {
    type -aP python3.10 python3 python 2>/dev/null
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10*/bin/python3.10 2>/dev/null | sort -rV
    command -v uv >/dev/null && uv python find --no-project 3.10 2>/dev/null
    # Only now, since it downloads one where there is none.
    command -v uv >/dev/null && uv python install -q 3.10 >/dev/null 2>&1 && uv python find --no-project 3.10 2>/dev/null
    true
}

if [ -n "${PYTHON:-}" ]; then
    works "$PYTHON" && exec "$PYTHON" -c 'import sys; print(sys.executable)'
    echo "PYTHON=$PYTHON is no Python 3.10 that runs and can make virtual environments (venv, ensurepip)." >&2
    exit 1
fi

while read -r python; do
    if works "$python"; then
        "$python" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done < <(candidates)

cat >&2 <<'END'
No Python 3.10 found, and OneFlow 0.9.0 exists for no newer one. Install it in one of these ways and try again:
  uv python install 3.10
  pyenv install 3.10
  apt install python3.10-venv     (Ubuntu 22.04)
or name one: make PYTHON=/path/to/python3.10
END
exit 1
