#!/usr/bin/env bash
# Images on a GPU: MNIST and Fashion-MNIST to the best bits/dim that 25 minutes of training each allow.
#
#     FFJORD_KIT_DATA=FOLDER bash benchmarks/gpu_images.sh RUNS
#
# First which precision, layout and compilation trains fastest; then, for each set, the fit, its bits/dim with their
# errors, a sheet of samples and the pictures. It can be stopped at any moment and started again with the same RUNS: a fit
# goes on from its last checkpoint, at most 20 s before, and what is done is not done again. Everything is also in
# RUNS/log.txt. A small form for a CPU, which proves that it runs:
#
#     DEVICE=cpu SETS=mnist SIZE=14 HIDDEN=8,8 BATCH=16 TIME=20 TESTED=8 METHODS=float32 bash benchmarks/gpu_images.sh RUNS
set -euo pipefail
runs=$(mkdir -p "${1:?give a folder for the runs}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python="${PYTHON:-python}" device="${DEVICE:-cuda}" size="${SIZE:-28}" hidden="${HIDDEN:-128,256,256}"
batch="${BATCH:-256}" time="${TIME:-1500}" tested="${TESTED:-2000}"
methods="${METHODS:-float32,tf32,bf16,tf32 last,bf16 last,bf16 default,bf16 last default}"
if [ "$device" = cuda ]; then
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null || {
        echo "gpu_images.sh: $python has no torch that finds a GPU on this machine; nothing was measured" >&2
        exit 1
    }
fi
kit() { "$python" -m ffjord_kit "$@"; }
told() { tee -a "$runs/log.txt"; }

[ -s "$runs/fastest.txt" ] ||
    "$python" benchmarks/image_rates.py --device "$device" --hidden "$hidden" --batch "$batch" --size "$size" \
        --only "$methods" --best "$runs/fastest.txt" --json "$runs/rates.json" | told
for name in ${SETS:-mnist fashion_mnist}; do
    run="$runs/$name"
    if [ -s "$run/checkpoint/state.safetensors" ]; then
        kit fit --resume "$run" | told
    else
        # shellcheck disable=SC2046  # the options of the fastest are words
        kit fit "$name" --size "$size" --out "$run" --force --device "$device" --hidden "$hidden" \
            --batch-size "$batch" --learning-rate 1e-3 --ema-decay 0.9999 --schedule "flow_matching:${time}s" \
            --seed 0 $(cat "$runs/fastest.txt") | told
    fi
    [ -s "$run/bits.csv" ] || kit score "$run" "$name:test" --rows "$tested" --out "$run/bits.csv" | told
    [ -s "$run/sample.png" ] || kit sample "$run" -n 100 --seed 0 --out "$run/sample.npz" | told
    [ -d "$run/pictures" ] || kit plot "$run" --out "$run/pictures" | told
done
