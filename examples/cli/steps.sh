#!/usr/bin/env bash
# A network of one's own, a step at a time. Each command finds in ./bcnet-run what the one before left there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bcnet-deploy profile --model "$here/own_network.py:small" --input-size 1x16x16 --data digits \
    --device cpu-1thread --budget 10s
bcnet-deploy train --set epochs=2
bcnet-deploy search --latency 0.7x --evaluations 40
bcnet-deploy retrain --set epochs=2
bcnet-deploy export --engine ort
bcnet-deploy bench --rounds 2 --runs 5
bcnet-deploy report

# For scripts: one JSON object on standard output. A step that is done is not done again.
bcnet-deploy search --json | python3 -c 'import json, sys; print("widths:", json.load(sys.stdin)["widths"])'
