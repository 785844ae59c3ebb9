#!/bin/bash
# Submit all chapters of a profile to Slurm, in order (see nbs/workflow/slurm.ipynb).
#
#     cluster/submit.sh --profile paper --seeds "0 1 2" -- --partition=gpu --time=24:00:00 --cpus-per-task=32
#
set -euo pipefail
exec "${PYTHON:-$(dirname "$0")/../.venv/bin/python}" -m r3_repro submit "$@"
