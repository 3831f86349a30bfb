"""Training for how a model will be stored: in int8, with few distinct weights, or sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.costs.compiled_loss import (
    are_classes,
    compiled_loss,
    is_binary,
    is_categorical,
    losses_by_output,
)
from dprp_tf.deploy.exporters.class_scores import class_score_outputs, output_names
from dprp_tf.deploy.exporters.export_report import ExportReport
from dprp_tf.deploy.exporters.parity import ParityCheck
from dprp_tf.deploy.exporters.tflite import convert_trained
from dprp_tf.deploy.quantization.guard import keras2_guard
from dprp_tf.deploy.quantization.keras2 import (
    Keras2Model,
    load_keras2,
    load_optimization,
    to_keras2,
)
from dprp_tf.deploy.running.quiet import quiet
from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.files.atomic import atomic_path
from dprp_tf.keras_internals.graphs import layers_inside

if TYPE_CHECKING:
    import keras

__all__ = ["QuantizedModel", "cluster_weights", "sparsify", "train_quantized"]

_RANGE_SAMPLES = 512
_DECAY = 0.99
_EMPTY = 1e-5
_RAMP = 0.7  # share of the training in which weights are removed; the rest repairs
_UPDATES = 20  # how often on the way

# What moves or averages values keeps the range it was given, as LiteRT's kernels demand.
_MOVES = frozenset(
    """
    Augmentation AveragePooling1D AveragePooling2D Cropping1D Cropping2D Cropping3D Dropout Flatten
    GaussianDropout GaussianNoise GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    MaxPooling1D MaxPooling2D MaxPooling3D Permute RepeatVector Reshape SpatialDropout1D
    SpatialDropout2D SpatialDropout3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()  # noqa: SIM905
)
# Kernel, and how many of its last axes number the output channels, each of which has a scale of
# its own; 0 where one scale serves all.
_KERNELS = {
    "Conv1D": ("kernel", 0),
    "Conv2D": ("kernel", 1),
    "Conv2DTranspose": ("kernel", 0),
    "Dense": ("kernel", 0),
    "DepthwiseConv1D": ("depthwise_kernel", 2),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
    "PReLU": ("alpha", 0),
}
_WITHOUT_INT8 = frozenset({"Conv3D", "Conv3DTranspose", "Conv1DTranspose", "SeparableConv1D"})
_CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D"})
_FIXED_RANGE = frozenset({"softmax", "sigmoid", "tanh"})


class QuantizedModel:
    """A model trained with its int8 rounding inside; made by `train_quantized`.

    Args:
        bridge: The bridge it was rebuilt through.
        model: The trained `tf_keras` model with quantizers.
        history: Metric name to its value after each epoch.
        samples: Typical inputs, to verify exports with.
        class_scores: Names of the outputs whose channels are scores of classes.
    """

    def __init__(
        self,
        bridge: Keras2Model,
        model: Any,
        history: dict[str, list[float]],
        samples: dict[str, np.ndarray],
        class_scores: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.history = history
        self._samples = samples
        self._class_scores = tuple(class_scores)
        self._plain = bridge.source.model
        self._source = replace(bridge.source, model=model)

    def predict(self, x: Any) -> np.ndarray | dict[str, np.ndarray]:
        """Compute the outputs, rounded as the int8 file rounds them.

        Args:
            x: An array `(samples, ...)`, or a list or dict of them for several inputs.

        Returns:
            The output `(samples, ...)`, or a dict by output name if there are several.

        Raises:
            ValueError: If `x` does not fit the inputs.
        """
        outputs = self._source.predict(self._source.check_data(x, "x"))
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def evaluate(self, x: Any, y: Any, batch_size: int = 128) -> dict[str, float]:
        """Measure loss and metrics, with the rounding of int8.

        Args:
            x: Inputs, as `predict` takes them.
            y: Targets, as in training.
            batch_size: Samples per step, 1 or more. Defaults to 128.

        Returns:
            `loss` and the metrics by name.

        Raises:
            ValueError: If `x` does not fit the inputs.
        """
        inputs = _packed(self._source.check_data(x, "x"))
        with quiet():
            return self.model.evaluate(
                inputs, y, batch_size=batch_size, verbose=0, return_dict=True
            )

    def export_tflite(
        self,
        path: str | Path,
        verification_data: Any = None,
        tolerance: float | None = None,
        minimum_agreement: float | None = None,
        integer_io: bool = False,
    ) -> ExportReport:
        """Write the int8 .tflite file and prove that it computes what the trained model does.

        Ranges and rounding are those of training; nothing is calibrated anew.

        Args:
            path: The file to write; ends in `.tflite`.
            verification_data: Inputs to compare on, as `predict` takes them. Defaults to some of
                the training inputs.
            tolerance: Largest allowed error as a share of a channel's own range. Defaults to
                0.25; class scores have limits on their noise instead.
            minimum_agreement: Required share of samples with the same top-1 class. Defaults to
                0.95 for class scores: those of a softmax, or trained with a categorical loss.
            integer_io: The file's inputs and outputs are int8 too. Defaults to `False`.

        Returns:
            The figures of the comparison, size and operators.

        Raises:
            ParityError: If the outputs differ by more than allowed; nothing is left at `path`.
            ValueError: If `path` does not end in .tflite or the data do not fit.
            OSError: If `path` can't be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".tflite":
            raise ValueError(f"`path` must end in .tflite. Received: path={path}.")
        given = verification_data is not None
        check = ParityCheck.of(
            self._plain,
            self._source,
            quantization="int8",
            verification_data=verification_data if given else self._samples,
            class_scores=self._class_scores,
            tolerance=tolerance,
            minimum_agreement=minimum_agreement,
        )
        check = replace(check, origin="verification_data" if given else "training data")
        with atomic_path(path) as temporary:
            content, operators, notes = convert_trained(self._source, integer_io)
            temporary.write_bytes(content)
            notes += ("compared with the model trained with quantizers",)
            return check.compare(temporary, path, operators.counts, notes)


def train_quantized(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    loss: Any = None,
    validation_data: Any = None,
    metrics: Sequence[Any] | None = None,
    seed: int = 0,
    verbose: int = 0,
    stop: Callable[[], bool] | None = None,
) -> QuantizedModel:
    """Go on training a plain model with int8 rounding inside, so that its weights learn to bear it.

    The quantizers of tensorflow-model-optimization round weights (8 bits, symmetric, one scale per
    output channel for 2D and depthwise convolutions, else one per tensor) and activations
    (8 bits, moving averages that start at ranges measured on `x`). One stands after each input and
    each operation that LiteRT runs as one: after convolution + batch normalization + ReLU, after
    addition + ReLU, and after a concatenation instead of after each of its branches, so that a fold
    of parallel depthwise branches is joined without rescaling. Reshaping, padding and pooling keep
    the range they get. Batch normalization is folded by the converter; standing alone, it and
    rescaling become 1x1 depthwise convolutions. Layers that augment in training go on doing so.

    Args:
        model: A trained model of plain Keras layers, such as `fold` returns; it is not changed.
        x: Training inputs `(samples, ...)`, or a list or dict of them for several inputs.
        y: Targets.
        epochs: Passes over the data, 1 or more. Defaults to 1.
        batch_size: Samples per step, 1 or more. Defaults to 64.
        learning_rate: Adam's first learning rate, above 0; it falls to 0 along a cosine.
            Defaults to 1e-4.
        loss: A Keras loss or its name, or a list or dict of them for several outputs. Defaults to
            what the model was compiled with; else to cross-entropy where `y` holds whole numbers or
            one-hot rows, on logits unless the model ends in softmax.
        validation_data: `(x, y)` to evaluate on after each epoch, or None.
        metrics: Names of metrics. Defaults to the accuracy, with a loss for classes or labels; else
            to none.
        seed: Seed of shuffling and dropout; it sets the global seeds. Defaults to 0.
        verbose: 1 shows Keras' progress bar. Defaults to 0.
        stop: Called after every step; training ends once it returns `True`. Default: it does not.

    Returns:
        The trained model, which evaluates and exports as int8.

    Raises:
        ValueError: If an argument is outside its range, the data do not fit, or a layer has no
            counterpart or no int8 kernel.
        DivergenceError: If the loss, a weight or the optimizer is no longer finite.
        ImportError: If tensorflow-model-optimization or tf-keras is not installed.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    >>> sorted(train_quantized(model, x, y).evaluate(x, y))
    ['accuracy', 'loss']
    """
    _check_training(epochs, batch_size, learning_rate)
    _refuse_without_int8(model)
    bridge = _bridge(model, seed, decompose=True)
    data = bridge.source.check_data(x, "x")
    samples = {name: array[:_RANGE_SAMPLES] for name, array in data.items()}
    keras2 = load_keras2()
    keras2.utils.set_random_seed(seed)
    with quiet():
        ranges = _measure_ranges(bridge.model, _packed(samples), batch_size)
        trained = _with_quantizers(bridge.model)
        _start_ranges(trained, ranges)
    history = _fit(
        trained,
        bridge,
        data,
        y,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        validation_data=validation_data,
        metrics=metrics,
        verbose=verbose,
        callbacks=() if stop is None else [_stopping(stop)],
    )
    _open_empty_ranges(trained)
    told = compiled_loss(model) if loss is None else loss
    # Without any it was a cross-entropy.
    by_loss = True if told is None or (loss is not None and is_categorical(loss)) else None
    scores = class_score_outputs(bridge.original, by_loss)
    return QuantizedModel(bridge, trained, history, samples, scores)


def cluster_weights(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    clusters: int = 16,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    loss: Any = None,
    validation_data: Any = None,
    metrics: Sequence[Any] | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Give each kernel only a few distinct values, trained, so that its file zips small.

    The file itself stays as large; see `compressed_size`. Kernels of convolutions and dense layers
    are clustered; depthwise kernels, biases and normalization are trained along and stay free,
    and frozen layers stay as they are.

    Args:
        model: A trained model of plain Keras layers; it is not changed.
        x: Training inputs, as `train_quantized` takes them.
        y: Targets.
        clusters: Distinct values per kernel, 2 or more; a kernel with no more weights than that is
            left alone. Defaults to 16.
        epochs: Passes over the data, 1 or more. Defaults to 1.
        batch_size: Samples per step, 1 or more. Defaults to 64.
        learning_rate: Adam's first learning rate, above 0; it falls to 0 along a cosine.
            Defaults to 1e-4.
        loss: As for `train_quantized`.
        validation_data: `(x, y)` to evaluate on after each epoch, or None.
        metrics: Names of metrics. Defaults to the accuracy, with a loss for classes or labels; else
            to none.
        seed: Seed of shuffling and dropout; it sets the global seeds. Defaults to 0.
        verbose: 1 shows Keras' progress bar. Defaults to 0.

    Returns:
        A Keras model of the same layers, not compiled.

    Raises:
        ValueError: If an argument is outside its range, the data do not fit, or a layer has no
            counterpart.
        DivergenceError: If the loss, a weight or the optimizer is no longer finite.
        ImportError: If tensorflow-model-optimization or tf-keras is not installed.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> x, y = np.eye(8, dtype="float32"), np.arange(8) % 4
    >>> len(np.unique(cluster_weights(model, x, y, clusters=3).get_weights()[0]))
    3
    """
    check_integer("clusters", clusters, minimum=2)
    _check_training(epochs, batch_size, learning_rate)
    clustering = load_optimization().clustering.keras

    def wrap(layer: Any) -> Any:
        kernel = _kernel(layer)
        if kernel is None or int(np.prod(kernel.shape)) <= clusters:
            return layer
        return clustering.cluster_weights(
            layer,
            number_of_clusters=clusters,
            cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        )

    bridge = _bridge(model, seed)
    data = bridge.source.check_data(x, "x")
    return _trained_in_wraps(
        bridge,
        wrap,
        clustering.strip_clustering,
        data,
        y,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        validation_data=validation_data,
        metrics=metrics,
        verbose=verbose,
    )


def sparsify(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    sparsity: float = 0.5,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    loss: Any = None,
    validation_data: Any = None,
    metrics: Sequence[Any] | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Train with the smallest weights of each kernel set to zero, so that its file zips small.

    The share of zeros rises over the first 70 % of the steps and stays for the rest. The file
    itself stays as large; see `compressed_size`. Kernels of convolutions and dense layers become
    sparse; depthwise kernels, biases and normalization are trained along, and frozen layers stay as
    they are.

    Args:
        model: A trained model of plain Keras layers; it is not changed.
        x: Training inputs, as `train_quantized` takes them.
        y: Targets.
        sparsity: Share of zeros in each kernel, above 0 and below 1. Defaults to 0.5.
        epochs: Passes over the data, 1 or more. Defaults to 1.
        batch_size: Samples per step, 1 or more. Defaults to 64.
        learning_rate: Adam's first learning rate, above 0; it falls to 0 along a cosine.
            Defaults to 1e-4.
        loss: As for `train_quantized`.
        validation_data: `(x, y)` to evaluate on after each epoch, or None.
        metrics: Names of metrics. Defaults to the accuracy, with a loss for classes or labels; else
            to none.
        seed: Seed of shuffling and dropout; it sets the global seeds. Defaults to 0.
        verbose: 1 shows Keras' progress bar. Defaults to 0.

    Returns:
        A Keras model of the same layers, not compiled.

    Raises:
        ValueError: If an argument is outside its range, the data do not fit, or a layer has no
            counterpart.
        DivergenceError: If the loss, a weight or the optimizer is no longer finite.
        ImportError: If tensorflow-model-optimization or tf-keras is not installed.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> x, y = np.eye(8, dtype="float32"), np.arange(8) % 4
    >>> float((sparsify(model, x, y, batch_size=2).get_weights()[0] == 0).mean())
    0.5
    """
    check_number("sparsity", sparsity, above=0, below=1)
    _check_training(epochs, batch_size, learning_rate)
    pruning = load_optimization().sparsity.keras
    bridge = _bridge(model, seed)
    data = bridge.source.check_data(x, "x")
    steps = epochs * _steps(data, batch_size)
    if steps < 2:
        raise ValueError(
            "`epochs` must make two steps or more, one to remove weights and one to adapt. "
            f"Received: epochs={epochs} of one step each; use more epochs or a smaller batch_size."
        )
    frequency = max(1, int(_RAMP * steps) // _UPDATES)
    # The last update must fall on a multiple of `frequency`, or the final share is missed.
    end = frequency * max(1, int(_RAMP * steps) // frequency)
    schedule = pruning.PolynomialDecay(
        0.0, sparsity, begin_step=0, end_step=end, frequency=frequency
    )

    def wrap(layer: Any) -> Any:
        if _kernel(layer) is None:
            return layer
        return pruning.prune_low_magnitude(layer, pruning_schedule=schedule)

    return _trained_in_wraps(
        bridge,
        wrap,
        pruning.strip_pruning,
        data,
        y,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        validation_data=validation_data,
        metrics=metrics,
        verbose=verbose,
        callbacks=[pruning.UpdatePruningStep()],
    )


def _trained_in_wraps(
    bridge: Keras2Model,
    wrap: Callable[[Any], Any],
    strip: Callable[[Any], Any],
    data: dict[str, np.ndarray],
    y: Any,
    *,
    seed: int,
    **training: Any,
) -> keras.Model:
    """Train a model with wrapped layers, take the wraps off and carry the weights back."""
    keras2 = load_keras2()
    keras2.utils.set_random_seed(seed)
    with quiet():
        wrapped = keras2.models.clone_model(bridge.model, clone_function=wrap)
    _fit(wrapped, bridge, data, y, **training)
    with quiet():
        return bridge.carry_back(strip(wrapped))


def _check_training(epochs: int, batch_size: int, learning_rate: float) -> None:
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    check_number("learning_rate", learning_rate, above=0)


def _refuse_without_int8(model: Any) -> None:
    import keras

    if not isinstance(model, keras.Model):
        return  # said better where the model is read
    names = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in layers_inside(model)
        if type(layer).__name__ in _WITHOUT_INT8
    ]
    if names:
        raise ValueError(
            "`model` must hold layers that LiteRT computes in int8. Received: "
            f"{', '.join(names)}. Export it with quantization='dynamic' or 'float16' instead."
        )


def _bridge(model: Any, seed: int, decompose: bool = False) -> Keras2Model:
    # Copies of layers that augment draw seeds of their own when they are made.
    load_keras2().utils.set_random_seed(seed)
    return to_keras2(model, decompose)


def _packed(data: dict[str, np.ndarray]) -> Any:
    arrays = list(data.values())
    return arrays[0] if len(arrays) == 1 else arrays


def _steps(data: dict[str, np.ndarray], batch_size: int) -> int:
    return math.ceil(len(next(iter(data.values()))) / batch_size)


def _kernel(layer: Any) -> Any:
    """The kernel that clustering and sparsity work on, or None; frozen layers have none."""
    if not layer.trainable:
        return None
    name = type(layer).__name__
    if name in ("SeparableConv1D", "SeparableConv2D"):
        return layer.pointwise_kernel
    dense = name == "Dense" or (name.startswith("Conv") and hasattr(layer, "kernel_size"))
    return layer.kernel if dense else None


def _fit(
    trained: Any,
    bridge: Keras2Model,
    data: dict[str, np.ndarray],
    y: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    loss: Any,
    validation_data: Any,
    metrics: Sequence[Any] | None,
    verbose: int,
    callbacks: Iterable[Any] = (),
) -> dict[str, list[float]]:
    keras2 = load_keras2()
    schedule = keras2.optimizers.schedules.CosineDecay(
        learning_rate, epochs * _steps(data, batch_size)
    )
    if validation_data is not None:
        checked = bridge.source.check_data(validation_data[0], "validation_data")
        validation_data = (_packed(checked), validation_data[1])
    if metrics is None:
        told = compiled_loss(bridge.original) if loss is None else loss
        metrics = ("accuracy",) if told is None or is_categorical(told) else ()
        metrics = ("binary_accuracy",) if is_binary(told) else metrics
    resolved = _resolved_loss(loss, bridge, y)
    trained.compile(keras2.optimizers.Adam(schedule), resolved, metrics=list(metrics))
    history = trained.fit(
        _packed(data),
        y,
        epochs=epochs,
        batch_size=batch_size,
        validation_data=validation_data,
        verbose=verbose,
        callbacks=[keras2_guard(learning_rate), *callbacks],
    )
    return {name: [float(value) for value in values] for name, values in history.history.items()}


def _stopping(stop: Callable[[], bool]) -> Any:
    """A callback that ends a training after a step."""
    callback = load_keras2().callbacks.LambdaCallback()

    def after_step(batch: int, logs: Any = None) -> None:
        callback.model.stop_training = callback.model.stop_training or stop()

    callback.on_train_batch_end = after_step
    return callback


def _resolved_loss(loss: Any, bridge: Keras2Model, y: Any) -> Any:
    """The loss that is given, else that of `compile`, else cross-entropy for labels of classes."""
    loss = compiled_loss(bridge.original) if loss is None else loss
    if isinstance(loss, (Mapping, list, tuple)):
        return [*map(_for_keras2, losses_by_output(loss, output_names(bridge.original)).values())]
    if loss is not None:
        return _for_keras2(loss)
    outputs = bridge.model.outputs
    if len(outputs) != 1 or not are_classes(y, outputs[0].shape[-1]):
        raise ValueError(
            "`loss` must be given for a model that was not compiled, unless it has one output and "
            "labels that are classes: whole numbers or one-hot rows. Received: loss=None."
        )
    losses = load_keras2().losses
    logits = not _ends_in_softmax(outputs[0])
    rows = np.ndim(y) == len(outputs[0].shape) and np.shape(y)[-1] == outputs[0].shape[-1]
    kind = losses.CategoricalCrossentropy if rows else losses.SparseCategoricalCrossentropy
    return kind(from_logits=logits)


def _for_keras2(loss: Any) -> Any:
    """A loss of Keras 3 as a function that Keras 2 calls."""
    return (lambda targets, outputs: loss(targets, outputs)) if callable(loss) else loss


def _ends_in_softmax(tensor: Any) -> bool:
    layer = tensor.node.layer
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return type(layer).__name__ == "Softmax" or name == "softmax"


# Where quantizers go.


def _with_quantizers(model: Any) -> Any:
    """Wrap each layer whose weights or output int8 rounds."""
    keras2 = load_keras2()
    quantization = load_optimization().quantization.keras
    config = _config_class(quantization)
    consumers = _consumers(model)

    def wrap(layer: Any) -> Any:
        kernel = _KERNELS.get(type(layer).__name__)
        rounds = _rounds_output(layer, consumers)
        if kernel is None and not rounds:
            return layer
        return quantization.QuantizeWrapperV2(layer, config(kernel, rounds))

    trained = keras2.models.clone_model(model, clone_function=wrap)
    for layer in trained.layers:
        if isinstance(layer, quantization.QuantizeWrapperV2) and not layer.layer.trainable:
            # The wrapper trains each weight it rounds, frozen or not.
            layer._non_trainable_weights.extend(layer._trainable_weights)
            layer._trainable_weights.clear()
    return trained


def _config_class(quantization: Any) -> Any:
    quantizers = quantization.quantizers
    moving_average = _moving_average_class(quantizers)
    kernel_rounding = _kernel_rounding_class(quantizers)

    class Config(quantization.QuantizeConfig):
        def __init__(self, kernel: tuple[str, int] | None, rounds: bool) -> None:
            self.kernel = kernel
            self.rounds = rounds

        def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
            if self.kernel is None:
                return []
            name, channel_axes = self.kernel
            return [(getattr(layer, name), kernel_rounding(channel_axes))]

        def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
            if self.kernel is not None:
                setattr(layer, self.kernel[0], quantize_weights[0])

        def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
            return []

        def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
            pass

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            if not self.rounds:
                return []
            return [moving_average()]

        def get_config(self) -> dict[str, Any]:
            return {"kernel": self.kernel, "rounds": self.rounds}

    return Config


def _kernel_rounding_class(quantizers: Any) -> Any:
    """8 bits, symmetric, on the kernel's own range of each step: one per channel, or one in all."""
    import tensorflow as tf

    class KernelRounding(quantizers.LastValueQuantizer):
        def __init__(self, channel_axes: int) -> None:
            super().__init__(
                num_bits=8, per_axis=channel_axes > 0, symmetric=True, narrow_range=True
            )
            self.channel_axes = channel_axes

        def flat(self, shape: Any) -> list[int]:
            """Depthwise (*edges, channels, multiplier) -> (1, 1, edges, channels * multiplier)."""
            return [1, 1, math.prod(shape[:-2]), math.prod(shape[-2:])]

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            if self.channel_axes == 2:
                tensor_shape = tf.TensorShape(self.flat(tensor_shape.as_list()))
            return super().build(tensor_shape, name, layer)

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **_: Any) -> Any:
            if self.channel_axes != 2:
                return super().__call__(inputs, training, weights)
            shape = inputs.shape.as_list()
            rounded = super().__call__(tf.reshape(inputs, self.flat(shape)), training, weights)
            return tf.reshape(rounded, shape)

    return KernelRounding


def _moving_average_class(quantizers: Any) -> Any:
    """8 bits over a moving average of ranges that follows within hundreds of steps.

    tfmot's own takes thousands, and starts at -6..6: activations would be cut off or coarse.
    """
    import tensorflow as tf

    class MovingAverage(quantizers.Quantizer):
        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {
                key: layer.add_weight(f"{name}_{key}", initializer=value, shape=(), trainable=False)
                for key, value in (("min_var", "zeros"), ("max_var", "ones"))
            }

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **_: Any) -> Any:
            low, high = weights["min_var"], weights["max_var"]
            if training:
                # Zero is in each range, for padding.
                for variable, value in (
                    (low, tf.minimum(tf.reduce_min(inputs), 0.0)),
                    (high, tf.maximum(tf.reduce_max(inputs), 0.0)),
                ):
                    variable.assign_add((1 - _DECAY) * (tf.stop_gradient(value) - variable))
            return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)

        def get_config(self) -> dict[str, Any]:
            return {}

    return MovingAverage


def _consumers(model: Any) -> dict[str, list[Any]]:
    """Layer name to the layers that take its outputs, None standing for the model's output."""
    found: dict[str, list[Any]] = {layer.name: [] for layer in model.layers}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            for tensor in node.keras_inputs:
                found[tensor.node.layer.name].append(node.layer)
    for tensor in model.outputs:
        found[tensor.node.layer.name].append(None)
    return found


def _rounds_output(layer: Any, consumers: dict[str, list[Any]]) -> bool:
    kind = type(layer).__name__
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    bilinear = getattr(layer, "interpolation", "nearest") != "nearest"
    if kind == "InputLayer" or (kind in _MOVES) or (kind == "UpSampling2D" and not bilinear):
        return False
    if kind == "Softmax" or (kind == "Activation" and activation in _FIXED_RANGE):
        return False  # LiteRT gives these a range of their own
    if "float" not in layer.dtype:
        return False
    after = consumers[layer.name]
    if len(after) != 1 or after[0] is None:
        return True
    merges = kind in _CONVOLUTIONS | {"Add", "BatchNormalization"} and activation == "linear"
    if merges and kind in _CONVOLUTIONS and type(after[0]).__name__ == "BatchNormalization":
        return False
    if merges and _is_plain_relu(after[0]):
        return False
    fits = merges or (kind in _CONVOLUTIONS and activation == "relu") or _is_plain_relu(layer)
    # A concatenation has one range for all; its branches round to that one.
    return not (fits and type(after[0]).__name__ == "Concatenate")


def _is_plain_relu(layer: Any) -> bool:
    if type(layer).__name__ == "Activation":
        return getattr(layer.activation, "__name__", "") == "relu"
    return (
        type(layer).__name__ == "ReLU"
        and layer.max_value in (None, 6.0)
        and not layer.negative_slope
        and not layer.threshold
    )


def _measure_ranges(model: Any, x: Any, batch_size: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest output of each layer that is rounded, averaged over batches."""
    consumers = _consumers(model)
    tensors = {
        layer.name: [node.outputs for node in layer._inbound_nodes]
        for layer in model.layers
        if _rounds_output(layer, consumers)
    }
    probe = load_keras2().Model(model.inputs, tensors)
    arrays = x if isinstance(x, list) else [x]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tensors}
    for start in range(0, len(arrays[0]), batch_size):
        part = [array[start : start + batch_size] for array in arrays]
        for name, values in probe(part if len(part) > 1 else part[0], training=False).items():
            flat = [np.asarray(value) for value in _leaves(values)]
            # Zero is in each range, for padding.
            low = min(0.0, *(float(value.min()) for value in flat))
            high = max(0.0, *(float(value.max()) for value in flat))
            found[name].append((low, high))
    means = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in means.items()}


def _start_ranges(trained: Any, ranges: dict[str, tuple[float, float]]) -> None:
    for wrapper, _, _ in _ranges(trained):
        low, high = ranges[wrapper.layer.name]
        wrapper._output_quantizer_vars["min_var"].assign(low)
        wrapper._output_quantizer_vars["max_var"].assign(high)
    _open_empty_ranges(trained)


def _open_empty_ranges(trained: Any) -> None:
    """Widen ranges of outputs that are always zero, for which XNNPACK refuses or crashes."""
    for wrapper, low, high in _ranges(trained):
        if high - low < _EMPTY:
            wrapper._output_quantizer_vars["max_var"].assign(low + 1.0)


def _ranges(trained: Any) -> list[tuple[Any, float, float]]:
    return [
        (
            wrapper,
            float(wrapper._output_quantizer_vars["min_var"]),
            float(wrapper._output_quantizer_vars["max_var"]),
        )
        for wrapper in trained.layers
        if getattr(wrapper, "_output_quantizers", None)
    ]


def _leaves(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [leaf for value in values for leaf in _leaves(value)]
    return [values]
