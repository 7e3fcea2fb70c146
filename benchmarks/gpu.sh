#!/bin/sh
# The benchmarks on a GPU: the same scripts, in seconds on the wall with the device waited for.
#
#     FFJORD_KIT_DATA=FOLDER sh benchmarks/gpu.sh [RESULTS.json]
#
# Takes about an hour and a half; rows that the file holds already are skipped, so it can be stopped and started again.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
json="${1:-benchmarks/results/gpu.json}"
"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null || {
    echo "gpu.sh: $python has no torch that finds a GPU on this machine; nothing was measured" >&2
    exit 1
}
mkdir -p "$(dirname "$json")"
"$python" benchmarks/toys.py --device cuda --budgets 15,60 --json "$json"
"$python" benchmarks/tables.py --device cuda --budgets 60 --json "$json"
"$python" benchmarks/solves.py --device cuda --json "$json"
"$python" benchmarks/memory.py --device cuda --json "$json"
"$python" benchmarks/odenet.py --device cuda --rows 60000 --epochs 20 --seeds 5 --json "$json"
"$python" benchmarks/gpu_steps.py
