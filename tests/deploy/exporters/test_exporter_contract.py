"""What every registered format of export must do; a new one is tested by being registered."""

from __future__ import annotations

import inspect
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dprp_tf as dprp
from dprp_tf.deploy import ExportReport, ParityError, run_file
from dprp_tf.deploy.exporters.exporting import EXPORTERS

Export = Callable[..., ExportReport]
EVERY = pytest.mark.parametrize(("suffix", "export"), EXPORTERS.items(), ids=EXPORTERS)


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _small() -> keras.Model:
    keras.utils.set_random_seed(6)
    image = keras.Input((6, 6, 3), name="image")
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(image))))


def _two_by_two() -> keras.Model:
    keras.utils.set_random_seed(2)
    # Names in neither alphabetical order, so that an order mix-up shows.
    image = keras.Input((6, 6, 2), name="picture")
    vector = keras.Input((3,), name="hints")
    features = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    joined = layers.Concatenate()([features, layers.Dense(5)(vector)])
    zone = layers.Dense(4, activation="softmax", name="zone")(joined)
    return keras.Model([image, vector], [zone, layers.Dense(2, name="box")(joined)])


def _two_faced() -> keras.Model:
    """Computes something else once traced, as a faulty converter would."""
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(image)
    x = layers.Lambda(lambda t: t if tf.executing_eagerly() else t * 1.05)(x)
    return keras.Model(image, layers.Flatten()(x))


@EVERY
def test_it_takes_what_every_exporter_takes(suffix: str, export: Export) -> None:
    assert suffix.startswith(".")
    parameters = list(inspect.signature(export).parameters)
    assert parameters[:2] == ["model", "path"]
    common = {"quantization", "calibration_data", "verification_data", "tolerance"}
    assert {*common, "minimum_agreement"} <= set(parameters)


@EVERY
@pytest.mark.parametrize("form", ["list", "dict"])
def test_every_output_is_compared(suffix: str, export: Export, form: str, tmp_path: Path) -> None:
    model, path = _two_by_two(), tmp_path / f"two{suffix}"
    generator = np.random.default_rng(3)
    x = {
        "picture": generator.normal(size=(20, 6, 6, 2)).astype("float32"),
        "hints": generator.normal(size=(20, 3)).astype("float32"),
    }
    report = export(model, path, verification_data=x if form == "dict" else list(x.values()))
    assert (report.passed, report.samples, report.inputs) == (True, 20, "verification_data")
    assert report.path == path
    assert report.format == suffix.removeprefix(".")
    assert report.size_bytes == path.stat().st_size
    wanted = dict(zip(("zone", "box"), model.predict(list(x.values()), verbose=0), strict=True))
    outputs = run_file(path, x)
    assert isinstance(outputs, dict)
    compared = {output.name: output for output in report.outputs}
    assert set(compared) == set(outputs) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5)
        scale = float(np.abs(values).max())
        assert compared[name].passed
        assert compared[name].reference_scale == pytest.approx(scale, rel=1e-4)
        assert compared[name].max_error <= 1e-4 * scale
        assert name in str(report)


@EVERY
def test_its_report_counts_the_operators(suffix: str, export: Export, tmp_path: Path) -> None:
    report = export(_small(), tmp_path / f"a{suffix}")
    convolutions = [name for name in report.operators if name.lower().startswith("conv")]
    assert [report.operators[name] for name in convolutions] == [1]
    assert all(isinstance(count, int) and count > 0 for count in report.operators.values())
    assert convolutions[0] in str(report)
    assert report.as_dict()["operators"] == report.operators


@EVERY
@pytest.mark.parametrize("name", ["a", "a.keras", "a.txt", "a{}.gz"])
def test_another_suffix_is_refused(suffix: str, export: Export, name: str, tmp_path: Path) -> None:
    others = [f"a{other}" for other in EXPORTERS if other != suffix]
    for wrong in (name.format(suffix), *others):
        with pytest.raises(ValueError, match=rf"`path` must end in \{suffix}.*{wrong}"):
            export(_small(), tmp_path / wrong)
    assert _left(tmp_path) == []


@EVERY
def test_what_is_no_model_is_refused(suffix: str, export: Export, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a Keras model"):
        export("model.keras", tmp_path / f"a{suffix}")
    assert _left(tmp_path) == []


@keras.saving.register_keras_serializable("dprp_tf_tests")
class Doubled(layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


@EVERY
@pytest.mark.parametrize("nested", [False, True])
def test_layers_of_ones_own_are_exported(
    suffix: str, export: Export, nested: bool, tmp_path: Path
) -> None:
    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 3)(image)
    part: Any = Doubled(name="twice")
    if nested:
        part = keras.Sequential([keras.Input((2, 2, 2)), part])
    model, path = keras.Model(image, part(x)), tmp_path / f"a{suffix}"
    data = np.random.default_rng(0).random((8, 4, 4, 2), dtype=np.float32)
    assert export(model, path, verification_data=data).passed
    single = keras.Model(image, x).predict(data, verbose=0)
    np.testing.assert_allclose(run_file(path, data), 2 * single, atol=1e-5)


@EVERY
def test_a_class_whose_call_is_its_own_is_refused(
    suffix: str, export: Export, tmp_path: Path
) -> None:
    class Changed(keras.Model):
        def call(self, x: Any, training: Any = None) -> Any:
            return super().call(x / 255)

    image = keras.Input((4, 4, 2))
    with pytest.raises(ValueError, match=r"class Changed, whose own call\(\).*Export keras\.Model"):
        export(Changed(image, layers.Conv2D(2, 3)(image)), tmp_path / f"a{suffix}")
    assert _left(tmp_path) == []


@EVERY
@pytest.mark.parametrize("matricization", ["channel", "tucker"])
def test_a_low_rank_model_is_refused_until_it_is_folded(
    suffix: str, export: Export, matricization: str, tmp_path: Path
) -> None:
    dense, path = _small(), tmp_path / f"a{suffix}"
    model = dprp.factorize(dense, decomposition=matricization, ranks=2)
    name = type(model.low_rank_layers[0]).__name__
    with pytest.raises(ValueError, match=rf"\({name}\).*dprp_tf\.fold\(model\) first"):
        export(model, path)
    assert _left(tmp_path) == []
    x = np.random.default_rng(0).random((8, 6, 6, 3), dtype=np.float32)
    assert export(dprp.fold(model), path, verification_data=x).passed
    found = run_file(path, x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-4)
    assert np.abs(found - dense.predict(x, verbose=0)).max() > 1e-2


@EVERY
def test_operators_beyond_the_runtime_are_refused(
    suffix: str, export: Export, tmp_path: Path
) -> None:
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(2, 3)(image)
    model = keras.Model(image, keras.ops.svd(x[..., 0])[1])
    with pytest.raises(ValueError, match=r"Svd"):
        export(model, tmp_path / f"a{suffix}")
    assert _left(tmp_path) == []


@EVERY
def test_nan_weights_are_refused(suffix: str, export: Export, tmp_path: Path) -> None:
    model = _small()
    model.layers[1].kernel.assign(np.full((3, 3, 3, 4), np.nan))
    with pytest.raises(ValueError, match="finite outputs"):
        export(model, tmp_path / f"a{suffix}")
    assert _left(tmp_path) == []


@EVERY
def test_a_file_that_differs_is_refused_and_removed(
    suffix: str, export: Export, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(7)
    path = tmp_path / f"faulty{suffix}"
    with pytest.raises(ParityError, match="does not compute what the Keras model") as caught:
        export(_two_faced(), path)
    report = caught.value.report
    assert isinstance(report, ExportReport)
    assert not report.passed
    assert report.max_error / report.reference_scale == pytest.approx(0.05, rel=0.05)
    assert _left(tmp_path) == []
    # With that much allowed it is a file like any other.
    assert export(_two_faced(), path, tolerance=0.1).passed
    assert _left(tmp_path) == [path.name]


@EVERY
def test_a_refused_file_leaves_the_older_one(suffix: str, export: Export, tmp_path: Path) -> None:
    keras.utils.set_random_seed(8)
    # Wide enough for weights that either format stores in half precision.
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64)])
    path = tmp_path / f"kept{suffix}"
    export(model, path)
    content = path.read_bytes()
    with pytest.raises(ParityError, match=f"float16 {suffix.removeprefix('.')} file"):
        export(model, path, quantization="float16", tolerance=0)
    assert path.read_bytes() == content
    assert _left(tmp_path) == [path.name]


@EVERY
def test_a_path_that_can_not_be_written(suffix: str, export: Export, tmp_path: Path) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(IsADirectoryError, match=f"folder{suffix}, which is a folder"):
        export(_small(), tmp_path / f"folder{suffix}")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=f"a{suffix}"):
        export(_small(), tmp_path / "file" / f"a{suffix}")
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    try:
        (closed / "probe").touch()
    except PermissionError:
        with pytest.raises(OSError, match=f"a{suffix}"):
            export(_small(), closed / f"a{suffix}")


@EVERY
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_model_stays_as_it_was(
    suffix: str, export: Export, quantization: str | None, tmp_path: Path
) -> None:
    model = _small()
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).random((8, 6, 6, 3), dtype=np.float32)
    before = model.predict(x, verbose=0)
    path = tmp_path / f"a{suffix}"
    export(model, path, quantization=quantization, calibration_data=x, minimum_agreement=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    model.fit(x, np.zeros((8, 4)), verbose=0)
    assert not np.array_equal(model.predict(x, verbose=0), before)


@EVERY
def test_converters_are_silent(
    suffix: str, export: Export, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = _small()
    capfd.readouterr()
    export(model, tmp_path / f"a{suffix}")
    assert capfd.readouterr() == ("", "")
