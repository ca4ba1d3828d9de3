#!/usr/bin/env bash
# Trains on several hosts with Open MPI; HOSTS gives the number of processes on each host:
#
#     HOSTS=node1:1,node2:1 deploy/mpirun.sh imagenet --workdir DIR --data-dir DIR
#
# A single process per host uses all its GPUs; with one process per GPU, each uses one.
# Needs passwordless ssh, and the checkout with its .venv, the data and the workdir at the same paths
# on every host. Open MPI 5 also needs the package mpi4py.
set -m # so that Ctrl-C reaches only this script

# mpirun kills its processes one second after SIGTERM or Ctrl-C, too soon to save. It forwards
# SIGUSR1, which a wrapper around each process turns into SIGTERM. A signal interrupts `wait`, so the
# last `wait` returns the exit code. Without --bind-to none, each process would get only one core.
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
