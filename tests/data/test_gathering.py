"""Samples out of streams: every kind that Keras trains on gives the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dprp_tf import deploy
from dprp_tf.data.gathering import gather, is_stream

X = np.random.default_rng(0).random((50, 6, 6, 3)).astype("float32")
Y = np.arange(50) % 4


class _Batches(keras.utils.PyDataset):
    def __init__(self, labelled: bool) -> None:
        super().__init__()
        self._labelled = labelled

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        at = slice(8 * index, 8 * index + 8)
        return (X[at], Y[at]) if self._labelled else X[at]


class _Tensor:
    """What torch's tensors have: arrays only by way of detach, cpu, numpy."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def detach(self) -> _Tensor:
        return self

    def cpu(self) -> _Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self._array


class DataLoader:
    """Iterates like torch's: lists of tensors, a length and no index."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        for at in range(0, 50, 10):
            yield [_Tensor(X[at : at + 10]), _Tensor(Y[at : at + 10])]


def _generated() -> Iterator[Any]:
    for at in range(0, 50, 10):
        yield X[at : at + 10], Y[at : at + 10]


def _as_converters_want_it() -> Iterator[Any]:
    for at in range(50):
        yield [X[at : at + 1]]


DATASET = tf.data.Dataset.from_tensor_slices((X, Y))
STREAMS: dict[str, Callable[[], Any]] = {
    "batched": lambda: DATASET.batch(8),
    "single samples": lambda: DATASET,
    "without labels": lambda: tf.data.Dataset.from_tensor_slices(X).batch(8),
    "py dataset": lambda: _Batches(True),
    "py dataset without labels": lambda: _Batches(False),
    "generator": _generated,
    "function": lambda: _generated,
    "converter's": lambda: _as_converters_want_it,
    "loader": DataLoader,
    "iterator of weighted batches": lambda: iter([(X[:30], Y[:30], Y[:30]), (X[30:], Y[30:], Y)]),
    "endless": lambda: DATASET.repeat().batch(8),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_every_kind_gives_the_same_samples(kind: str) -> None:
    data = STREAMS[kind]()
    assert is_stream(data)
    x, y = gather(data, ranks={"image": 4}, limit=50)
    x = x[0] if isinstance(x, list) else x
    np.testing.assert_array_equal(x, X)
    if "without" in kind or kind == "converter's":
        assert y is None
    else:
        np.testing.assert_array_equal(y, Y)
    short, _ = gather(STREAMS[kind](), ranks={"image": 4}, limit=13)
    assert len(short[0] if isinstance(short, list) else short) == 13


@pytest.mark.parametrize("data", [X, X.tolist(), [X, Y], (X, Y), {"a": X}, tf.constant(Y), "path"])
def test_arrays_are_no_streams(data: Any) -> None:
    assert not is_stream(data)


def test_several_inputs_by_name_and_by_place() -> None:
    named = tf.data.Dataset.from_tensor_slices(({"a": X, "b": Y}, Y)).batch(9)
    x, _ = gather(named, ranks={"a": 4, "b": 1})
    assert set(x) == {"a", "b"}
    np.testing.assert_array_equal(x["b"], Y)
    single, _ = gather(tf.data.Dataset.from_tensor_slices({"a": X, "b": X}), ranks={"a": 4, "b": 4})
    np.testing.assert_array_equal(single["b"], X)
    x, _ = gather(iter([[X[:20], Y[:20]], [X[20:], Y[20:]]]))
    np.testing.assert_array_equal(x[1], Y)


def test_what_can_not_be_joined_and_what_is_empty() -> None:
    with pytest.raises(ValueError, match=r"`x` must give elements of one structure.*resize or pad"):
        gather(iter([X, X[:, :4]]), argument="x")
    with pytest.raises(ValueError, match="an empty stream"):
        gather(iter([]))
    with pytest.raises(ValueError, match="an empty stream"):
        gather(DATASET.take(0).batch(4))


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
@pytest.mark.parametrize("kind", ["batched", "single samples", "py dataset", "function", "loader"])
def test_files_are_calibrated_and_verified_on_streams(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(4)]
    )
    path = tmp_path / f"a{suffix}"
    options = {"quantization": "int8", "verification_data": X[::-1] ** 2}
    deploy.export(model, path, calibration_data=X, **options)
    content = path.read_bytes()
    report = deploy.export(model, path, calibration_data=STREAMS[kind](), **options)
    assert report.passed
    assert path.read_bytes() == content or suffix == ".onnx"  # ONNX names its nodes by a count
    outputs = deploy.run_file(path, STREAMS[kind]())
    np.testing.assert_allclose(outputs, deploy.run_file(path, X), atol=1e-6)
