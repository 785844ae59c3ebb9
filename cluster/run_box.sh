#!/bin/bash
# A whole study on one machine: the doctor, then all chapters for each seed, and everything that they write to a safe place.
#
#     R3_BACK=/mnt/bucket/runs R3_SEEDS="0 1 2" cluster/run_box.sh --profile paper --model Qwen/Qwen2.5-7B-Instruct
#
# Options go to `r3-repro doctor` and `r3-repro reproduce`. To run it again is to resume, on another machine too: what is at
# R3_BACK and not here, or newer than here, is copied first. Exit code 1 if the doctor finds a problem or a chapter fails.
#
#     R3_ROOT        run tree on a disk of this machine [runs/ of the clone]
#     R3_BACK        where the run tree, with executed notebooks and the doctor's report, is copied to [nowhere]
#     R3_BACK_EVERY  seconds from one copy to the next [600]
#     R3_SEEDS       seeds of training [0]
#     PYTHON         [.venv/bin/python of the clone]
#
# Relative paths begin in the folder in which it is started.
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$clone/.venv/bin/python} root=${R3_ROOT:-$clone/runs} back=${R3_BACK:-} every=${R3_BACK_EVERY:-600}
root=${root/#\~\//$HOME/} back=${back/#\~\//$HOME/}
copier='' work=''

bring_back() { if [[ -n $back ]]; then "$python" "$clone/cluster/mirror.py" "$root" "$back"; fi; }

finish() {
  code=$?
  trap - EXIT TERM INT
  for child in $copier $work; do kill "$child" 2>/dev/null && wait "$child" || true; done
  bring_back || code=1
  echo "run_box: ended with $code, $(date -u +%FT%TZ)"
  exit "$code"
}

# In the background, since a signal would wait for a program in the foreground to end.
run() {
  echo "run_box: r3-repro $*, $(date -u +%FT%TZ)"
  "$python" -m r3_repro "$@" &
  work=$!
  wait "$work"
  work=''
}

mkdir -p "$root"
if [[ -n $back ]]; then "$python" "$clone/cluster/mirror.py" --back "$back" "$root"; fi
trap finish EXIT
trap 'exit 143' TERM INT
if [[ -n $back ]]; then
  while sleep "$every" &>/dev/null; do bring_back || echo "run_box: nothing was copied to $back this time" >&2; done &
  copier=$!
fi

run doctor "$@" --root "$root" --json "$root/doctor.json"
for seed in ${R3_SEEDS:-0}; do
  run reproduce "$@" --root "$root" --seed "$seed"
done
