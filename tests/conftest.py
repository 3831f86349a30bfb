"""What the tests share: seeds, quiet logs, both backends' gradients, and a table of errors."""

from __future__ import annotations

import gc
import os
import secrets
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# Two test processes whose BLAS both want every core wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Traced functions are millions of small objects, which the collector would look through some
# thousand times.
gc.set_threshold(50_000, 20, 50)

# Time limits would make results depend on the machine's load.
settings.register_profile(
    "dprp_tf",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# The same tests on other cases: DPRP_HYPOTHESIS_SEED=random, or a number to repeat. The random
# networks take DPRP_HYPOTHESIS_EXAMPLES of them.
_SEED = "DPRP_HYPOTHESIS_SEED"
settings.register_profile(
    "explore", settings.get_profile("dprp_tf"), derandomize=False, database=None
)
if os.environ.get(_SEED) == "random":
    # Set before xdist starts its workers, which inherit it.
    os.environ[_SEED] = str(secrets.randbelow(2**32))
settings.load_profile("explore" if os.environ.get(_SEED) else "dprp_tf")

_CIFAR10 = "DPRP_CIFAR10"
# Few tests that take long each: begun first, so that no worker is left alone with them at the end.
_LONG = (
    "test_properties_planes.py",
    "test_properties_lines_and_volumes.py",
    "test_distribution.py",
    "test_interruption.py",
    "test_notebooks.py",
    "test_cli_planning.py",
    "test_cli.py",
    "test_planner.py",
    "test_on_device.py",
    "test_readme.py",
)
_RECORDS: list[tuple[str, str, float]] = []
_COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(20240115)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator with a fixed seed."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def cifar10_path() -> str:
    """Path of a CIFAR-10 .npz, from the environment; without it the test is skipped, loudly."""
    path = os.environ.get(_CIFAR10, "")
    if not path:
        reason = f"set {_CIFAR10} to an .npz with x_train, y_train, x_test, y_test to run this"
        warnings.warn(f"skipped for want of data: {reason}", stacklevel=1)
        pytest.skip(reason)
    if not os.path.isfile(path):
        pytest.fail(f"{_CIFAR10} must name an .npz file. Received: {path}, which does not exist")
    return path


@pytest.fixture(scope="session")
def gradient() -> Callable[[Callable[[Any], Any], np.ndarray], np.ndarray]:
    """A function (scalar function, array) -> gradient, by the backend's own differentiation."""

    def compute(function: Callable[[Any], Any], at: np.ndarray) -> np.ndarray:
        value = keras.ops.convert_to_tensor(np.asarray(at, dtype="float32"))
        if keras.backend.backend() == "jax":
            import jax

            return np.asarray(jax.grad(function)(value))
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(value)
            result = function(value)
        return np.asarray(tape.gradient(result, value))

    return compute


@pytest.fixture(scope="session")
def layer_gradients() -> Callable[..., list[np.ndarray]]:
    """A function (layer, loss of no arguments) -> gradients of its trainable variables."""

    def compute(layer: keras.layers.Layer, loss: Callable[[], Any]) -> list[np.ndarray]:
        variables = layer.trainable_variables
        if keras.backend.backend() == "jax":
            import jax

            def stateless(values: list[Any]) -> Any:
                with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                    return loss()

            return [np.asarray(g) for g in jax.grad(stateless)([v.value for v in variables])]
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        return [np.asarray(g) for g in tape.gradient(value, [v.value for v in variables])]

    return compute


@pytest.fixture(scope="session")
def small_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits of 8x8 pixels in 0..1, (1797, 8, 8, 1), and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[..., None] / 16).astype("float32"), digits.target.astype("int64")


@pytest.fixture(scope="session")
def trained_on_digits(
    small_digits: tuple[np.ndarray, np.ndarray],
) -> Callable[[tuple[int, int]], keras.Model]:
    """A function (widths) -> a network with BatchNorm, shortcut A and preprocessing, trained."""
    from dprp_tf import zoo

    x, y = small_digits

    def train(widths: tuple[int, int]) -> keras.Model:
        keras.utils.set_random_seed(1)
        model = zoo.resnet_small((8, 8, 1), 10, widths=widths, preprocess=(0.3, 0.4))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(x[:1200], y[:1200], batch_size=64, epochs=10, verbose=0)
        return model

    return train


@pytest.fixture(scope="session")
def record_error() -> Callable[[str, str, float], None]:
    """A function (step, layer type, error): the largest of each pair is printed at the end."""

    def record(step: str, layer_type: str, error: float) -> None:
        _RECORDS.append((step, layer_type, float(error)))

    return record


@pytest.fixture(scope="session")
def count_case() -> Callable[[str, str, int], None]:
    """A function (table, what was seen, how often): the sums are printed at the end."""

    def count(table: str, seen: str, times: int = 1) -> None:
        _COUNTS[table, seen] += times

    return count


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: Any) -> None:
    # Before hypothesis' own plugin reads its option.
    if os.environ.get(_SEED) and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = os.environ[_SEED]


def pytest_report_header() -> str:
    given = os.environ.get(_SEED)
    if not given:
        return f"hypothesis cases: the same in every run; {_SEED}=random draws others"
    return f"hypothesis cases: drawn by {_SEED}={given}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # First, so that `-m "not long"` sees it.
    if keras.backend.backend() == "jax":
        for item in items:
            for name in ("long", "slow"):
                if item.get_closest_marker(f"{name}_on_jax") is not None:
                    item.add_marker(name)
    # Files stay whole, as `--dist loadfile` hands them out.
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else 99)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    # With xdist the figures come back from each worker when it ends.
    output = getattr(node, "workeroutput", {})
    _RECORDS.extend(tuple(row) for row in output.get("errors", ()))
    for table, seen, count in output.get("counts", ()):
        _COUNTS[table, seen] += count


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["errors"] = [list(row) for row in _RECORDS]
        session.config.workeroutput["counts"] = [[*key, count] for key, count in _COUNTS.items()]
    return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for table in dict.fromkeys(table for table, _ in sorted(_COUNTS)):
        terminalreporter.section(table)
        for (of, seen), count in _COUNTS.items():
            if of == table:
                terminalreporter.write_line(f"{count:>6}  {seen}")
    if not _RECORDS:
        return
    worst: dict[str, dict[str, float]] = {}
    steps: list[str] = []
    for step, layer_type, error in _RECORDS:
        if step not in steps:
            steps.append(step)
        row = worst.setdefault(layer_type, {})
        row[step] = max(row.get(step, 0.0), error)
    first = max(len("layer type"), *(len(name) for name in worst))
    widths = [max(10, len(step)) for step in steps]
    terminalreporter.section("maximum error by layer type")
    header = [f"{'layer type':<{first}}"]
    header += [f"{step:>{width}}" for step, width in zip(steps, widths, strict=True)]
    terminalreporter.write_line("  ".join(header))
    for name in sorted(worst):
        cells = [
            f"{worst[name][step]:>{width}.2e}" if step in worst[name] else f"{'-':>{width}}"
            for step, width in zip(steps, widths, strict=True)
        ]
        terminalreporter.write_line("  ".join([f"{name:<{first}}", *cells]))
