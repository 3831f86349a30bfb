"""Real files, broken on purpose in every way that was thought of: each is refused, none is left."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.deploy import ExportReport, ParityError, export, run_file
from dprp_tf.deploy.exporters import onnx as onnx_exporter
from dprp_tf.deploy.exporters import tflite as tflite_exporter
from dprp_tf.deploy.exporters.converting import Conversion
from dprp_tf.deploy.exporters.source import Source

EXPORTERS = {".tflite": tflite_exporter, ".onnx": onnx_exporter}
CONVERSIONS: dict[str, tuple[Any, str]] = {
    ".tflite": (Conversion, "convert"),
    ".onnx": (onnx_exporter, "_convert"),
}
EVERY = pytest.mark.parametrize("suffix", EXPORTERS)
PRECISIONS = pytest.mark.parametrize("quantization", [None, "int8"])


def _classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="second")(x)
    x = layers.Dense(10, name="logits")(layers.Flatten()(x))
    return keras.Model(image, x)


def _two_inputs() -> keras.Model:
    keras.utils.set_random_seed(1)
    query, key = keras.Input((8,), name="query"), keras.Input((8,), name="key")
    difference = layers.Subtract()([layers.Dense(6)(query), layers.Dense(6)(key)])
    return keras.Model([query, key], layers.Dense(4, name="match")(difference))


def _box_head() -> keras.Model:
    """Four columns of four ranges, made of the same features."""
    keras.utils.set_random_seed(2)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(image)
    head = layers.Dense(4, name="box")
    model = keras.Model(image, head(layers.GlobalAveragePooling2D()(x)))
    head.kernel.assign(head.kernel * np.array([1, 10, 100, 1000], "float32"))
    return model


def _images(seed: int, samples: int = 96) -> np.ndarray:
    generator = np.random.default_rng(seed)
    brightness = generator.uniform(0.2, 1.0, (samples, 1, 1, 3))
    return (generator.random((samples, 12, 12, 3)) * brightness).astype("float32")


def _export(
    model: keras.Model, path: Path, quantization: str | None, x: Any, y: Any, **options: Any
) -> ExportReport:
    module: Any = EXPORTERS[path.suffix]
    export = getattr(module, f"export_{path.suffix[1:]}")
    calibration = x if quantization == "int8" else None
    return export(
        model,
        path,
        quantization=quantization,
        calibration_data=calibration,
        verification_data=y,
        **options,
    )


def _convert_instead(
    monkeypatch: pytest.MonkeyPatch, suffix: str, broken: Callable[[Source], Source]
) -> None:
    """Let the converter see another model than the one that the file is held against."""
    home, name = CONVERSIONS[suffix]
    convert = getattr(home, name)

    def converted(*given: Any) -> bytes:
        return convert(*(broken(x) if isinstance(x, Source) else x for x in given))

    monkeypatch.setattr(home, name, converted)


def _twin(source: Source, change: Callable[[keras.Model], None]) -> Source:
    twin = keras.models.clone_model(source.model)
    twin.set_weights(source.model.get_weights())
    change(twin)
    return Source(twin, source.inputs, source.outputs, source.notes)


def _permute(model: keras.Model) -> None:
    order = [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([kernel[:, order], bias[order]])


def _kill_class(model: keras.Model) -> None:
    kernel, bias = model.get_layer("logits").get_weights()
    kernel[:, 7] = bias[7] = 0
    model.get_layer("logits").set_weights([kernel, bias])


def _halve_class(model: keras.Model) -> None:
    kernel, bias = model.get_layer("logits").get_weights()
    kernel[:, 7] *= 0.3
    model.get_layer("logits").set_weights([kernel, bias])


def _kill_channel(model: keras.Model) -> None:
    kernel, bias = model.get_layer("second").get_weights()
    living = np.abs(kernel).sum(axis=(0, 1, 2)).argmax()
    kernel[..., living] = bias[living] = 0
    model.get_layer("second").set_weights([kernel, bias])


@EVERY
@PRECISIONS
@pytest.mark.parametrize("class_scores", [None, True])
@pytest.mark.parametrize("change", [_permute, _kill_class, _halve_class, _kill_channel])
def test_a_file_of_other_weights_is_refused(
    change: Callable[[keras.Model], None],
    class_scores: bool | None,
    quantization: str | None,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, path = _classifier(), tmp_path / f"a{suffix}"
    x, y = _images(1), _images(2)
    assert _export(model, path, quantization, x, y, class_scores=class_scores).passed
    path.unlink()
    _convert_instead(monkeypatch, suffix, lambda source: _twin(source, change))
    with pytest.raises(ParityError):
        _export(model, path, quantization, x, y, class_scores=class_scores)
    assert not list(tmp_path.iterdir())


@EVERY
@PRECISIONS
def test_swapped_inputs_are_refused(
    quantization: str | None, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = _two_inputs(), tmp_path / f"a{suffix}"
    generator = np.random.default_rng(3)
    x, y = ([generator.random((96, 8), dtype=np.float32) for _ in range(2)] for _ in range(2))
    assert _export(model, path, quantization, x, y).passed
    path.unlink()

    class Swapped(Source):
        def serve(self, *tensors: Any) -> dict[str, Any]:
            return super().serve(*reversed(tensors))

    def swapped(source: Source) -> Source:
        return Swapped(source.model, source.inputs, source.outputs, source.notes)

    _convert_instead(monkeypatch, suffix, swapped)
    with pytest.raises(ParityError):
        _export(model, path, quantization, x, y)
    assert not list(tmp_path.iterdir())


@EVERY
def test_a_box_head_of_four_ranges_is_refused_and_four_outputs_are_not(
    suffix: str, tmp_path: Path
) -> None:
    model, path = _box_head(), tmp_path / f"a{suffix}"
    x, y = _images(1), _images(2)
    assert _export(model, path, None, x, y).passed
    path.unlink()
    with pytest.raises(ParityError, match="an output of their own") as caught:
        _export(model, path, "int8", x, y)
    (output,) = caught.value.report.outputs
    assert output.channel < 3
    # The measure of before, one number for the tensor, has nothing to say against it.
    assert output.max_error / output.reference_scale < 0.25
    assert not list(tmp_path.iterdir())
    features = model.get_layer("box").input
    kernel, bias = model.get_layer("box").get_weights()
    heads = [layers.Dense(1, name=f"edge_{index}") for index in range(4)]
    split = keras.Model(model.input, [head(features) for head in heads])
    for index, head in enumerate(heads):
        head.set_weights([kernel[:, index : index + 1], bias[index : index + 1]])
    assert len(_export(split, path, "int8", x, y).outputs) == 4


def test_one_wrong_scale_in_an_int8_tflite_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, path = _classifier(), tmp_path / "a.tflite"
    x, y = _images(1), _images(2)
    _export(model, path, "int8", x, y)
    good = path.read_bytes()
    reader = Interpreter(model_content=good)
    reader.allocate_tensors()
    scales = {}
    for detail in reader.get_tensor_details():
        found = detail["quantization_parameters"]["scales"]
        if detail["dtype"] == np.int8 and len(found) == 1:
            scales[detail["name"]] = struct.pack("<f", found[0])
    assert len(scales) >= 4
    for name, scale in scales.items():
        # An activation's scale serves the operator before it and the one behind it: doubled it
        # costs a bit, a quarter of it saturates. A weight's is wrong either way.
        wrong = good.replace(scale, struct.pack("<f", 0.25 * struct.unpack("<f", scale)[0]))
        assert wrong != good, name
        monkeypatch.setattr(Conversion, "convert", lambda *_, content=wrong: content)
        path.unlink(missing_ok=True)
        with pytest.raises(ParityError):
            _export(model, path, "int8", x, y)
        assert not path.exists()
    monkeypatch.setattr(Conversion, "convert", lambda *_: good)
    assert _export(model, path, "int8", x, y).passed


def test_one_wrong_scale_in_an_int8_onnx_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    model, path = _classifier(), tmp_path / "a.onnx"
    x, y = _images(1), _images(2)
    _export(model, path, "int8", x, y)
    good = onnx.load(str(path))
    names = [entry.name for entry in good.graph.initializer if entry.name.endswith("_scale")]
    assert len(names) >= 6
    refused = set()
    for name in names:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(good)
        entry = next(e for e in wrong.graph.initializer if e.name == name)
        entry.CopyFrom(numpy_helper.from_array(0.25 * numpy_helper.to_array(entry), name))
        monkeypatch.setattr(onnx_exporter, "_convert", lambda *_, content=wrong: content)
        path.unlink(missing_ok=True)
        try:
            _export(model, path, "int8", x, y)
        except ParityError:
            refused.add(name)
    # The scale of a bias that is zero changes nothing.
    assert set(names) - refused <= {name for name in names if "bias" in name.lower()}


@EVERY
def test_a_folded_file_is_not_the_dense_one(suffix: str, tmp_path: Path) -> None:
    """A parity test that can't fail is none: what passes here differs from the model before."""
    import dprp_tf as dprp

    model, path = _classifier(), tmp_path / f"a{suffix}"
    y = _images(2)
    folded = dprp.fold(dprp.factorize(model, decomposition="channel", ranks=3))
    assert _export(folded, path, None, None, y).passed
    outputs = run_file(path, y)
    assert np.abs(outputs - model.predict(y, verbose=0)).max() > 1e-2


@PRECISIONS
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_no_room_to_convert_is_told_of_the_folder_that_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str | None, number: int
) -> None:
    full = os.strerror(number)

    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{{function_node SaveV2}} /tmp/saved/variables; {full} [Op:SaveV2]")

    def write(*_: Any, **__: Any) -> None:
        raise OSError(number, full)

    monkeypatch.setattr("tensorflow.saved_model.save", save)
    monkeypatch.setattr("pathlib.Path.write_bytes", write)
    samples = {} if quantization is None else {"calibration_data": _images(0, 4)}
    said = rf"Received: {tempfile.gettempdir()} \({full}\)\. Make room, or set TMPDIR"
    with pytest.raises(ValueError, match=said):
        export(_classifier(), tmp_path / "a.tflite", quantization=quantization, **samples)
    assert not list(tmp_path.iterdir())
