#!/usr/bin/env bash
# On a machine with a GPU: which recurrent kernels each backend runs and how fast
# it trains by them; then training and writing end to end. Run it in an
# environment with the extras gpu and torch.
set -euo pipefail
cd "$(dirname "$0")/.."
export TF_CPP_MIN_LOG_LEVEL=3
# TensorFlow would take all of the memory and leave none to the others.
export TF_FORCE_GPU_ALLOW_GROWTH=true XLA_PYTHON_CLIENT_PREALLOCATE=false
for backend in tensorflow jax torch; do
  KERAS_BACKEND=$backend python -m benchmarks.kernels
done
python -m benchmarks.training --units 128 512 --mode lines --batch 256
python -m benchmarks.writing --batch 1 256
