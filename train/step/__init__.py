"""One optimizer update and one evaluation minibatch, as pure functions."""
