"""A training that diverges stops, and says in which epoch, step, layer and term it went wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import data, layers
from dprp_tf.cli.main import app
from dprp_tf.data import Dataset
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.divergence import DivergenceError, DivergenceGuard, broken_weights
from dprp_tf.training.failure_record import own_loss_names
from dprp_tf.training.on_device import epoch_order, fit_on_device

pytestmark = pytest.mark.backend
STEPS, BATCH = 6, 4
CLASSES = 3


@keras.saving.register_keras_serializable(package="dprp_tf_tests")
class _Growing(keras.regularizers.Regularizer):
    """Infinite once a weight's mean magnitude is above `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, weight: Any) -> Any:
        size = keras.ops.mean(keras.ops.abs(weight))
        return keras.ops.where(size > self.limit, float("inf"), 0.0 * size)

    def get_config(self) -> dict[str, Any]:
        return {"limit": self.limit}


def _model(structure: str = "retraction", **options: Any) -> dprp.DPRPModel:
    keras.utils.set_random_seed(3)
    regularizer = options.pop("regularizer", None)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dense(4, name="second", activation="relu", kernel_regularizer=regularizer)(x)
    outputs = keras.layers.Dense(CLASSES, name="head")(x)
    return dprp.factorize(
        keras.Model(inputs, outputs), settings=dprp.DPRPSettings(structure=structure), **options
    )


def _np(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def _compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


@pytest.fixture(scope="module")
def prepared() -> Callable[[str], dprp.DPRPModel]:
    """A function structure -> compiled model, traced once and always as on its first day."""
    known: dict[str, Any] = {}

    def give(structure: str = "retraction") -> dprp.DPRPModel:
        if structure not in known:
            model = _compiled(_model(structure))
            model.optimizer.build(model.trainable_variables)
            variables = [*model.variables, *model.optimizer.variables]
            values = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
            known[structure] = model, variables, values
        model, variables, values = known[structure]
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        model.reset_metrics()
        return model

    return give


def _batches() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((STEPS * BATCH, 6)).astype("float32")
    return x, rng.integers(0, CLASSES, STEPS * BATCH).astype("int32")


def _fit(model: keras.Model, x: Any = None, y: Any = None, **options: Any) -> Any:
    clean = _batches()
    return model.fit(
        clean[0] if x is None else x,
        clean[1] if y is None else y,
        batch_size=BATCH,
        verbose=0,
        shuffle=False,
        **{"epochs": 3, **options},
    )


def _failure(model: keras.Model, **options: Any) -> DivergenceError:
    with pytest.raises(DivergenceError, match="Training diverged in epoch") as raised:
        _fit(model, **options)
    assert f"epoch {raised.value.epoch}" in str(raised.value)
    assert str(raised.value).count("\n") == 0
    return raised.value


class _At(keras.callbacks.Callback):
    """Do something to the model when an epoch begins, or after a batch of it."""

    def __init__(
        self, epoch: int, act: Callable[[keras.Model], None], batch: int | None = None
    ) -> None:
        super().__init__()
        self._when, self._act, self._batch, self._now = epoch, act, batch, -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._now = epoch
        if epoch == self._when and self._batch is None:
            self._change()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if (self._now, batch) == (self._when, self._batch):
            self._change()

    def _change(self) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self._act(self.model)


def _plant(layer: str, weight: str, value: float) -> Callable[[keras.Model], None]:
    def act(model: keras.Model) -> None:
        variable = next(w for w in model.get_layer(layer).weights if w.name == weight)
        values = np.array(keras.ops.convert_to_numpy(variable))
        values.flat[0] = value
        variable.assign(values)

    return act


# --- what went wrong is named ------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"steps_per_execution": 4}, {"jit_compile": True}],
    ids=["several steps per call", "compiled by XLA"],
)
def test_nan_in_the_inputs_of_one_step(options: dict[str, Any]) -> None:
    x, _ = _batches()
    x[BATCH * 3 + 1, 2] = np.nan
    error = _failure(_compiled(_model(), **options), x=x)
    assert (error.epoch, error.step, error.layer) == (1, 4, None)
    assert "the inputs of that step hold NaN" in str(error)


@pytest.mark.parametrize(
    ("layer", "weight", "value"),
    [
        ("second", "v", np.nan),
        ("second", "s", np.inf),
        ("head", "u", -np.inf),
        ("first", "bias", np.nan),
        ("norm", "gamma", np.nan),
    ],
)
@pytest.mark.parametrize("structure", ["retraction", "paper"])
def test_a_weight_broken_between_epochs(
    structure: str, layer: str, weight: str, value: float, prepared: Any
) -> None:
    error = _failure(prepared(structure), callbacks=[_At(1, _plant(layer, weight, value))])
    assert (error.epoch, error.step, error.layer) == (2, 1, layer)
    assert f"`{weight}` of layer '{layer}' holds NaN or infinite values" in str(error)
    if structure == "paper" and weight in ("u", "v"):
        assert "orth" in error.terms


@pytest.mark.long_on_jax
def test_a_weight_broken_after_a_step(prepared: Any) -> None:
    plant = _At(1, _plant("second", "u", np.nan), batch=2)
    error = _failure(prepared(), callbacks=[plant])
    assert (error.epoch, error.step, error.layer) == (2, 4, "second")


@pytest.mark.long_on_jax
def test_a_weight_broken_by_an_epochs_last_step(prepared: Any) -> None:
    # No loss was NaN, yet what ModelCheckpoint would write is.
    plant = _At(1, _plant("norm", "moving_mean", np.inf), batch=STEPS - 1)
    error = _failure(prepared(), callbacks=[plant])
    assert (error.epoch, error.step, error.terms, error.layer) == (2, STEPS, (), "norm")
    assert "though the loss was finite" in str(error)


@pytest.mark.long_on_jax
def test_the_penalty_as_printed_at_rank_one_and_a_huge_learning_rate() -> None:
    model = _compiled(_model("paper", ranks=1), keras.optimizers.SGD(10.0))
    sizes: list[dict[str, float]] = []

    class Sizes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            sizes.append(
                {
                    layer.name: max(float(np.abs(_np(w)).max()) for w in layer.trainable_weights)
                    for layer in model.layers
                    if layer.trainable_weights
                }
            )

    error = _failure(model, callbacks=[Sizes()])
    assert error.step is not None
    assert error.epoch == 1
    assert "use structure='retraction'" in str(error)
    # What the failing step began with: the layer named is one that the step before has broken, or
    # has made larger than reason; a step earlier nothing was broken.
    before, earlier = sizes[error.step - 2], sizes[error.step - 3]
    assert not before[str(error.layer)] < 1e6
    assert all(np.isfinite(size) for size in earlier.values())


@pytest.mark.slow
def test_retraction_with_a_huge_learning_rate() -> None:
    error = _failure(_compiled(_model(), keras.optimizers.SGD(1e25)))
    assert error.epoch == 1
    assert error.step in (2, 3)
    assert error.layer is not None
    assert "structure='retraction'" not in str(error)


def test_an_infinite_regularizer() -> None:
    model = _compiled(_model(regularizer=_Growing(2.0)))

    def grow(model: keras.Model) -> None:
        s = model.get_layer("second").s
        s.assign(keras.ops.convert_to_numpy(s) * 1e3)

    error = _failure(model, callbacks=[_At(2, grow)])
    assert (error.epoch, error.step, error.terms) == (3, 1, ("own",))
    assert error.layer == "second"
    assert "kernel_regularizer is inf while its weights are finite" in str(error)


@pytest.mark.long_on_jax
def test_activations_that_overflow_name_the_layer_that_grew(prepared: Any) -> None:
    model = prepared()

    def grow(model: keras.Model) -> None:
        for name, size in (("second", 1e10), ("head", 1e32)):
            s = model.get_layer(name).s
            s.assign(keras.ops.convert_to_numpy(s) * size)

    error = _failure(model, callbacks=[_At(0, grow)])
    assert (error.epoch, error.step, error.layer) == (1, 1, "head")
    assert "`s` of layer 'head' has grown to" in str(error)


@pytest.mark.long
def test_inputs_too_large_for_the_network() -> None:
    x, _ = _batches()
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(CLASSES, name="head")(keras.layers.Dense(8, name="hidden")(inputs))
    model = _compiled(dprp.factorize(keras.Model(inputs, outputs)))
    error = _failure(model, x=np.sign(x) * np.float32(3e38))
    assert (error.epoch, error.step, error.terms, error.layer) == (1, 1, ("app",), None)
    assert "the inputs are" in str(error)
    assert "Scale the inputs" in str(error)


@pytest.mark.long_on_jax
def test_a_sample_weight_that_is_not_finite(prepared: Any) -> None:
    x, y = _batches()
    weights = np.ones(len(x), "float32")
    weights[-1] = np.inf
    model = prepared()
    with pytest.raises(DivergenceError, match="sample weights of that step hold") as raised:
        model.fit(x, y, sample_weight=weights, batch_size=BATCH, verbose=0, shuffle=False)
    assert raised.value.step == STEPS


@pytest.mark.long_on_jax
def test_labels_out_of_range_are_told_from_the_rest() -> None:
    # Only some devices compute NaN from such labels: the loss does it here on all of them.
    def loss(y_true: Any, y_pred: Any) -> Any:
        bad = keras.ops.cast(keras.ops.reshape(y_true, (-1,)) >= CLASSES, "float32")
        return keras.ops.mean(y_pred, axis=-1) + keras.ops.where(bad > 0, np.nan, 0.0)

    model = _model()
    model.compile(keras.optimizers.SGD(0.01), loss=loss)
    _, y = _batches()
    y[BATCH] = 7
    error = _failure(model, y=y)
    assert (error.step, error.layer) == (2, None)
    assert f"to 7 where the model has {CLASSES} outputs" in str(error)


@pytest.mark.long_on_jax
def test_the_record_begins_anew_with_each_epoch_and_each_fit(prepared: Any) -> None:
    x, _ = _batches()
    bad = x.copy()
    bad[0] = np.nan
    assert _failure(prepared(), x=bad).step == 1
    model = prepared()
    _fit(model, epochs=1)
    bad[:BATCH] = x[:BATCH]
    bad[2 * BATCH] = np.inf
    assert _failure(model, x=bad).step == 3


# --- loss scaling ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.long_on_jax
def test_a_gradient_that_overflows_under_loss_scaling_is_no_failure() -> None:
    model = _model()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, momentum=0.9), initial_scale=2.0**127
    )
    # 2^127 times a gradient above 2 overflows float32, so the first steps are skipped.
    _compiled(model, optimizer)
    x, y = _batches()
    _fit(model, x=x * 30, y=y)
    assert float(optimizer.dynamic_scale) < 2.0**127
    assert broken_weights(model) == []
    bad = x.copy()
    bad[-1] = np.nan
    error = _failure(model, x=bad)
    assert (error.epoch, error.step) == (1, STEPS)


# --- nothing broken is written -----------------------------------------------------------------


@pytest.mark.parametrize("save_freq", ["epoch", 3], ids=["epochs", "steps"])
@pytest.mark.long_on_jax
def test_the_last_good_checkpoint_stays(save_freq: Any, tmp_path: Path, prepared: Any) -> None:
    path = tmp_path / "model.keras"
    saver = keras.callbacks.ModelCheckpoint(path, save_freq=save_freq)
    # Broken by a step's update, its loss finite: the next thing to happen is the saving.
    batch = STEPS - 1 if save_freq == "epoch" else 2
    plant = _At(1, _plant("second", "u", np.nan), batch=batch)

    model = prepared()
    # The planting comes before every other callback, as an optimizer's update does.
    every = [plant, *model.training_callbacks([DivergenceGuard(), saver])]
    callbacks = keras.callbacks.CallbackList(every, add_history=True, model=model)
    with pytest.raises(DivergenceError) as raised:
        _fit(model, callbacks=callbacks)
    assert (raised.value.epoch, raised.value.layer) == (2, "second")
    assert broken_weights(keras.saving.load_model(path)) == []


@pytest.mark.long_on_jax
def test_terminate_on_nan_ends_the_training_as_keras_says(prepared: Any) -> None:
    x, _ = _batches()
    x[BATCH] = np.nan
    model = prepared()
    with pytest.warns(UserWarning, match="Training diverged in epoch 1, step 2") as caught:
        history = _fit(model, x=x, callbacks=[keras.callbacks.TerminateOnNaN(), dprp.RankPruning()])
    assert len(history.history["loss"]) == 1
    assert sum("diverged" in str(w.message) for w in caught) == 1
    assert model.stop_training


@pytest.mark.long_on_jax
def test_rank_pruning_says_the_same(prepared: Any) -> None:
    model = prepared()
    pruning = dprp.RankPruning()
    pruning.set_model(model)
    pruning.set_params({"epochs": 3})
    model.stop_training = False
    pruning.on_train_begin()
    pruning.on_epoch_begin(1)
    _plant("second", "v", np.nan)(model)
    with pytest.raises(DivergenceError, match=r"epoch 2: `v` of layer 'second' holds") as raised:
        pruning.on_epoch_end(1, {})
    assert raised.value.layer == "second"
    assert model.ranks["second"] == 4


@pytest.mark.long_on_jax
def test_a_sound_training_says_nothing() -> None:
    model = _compiled(_model(), metrics=["accuracy"])
    x, y = _batches()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = _fit(model, validation_data=(x, y))
    assert not [name for name in history.history if "failure" in name]
    assert "failure_record" not in model.evaluate(x, y, verbose=0, return_dict=True)


@pytest.mark.long_on_jax
def test_the_record_is_no_part_of_the_saved_model(tmp_path: Path, prepared: Any) -> None:
    model = prepared()
    _fit(model, epochs=1)
    model.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert [w.shape for w in loaded.weights] == [w.shape for w in model.weights]
    assert loaded.failure_record.steps_done == 0
    _fit(loaded, epochs=1)


@pytest.mark.long_on_jax
def test_a_plain_model_can_be_guarded_too() -> None:
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(CLASSES, name="head")(inputs)
    model = _compiled(keras.Model(inputs, outputs))
    x, _ = _batches()
    x[BATCH] = np.nan
    error = _failure(model, x=x, callbacks=[DivergenceGuard()])
    assert error.epoch == 1
    model = _compiled(keras.models.clone_model(model))
    plant = _At(1, _plant("head", "kernel", np.nan), batch=STEPS - 1)
    error = _failure(model, callbacks=[DivergenceGuard(), plant])
    assert (error.epoch, error.layer) == (2, "head")


# --- with the data on the device, in a run folder, on the command line ---------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = data.load("digits", image_size=8)
    return replace(
        whole,
        x_train=whole.x_train[:48].astype("float32") / whole.x_train.max(),
        y_train=whole.y_train[:48],
        x_test=whole.x_test[:32].astype("float32") / whole.x_train.max(),
        y_test=whole.y_test[:32],
    )


def _flat(dataset: Dataset) -> dprp.DPRPModel:
    inputs = keras.Input(dataset.image_shape)
    x = keras.layers.Dense(6, name="hidden")(keras.layers.Flatten()(inputs))
    return _compiled(dprp.factorize(keras.Model(inputs, keras.layers.Dense(10, name="head")(x))))


@pytest.mark.slow
def test_with_the_data_on_the_device(digits: Dataset) -> None:
    broken = replace(digits, x_train=digits.x_train.copy())
    broken.x_train[7] = np.nan
    rows, _ = epoch_order(48, 8, seed=0, epoch=0)
    step = int(np.argwhere(rows == 7)[0, 0])
    for dispatch in (1, 4):
        with pytest.raises(DivergenceError, match="inputs of that step hold NaN") as raised:
            fit_on_device(
                _flat(broken),
                broken,
                batch_size=8,
                epochs=2,
                steps_per_dispatch=dispatch,
                augment=False,
            )
        assert (raised.value.epoch, raised.value.step) == (1, step + 1)


@pytest.mark.parametrize(
    ("method", "on_device"),
    [pytest.param("dprp", False, marks=pytest.mark.long), ("dprp", True), ("dense", False)],
    ids=["host", "device", "dense"],
)
@pytest.mark.long_on_jax
def test_a_run_goes_on_from_its_last_good_epoch(
    method: str, on_device: bool, digits: Dataset, tmp_path: Path
) -> None:
    start = tmp_path / "start.keras"
    inputs = keras.Input(digits.image_shape)
    x = keras.layers.Dense(6, name="hidden")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, keras.layers.Dense(10, name="head")(x)).save(start)
    settings = TrainSettings(
        model=str(start), method=method, epochs=4, batch_size=16, learning_rate=0.01,
        on_device=on_device, augment=False,
    )  # fmt: skip
    folder = tmp_path / "run"
    plant = _At(2, _plant("head", "bias", np.nan), batch=1)
    with pytest.raises(DivergenceError) as raised:
        train(folder, settings, digits, callbacks=[plant])
    assert raised.value.epoch == 3
    if method == "dprp":
        assert (raised.value.step, raised.value.layer) == (3, "head")
    state = json.loads((folder / "state.json").read_text())
    assert state["epoch"] == 2
    assert broken_weights(keras.saving.load_model(folder / state["checkpoint"])) == []
    resumed = train(folder, settings, digits)
    assert broken_weights(resumed) == []
    assert json.loads((folder / "state.json").read_text())["epoch"] == 4


@pytest.mark.long_on_jax
def test_the_command_line_says_it_in_one_line(digits: Dataset, tmp_path: Path) -> None:
    start = tmp_path / "start.keras"
    inputs = keras.Input(digits.image_shape)
    keras.Model(inputs, keras.layers.Dense(10, name="head")(keras.layers.Flatten()(inputs))).save(
        start
    )
    options = f"train --model {start} --data digits --image-size 8 --batch-size 500 --epochs 2"
    folder = tmp_path / "run"
    result = CliRunner().invoke(
        app, [*options.split(), "--learning-rate", "1e30", "--no-augment", "--folder", str(folder)]
    )
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: Training diverged in epoch 1, step 2: ")
    assert "layer 'head'" in line
    assert "Lower the learning rate" in line
    assert "Traceback" not in result.output
    assert not (folder / "state.json").exists()


def test_own_losses_name_the_kernel_regularizers_of_svd_and_tucker_layers_alike() -> None:
    inputs = keras.Input((6, 6, 3))
    penalty = keras.regularizers.L2(0.01)
    x = layers.TuckerConv2D(4, 3, ranks=(2, 2), kernel_regularizer=penalty, name="tucker")(inputs)
    x = layers.SVDConv2D(4, 3, rank=2, kernel_regularizer=penalty, name="svd")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    assert own_loss_names(model, len(model.losses)) == [
        ("tucker", "kernel_regularizer"),
        ("svd", "kernel_regularizer"),
    ]
