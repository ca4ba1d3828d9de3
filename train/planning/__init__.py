"""Predictions for hardware that is not there; training never needs them."""
