"""Trainer for ResNets with large minibatches, exactly as in Goyal et al. (arXiv:1706.02677)."""

import sys

if sys.argv[0] == "-m":  # Python looks for the module of `python -m train...`
    from train.run.startup import start_command

    start_command()
