"""The paper's experiments on Fashion-MNIST: `python -m experiments`."""
