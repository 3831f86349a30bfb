"""The one room that touches what Keras does not promise.

Graphs, names and seeds of layers, payloads of variables, slots of optimizers, compiled functions:
whoever needs them asks here, in words of our own. `tests/keras_internals` says for each of them
which versions of Keras hold it.
"""

__all__: list[str] = []
