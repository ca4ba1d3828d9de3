"""Trainer for ResNets with large minibatches, exactly as in Goyal et al. (arXiv:1706.02677)."""
