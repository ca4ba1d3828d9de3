#!/usr/bin/env bash
# Trains on all hosts of a TPU pod, which JAX detects:
#
#     TPU=my-pod ZONE=europe-west4-b deploy/tpu-pod.sh imagenet --workdir DIR --data-dir DIR
#
# Needs gcloud. Every host needs the checkout in ~/optax-warmup with the extra `tpu` in its .venv,
# and the data and the workdir at the same paths, such as in a mounted bucket.
set -euo pipefail
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all \
    --command "cd optax-warmup && .venv/bin/python -m train ${*@Q}"
