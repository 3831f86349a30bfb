"""The notebooks run from top to bottom, do what they say, and show clean outputs.

`DPRP_NOTEBOOK_WRITE=1 pytest tests/test_notebooks.py` runs them in full and writes their outputs
into the files.
"""

from __future__ import annotations

import json
import os
import re
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
_NAMES = ("quickstart", "deploy_to_raspberry_pi", "latency_study")
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
