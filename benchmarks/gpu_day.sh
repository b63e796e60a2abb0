#!/usr/bin/env bash
# Everything that only a GPU can say, in ten minutes, into one JSON:
#     benchmarks/gpu_day.sh [--dry] [OUT.json]
# --dry rehearses every line on the CPU with small networks. Nothing is fetched from the network. Each part is
# bounded and written as it ends: what a part finds is there even where a later one fails.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=""
if [ "${1:-}" = --dry ]; then dry=--dry; shift; fi
out=${1:-gpu_day.json}
export PYTHONPATH=$PWD
failed=0
part() { # name, seconds, command
    local name=$1 limit=$2; shift 2
    echo "== $name"
    timeout "$limit" "$@" || { echo "$name: exit $?"; failed=1; }
}
part doctor 60 python -m bcnet_deploy doctor
part tests 120 python -m pytest -q -m gpu tests/train tests/runtime -p no:cacheprovider
for name in training evaluation engines table; do
    part "$name" 100 python benchmarks/gpu_day.py "$name" $dry --out "$out"
done
exit $failed
