"""Formats of labeled images that `python -m train.prepare` reads, one module each."""
