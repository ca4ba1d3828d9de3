"""Benchmarks of the library and the trainer, one command each: `python -m benchmarks.NAME`."""
