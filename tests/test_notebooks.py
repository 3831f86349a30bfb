"""The notebooks run from top to bottom, do what they say, and show clean outputs.

`DPRP_NOTEBOOK_WRITE=1 pytest tests/test_notebooks.py` runs them in full and writes their outputs
into the files.
"""

from __future__ import annotations

import json
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import nbformat
import numpy as np
import pytest

from dprp_tf import data, deploy
from dprp_tf.files.atomic import write_text

_FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
_NAMES = (
    "quickstart",
    "deploy_to_raspberry_pi",
    "latency_study",
    "segmentation",
    "detection",
)
_WRITE = os.environ.get("DPRP_NOTEBOOK_WRITE") == "1"
_LARGEST_BYTES = 1_000_000
# `(/home/me/`, `"C:\Users\`; not `</span>`, `../x/` or `https://x/`.
_ABSOLUTE = re.compile(r"""(?:^|[\s"'(=,:\[])(?:/[\w.-]+/|[A-Za-z]:\\)""")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
_TIMESTAMP = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")


def _read(name: str) -> Any:
    return nbformat.read(_FOLDER / f"{name}.ipynb", as_version=4)


def _execute(name: str, folder: Path, facts: str) -> tuple[Any, dict[str, Any]]:
    """Run a notebook in a folder of its own and then `facts`, whose value comes back."""
    from ipykernel.kernelspec import write_kernel_spec
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = _read(name)
    length = len(notebook.cells)
    source = f"import json\nwith open('facts.json', 'w') as file:\n    json.dump({facts}, file)"
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    # A kernel of this very interpreter, whatever kernels the user has installed.
    write_kernel_spec(folder / "kernels" / "tested")
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    manager = AsyncKernelManager(kernel_name="tested", kernel_spec_manager=specs)
    kept = {
        key: value
        for key, value in os.environ.items()
        # What this test process set for itself a reader's kernel does not have.
        if not key.startswith(("DPRP_", "TF_CPP_", "ABSL_", "MPL", "KERAS_BACKEND", "PYTEST"))
    }
    environment = kept | {
        "DPRP_NOTEBOOK_FAST": "0" if _WRITE else "1",
        "DPRP_TF_CACHE": str(folder / "cache"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
    }
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=900,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    values = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    del notebook.cells[length:]
    if _WRITE:
        for output in _outputs(notebook):
            plain = output.get("data", {}).get("text/plain")
            if plain is not None:
                output["data"]["text/plain"] = _TERMINAL_CODES.sub("", plain)
        notebook.metadata["language_info"] = {"name": "python"}
        write_text(_FOLDER / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    return notebook, values


def _outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def _texts(notebook: Any) -> Iterator[str]:
    """Everything readable in the outputs; pictures aside."""
    for output in _outputs(notebook):
        yield output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield content if isinstance(content, str) else json.dumps(content)


def _require_clean(notebook: Any) -> None:
    for output in _outputs(notebook):
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output
    for text in _texts(notebook):
        assert not _ABSOLUTE.search(text), text
        assert not _TIMESTAMP.search(text), text


@pytest.mark.parametrize("name", _NAMES)
def test_committed_outputs_are_whole_and_clean(name: str) -> None:
    notebook = _read(name)
    nbformat.validate(notebook)
    _require_clean(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all("execution" not in cell.metadata for cell in code)
    pictures = sum("image/png" in output.get("data", {}) for output in _outputs(notebook))
    assert pictures >= 1
    assert (_FOLDER / f"{name}.ipynb").stat().st_size < _LARGEST_BYTES


def test_what_counts_as_unclean() -> None:
    for text in ("see /home/me/x.py", "File '/usr/lib/a'", "at C:\\Users\\me", "(/tmp/x/y)"):
        assert _ABSOLUTE.search(text), text
    for text in ("</span> runs/small.tflite 1/2 https://a.org/b/c ../a/b", "ms / MACs"):
        assert not _ABSOLUTE.search(text), text
    assert _TIMESTAMP.search("2024-05-06 07:08")
    assert not _TIMESTAMP.search("0.1 s, 12:30")


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    notebook, facts = _execute(
        "quickstart",
        tmp_path,
        "{'full': ranks.record['full_ranks'], 'now': lowrank.ranks, 'cuts': len(pruning.shrinks)}",
    )
    _require_clean(notebook)
    assert facts["cuts"] >= 1
    assert sum(facts["now"].values()) < sum(facts["full"].values())
    assert all(1 <= rank <= facts["full"][name] for name, rank in facts["now"].items())
    # What it left behind, judged from outside: a plain model, and files that compute the same.
    made = tmp_path / "runs" / "quickstart"
    small = keras.saving.load_model(made / "small.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in small._flatten_layers())
    images = data.load("digits").x_test[:40].astype("float32")
    expected = small.predict(images, verbose=0)
    for name in ("small.tflite", "small.onnx"):
        np.testing.assert_allclose(
            deploy.run_file(made / name, images), expected, atol=1e-4 * np.abs(expected).max()
        )


@pytest.mark.slow
def test_deploy_to_raspberry_pi(tmp_path: Path) -> None:
    notebook, facts = _execute(
        "deploy_to_raspberry_pi",
        tmp_path,
        "{'high': [plan.high for plan in plans.values()], 'answers': finished.stdout.split(),"
        " 'target': timed.results[0].target,"
        " 'low_rank': lowrank.predict(images, verbose=0).tolist()}",
    )
    _require_clean(notebook)
    assert facts["target"] == "local"
    assert len(facts["high"]) == 2
    assert max(facts["high"]) <= 1
    made = tmp_path / "runs" / "raspberry_pi"
    x_test = data.load("digits").x_test.astype("float32")
    expected = np.asarray(facts["low_rank"])
    images = x_test[: len(expected)]
    for name in ("dense_float32.tflite", "planned_float32.tflite"):
        np.testing.assert_allclose(
            deploy.run_file(made / name, images), expected, atol=1e-4 * np.abs(expected).max()
        )
    rounded = deploy.run_file(made / "planned_int8.tflite", x_test[:16])
    assert [int(answer) for answer in facts["answers"]] == rounded.argmax(-1).tolist()
    assert (made / "planned_int8.tflite").stat().st_size < (
        made / "planned_float32.tflite"
    ).stat().st_size


@pytest.mark.long
def test_latency_study(tmp_path: Path) -> None:
    notebook, facts = _execute(
        "latency_study",
        tmp_path,
        "{'dense': table.dense, 'least': table.least, 'budget': budget, 'ranks': lowrank.ranks,"
        " 'predicted': table.model_cost(lowrank.ranks), 'high': plan.high,"
        " 'forms': sorted({str(candidate.form.kind) for _, candidate, _ in points}),"
        " 'folded': small.predict(x_test[:8], verbose=0).tolist(),"
        " 'low_rank': lowrank.predict(x_test[:8], verbose=0).tolist()}",
    )
    _require_clean(notebook)
    assert {"concatenated", "summed", "pointwise_first", "separable"} <= set(facts["forms"])
    assert facts["least"] < facts["budget"] < facts["dense"]
    assert facts["predicted"] <= facts["budget"] * (1 + 1e-9)
    assert min(facts["ranks"].values()) < 9
    assert facts["high"] <= 1
    expected = np.asarray(facts["low_rank"])
    np.testing.assert_allclose(facts["folded"], expected, atol=1e-4 * np.abs(expected).max())


# What the notebooks of whole tasks tell of every way to make the network smaller.
_TASK_FACTS = (
    "{'shares': shares, 'before': before, 'after': after, 'best': best, 'files': score_of,"
    " 'ranks': lowrank.ranks, 'full': {layer.name: layer.full_rank for layer in"
    " lowrank.low_rank_layers}, 'images': x_test[:8].tolist()}"
)
_WAYS = {"ranks", "channels", "channels and ranks", "DPRP training"}


def _macs(model: keras.Model) -> int:
    """Multiply-accumulates of a network's convolutions, counted by their shapes."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2DTranspose):
            total += int(np.prod(layer.input.shape[1:3]) * np.prod(layer.kernel.shape))
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            total += int(np.prod(layer.output.shape[1:3]) * np.prod(layer.kernel.shape))
    return total


def _require_half_and_its_files(facts: dict[str, Any], made: Path) -> None:
    """Judge what a notebook left behind from outside: the small network and its two files."""
    assert set(facts["shares"]) == set(facts["before"]) == set(facts["after"]) == {"dense", *_WAYS}
    assert all(facts["shares"][name] <= 0.505 for name in _WAYS - {"DPRP training"})
    assert facts["shares"]["DPRP training"] < 1
    assert all(1 <= rank < facts["full"][name] for name, rank in facts["ranks"].items())
    if _WRITE:  # cut short, nothing has learned anything
        assert facts["shares"]["DPRP training"] <= 0.505
        assert min(facts["before"]["dense"], *facts["after"].values()) > 0.8
    # The losses are the notebook's own.
    dense, small = (
        keras.saving.load_model(made / f"{name}.keras", compile=False)
        for name in ("dense", "small")
    )
    assert all(type(layer).__module__.startswith("keras.") for layer in small._flatten_layers())
    assert _macs(small) <= 0.505 * _macs(dense)
    assert _macs(small) / _macs(dense) == pytest.approx(facts["shares"][facts["best"]], abs=1e-3)
    images = np.asarray(facts["images"], "float32")
    whole, expected = (_by_name(model.predict(images, verbose=0)) for model in (dense, small))
    exact, rounded = (
        _by_name(deploy.run_file(made / f"small_{kind}.tflite", images))
        for kind in ("float32", "int8")
    )
    assert set(exact) == set(rounded) == set(expected) == set(whole)
    for name, array in expected.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(exact[name], array, atol=1e-4 * scale)
        assert 1e-4 < np.abs(rounded[name] - array).max() / scale < 0.25
        assert np.abs(whole[name] - array).max() > 1e-2 * scale
    scores = facts["files"]
    assert scores["small_float32.tflite"] == pytest.approx(facts["after"][facts["best"]], abs=2e-3)
    assert scores["small_int8.tflite"] == pytest.approx(facts["after"][facts["best"]], abs=0.03)
    sizes = [(made / f"small_{kind}.tflite").stat().st_size for kind in ("int8", "float32")]
    assert sizes[0] < 0.6 * sizes[1]


def _by_name(outputs: Any) -> dict[str, np.ndarray]:
    return outputs if isinstance(outputs, dict) else {"": outputs}


@pytest.mark.slow
def test_segmentation(tmp_path: Path) -> None:
    notebook, facts = _execute("segmentation", tmp_path, _TASK_FACTS)
    _require_clean(notebook)
    _require_half_and_its_files(facts, tmp_path / "runs" / "segmentation")


@pytest.mark.slow
def test_detection(tmp_path: Path) -> None:
    notebook, facts = _execute("detection", tmp_path, _TASK_FACTS)
    _require_clean(notebook)
    made = tmp_path / "runs" / "detection"
    _require_half_and_its_files(facts, made)
    found = deploy.run_file(made / "small_int8.tflite", np.asarray(facts["images"], "float32"))
    assert {name: array.shape for name, array in found.items()} == {
        "heatmap": (8, 12, 12, 3),
        "boxes": (8, 12, 12, 4),
    }


@pytest.fixture(scope="module")
def detector_score(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The functions of the detector's score, as the notebook has them, on 6x6 cells of 4 pixels."""
    path = tmp_path_factory.mktemp("cells") / "score.py"
    cells = {cell["id"]: cell.source for cell in _read("detection").cells}
    path.write_text(cells["score"], encoding="utf-8")
    given = {"np": np, "CELL": 4, "MIDDLES": 4 * (np.arange(6) + 0.5)}
    return runpy.run_path(str(path), init_globals=given)


def _maps(canvases: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Labels without a digit, and outputs that find nothing."""
    y = {"heatmap": np.zeros((canvases, 6, 6, 2)), "boxes": np.zeros((canvases, 6, 6, 5))}
    found = {"heatmap": np.full((canvases, 6, 6, 2), -9.0), "boxes": np.ones((canvases, 6, 6, 4))}
    return y, found


def test_boxes_that_overlap_share_what_they_share(detector_score: dict[str, Any]) -> None:
    box = np.array([0.0, 0.0, 4.0, 4.0])
    others = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [2, 2, 6, 6], [4, 0, 8, 4]], float)
    shares = detector_score["overlap"](box, others)
    np.testing.assert_allclose(shares, [1, 8 / 24, 4 / 28, 0])


def test_average_precision_of_a_case_by_hand(detector_score: dict[str, Any]) -> None:
    y, found = _maps(2)
    # Two digits of class 0 on the first canvas, one of class 1 on the second: 8 by 8 pixels.
    for canvas, row, column, kind in ((0, 1, 1, 0), (0, 4, 4, 0), (1, 2, 2, 1)):
        y["heatmap"][canvas, row, column, kind] = 1
        y["boxes"][canvas, row, column] = [1, 1, 1, 1, 1]
    assert detector_score["average_precision"](y, found) == 0
    found["heatmap"][0, 1, 1, 0] = 4  # right
    found["heatmap"][1, 4, 4, 0] = 3  # wrong: nothing lies there
    found["heatmap"][0, 4, 4, 0] = 2  # right: 8 by 4 of 8 by 8 is half of the union
    found["boxes"][0, 4, 4] = [1, 0, 1, 1]
    # Of class 1: the right place with too small a box, then the same digit right, then once more.
    found["heatmap"][1, 2, 2, 1] = 5
    found["boxes"][1, 2, 2] = [1, 0, 1, 0.9]
    found["heatmap"][1, 2, 4, 1] = 3
    found["boxes"][1, 2, 4] = [3, 1, -1, 1]
    found["heatmap"][1, 4, 2, 1] = 1
    found["boxes"][1, 4, 2] = [1, 3, 1, -1]
    of = detector_score["average_precision_of"]
    assert of(0, y, found) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert of(1, y, found) == pytest.approx(1 / 2)
    assert detector_score["average_precision"](y, found) == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_a_detection_is_the_largest_of_its_neighbours(detector_score: dict[str, Any]) -> None:
    _, found = _maps(1)
    found["heatmap"][0, 2, 2, 0], found["heatmap"][0, 2, 3, 0] = 2, 1
    scores, boxes = detector_score["detections"](found["heatmap"][0], found["boxes"][0], 0)
    np.testing.assert_allclose(scores, [1 / (1 + np.exp(-2))])
    np.testing.assert_allclose(boxes, [[6, 6, 14, 14]])
