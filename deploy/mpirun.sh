#!/usr/bin/env bash
# Trains on several hosts by Open MPI, with as many processes on each as stand behind its name:
#
#     HOSTS=node1:1,node2:1 deploy/mpirun.sh imagenet --workdir DIR --data-dir DIR
#
# One process takes all GPUs of its host; with as many processes as GPUs each takes one.
# Needs ssh without a password, and the checkout with its .venv, the data and the workdir at the same
# paths on every host. Open MPI 5 needs the package mpi4py too.
set -m # so that Ctrl-C reaches this script alone

# mpirun kills its processes a second after SIGTERM or Ctrl-C, too soon for saving. SIGUSR1 it hands
# on, so that goes to mpirun, and SIGTERM from that to each process. A signal cuts `wait` short, so
# the last one is for the exit code. Without --bind-to none each process would have one core.
one_process='
    trap "" USR1
    "$@" &
    trap "kill -TERM $!" USR1
    while kill -0 $! 2>/dev/null; do wait $!; done
    wait $!
'
mpirun --host "${HOSTS:-localhost:2}" --bind-to none \
    bash -c "$one_process" - "${PYTHON:-.venv/bin/python}" -m train "$@" &
trap 'kill -USR1 $!' TERM INT
while kill -0 $! 2>/dev/null; do wait $!; done
wait $!
