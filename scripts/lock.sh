#!/usr/bin/env bash
# Remakes requirements.lock: resolves pyproject.toml with all extras in a fresh environment and writes down what it got.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(bash scripts/find_python.sh)" -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip"
# Building the native runtime takes these beside it.
$pip install -q "setuptools>=77,<82" wheel "oneflow==0.9.0"
$pip install -q --no-build-isolation ".[test,bench,examples,dev,docs]"
{
    echo "# Every package of the development environment, for CPython 3.10 on x86-64 Linux. Made by scripts/lock.sh."
    $pip freeze --all --exclude diffusers_oneflow --exclude pip
} >requirements.lock
