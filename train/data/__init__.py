"""Data on the host: data sets, images, minibatches and reading ahead."""
