"""Train a ResNet with large minibatches exactly as Goyal et al. (arXiv:1706.02677) say."""
