"""Data that a command reads for a model: read once, at the size that the model takes."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from dprp_tf import data
from dprp_tf.cli.inputs import load_data
from dprp_tf.data import npz


@pytest.mark.parametrize(("size", "told"), [(8, False), (6, True)])
def test_an_npz_file_is_read_once_whatever_its_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: int,
    told: bool,
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 255, (12, 8, 8, 3), "uint8"),
        y_train=np.arange(12) % 3,
        x_test=rng.integers(0, 255, (6, 8, 8, 3), "uint8"),
        y_test=np.arange(6) % 3,
    )
    model = keras.Sequential([keras.Input((size, size, 3)), keras.layers.Flatten()])
    expected = data.load(path, image_size=size)
    reads: list[Path] = []
    original = npz.read_arrays

    def counted(source: Path, names: object) -> object:
        reads.append(source)
        return original(source, names)

    monkeypatch.setattr(npz, "read_arrays", counted)
    found = load_data(str(path), None, None, None, model)
    assert reads == [path]
    assert found.description == expected.description
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    np.testing.assert_array_equal(found.x_test, expected.x_test)
    said = "images of 8x8 pixels are resized to 6x6" in capsys.readouterr().err
    assert said is told
