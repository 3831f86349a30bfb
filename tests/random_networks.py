"""Random small networks for the property tests, and what must hold for each of them.

A network is drawn as a `Program`: a list of small records that are always buildable, whatever
their order, so that hypothesis can drop and simplify them one by one. To look into a failure,
paste the printed program behind `check(` in a shell with this folder on the path.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from keras import layers

import dprp_tf as dprp
from dprp_tf.conversion.form_weights import layer_forms
from dprp_tf.costs.form import Form
from dprp_tf.deploy.exporters.onnx import convert_onnx
from dprp_tf.deploy.exporters.tflite import convert_tflite
from dprp_tf.deploy.running.runtime import load_file
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.layers import SVDLayer, low_rank_layers
from dprp_tf.training.saving import load_model

__all__ = ["Outcome", "Program", "Tally", "check", "programs", "searching"]

# One rounding to float32 changes a value by up to this share.
_UNIT = 2.0**-24
# Errors are compared with what one relative change of `_UNIT` in every weight and input does to
# the outputs (see `_sensitivity`), which accounts for depth, cancellation and normalization of
# tiny values. A network rounds each value not once but at every product and sum on its way, and
# sums of n terms in another order differ by about sqrt(n) roundings, n < 500 here: 22. The other
# factor of 3 is for random draws that hit the sensitive direction less than roundings do.
_ROUNDINGS = 64.0
_STEP = 1e-3

_MATRICIZATIONS = ("spatial", "channel", "separable")
_CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
_TRANSPOSED = {1: layers.Conv1DTranspose, 2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose}
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_DEPTHWISE = {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D}
_SEPARABLE = {1: layers.SeparableConv1D, 2: layers.SeparableConv2D}
_MAX_POOL = {1: layers.MaxPooling1D, 2: layers.MaxPooling2D, 3: layers.MaxPooling3D}
_AVERAGE_POOL = {
    1: layers.AveragePooling1D,
    2: layers.AveragePooling2D,
    3: layers.AveragePooling3D,
}
_GLOBAL_POOL = {
    1: layers.GlobalAveragePooling1D,
    2: layers.GlobalAveragePooling2D,
    3: layers.GlobalAveragePooling3D,
}
_GLOBAL_MAX_POOL = {
    1: layers.GlobalMaxPooling1D,
    2: layers.GlobalMaxPooling2D,
    3: layers.GlobalMaxPooling3D,
}
_PAD = {1: layers.ZeroPadding1D, 2: layers.ZeroPadding2D, 3: layers.ZeroPadding3D}
_UPSAMPLE = {1: layers.UpSampling1D, 2: layers.UpSampling2D, 3: layers.UpSampling3D}
_MERGE = {
    "add": layers.Add,
    "subtract": layers.Subtract,
    "multiply": layers.Multiply,
    "average": layers.Average,
    "maximum": layers.Maximum,
}
_LARGEST = {1: 24, 2: 12, 3: 7}


class _Record:
    """A repr that leaves defaults out, so that a shrunk program is short."""

    def __repr__(self) -> str:
        changed = [
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in fields(self)  # type: ignore[arg-type]
            if getattr(self, entry.name) != entry.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(frozen=True, repr=False)
class Conv(_Record):
    """A convolution: `kind` is plain, depthwise, separable or transposed."""

    kind: str = "plain"
    filters: int = 1
    kernel: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)
    dilation: int = 1
    groups: int = 1
    padding: str = "same"
    bias: bool = False
    activation: str | None = None


@dataclass(frozen=True, repr=False)
class Dense(_Record):
    """A dense layer over the last axis, wherever it stands."""

    units: int = 1
    bias: bool = False
    activation: str | None = None


@dataclass(frozen=True, repr=False)
class Recurrent(_Record):
    """A recurrent layer along a sequence, which gives what it has at each step."""

    kind: str = "LSTM"
    units: int = 1
    backwards: bool = False
    bias: bool = False


@dataclass(frozen=True, repr=False)
class Pool(_Record):
    """Pooling by `size`."""

    kind: str = "max"
    size: int = 2
    strides: int = 1
    padding: str = "same"


@dataclass(frozen=True, repr=False)
class Resize(_Record):
    """Zero padding or repetition."""

    kind: str = "pad"


@dataclass(frozen=True, repr=False)
class Norm(_Record):
    """Batch, layer or group normalization."""

    kind: str = "batch"


@dataclass(frozen=True, repr=False)
class Activate(_Record):
    """An activation as a layer of its own, or dropout, which does nothing in inference."""

    kind: str = "relu"


@dataclass(frozen=True, repr=False)
class Join(_Record):
    """Combine with what was computed `back` steps before: merged, concatenated, or gated by it."""

    kind: str = "add"
    back: int = 1


@dataclass(frozen=True, repr=False)
class Again(_Record):
    """Call the layer made `back` steps before once more, if it takes this input."""

    back: int = 1


@dataclass(frozen=True, repr=False)
class Nested(_Record):
    """A model in the model, Functional or Sequential, called once or, where it can be, twice."""

    steps: tuple[Any, ...] = ()
    sequential: bool = False
    twice: bool = False


@dataclass(frozen=True, repr=False)
class Program(_Record):
    """A network, how it is factorized and how it is folded.

    Attributes:
        ndim: Number of spatial axes.
        sizes: Sizes of the input's axes; the first `ndim` count.
        channels: Channels of the input.
        steps: What happens to the input, in order.
        second: A second input: None, "vector" (multiplied in), or "image" (through the same
            first layer, then concatenated).
        head: "pool" or "flatten", then a dense layer; or "none".
        extra: Whether the last feature map is a second output, under names.
        matricization: As `dprp_tf.factorize`.
        ranks: Rank of the i-th factorized layer, in turn, cut to its full rank.
        form: As `dprp_tf.fold`, or "drawn".
        forms: For "drawn": index of the i-th layer's form, in turn, modulo how many it has.
        seed: Seed of the weights and inputs.
    """

    ndim: int = 2
    sizes: tuple[int, int, int] = (5, 5, 5)
    channels: int = 1
    steps: tuple[Any, ...] = ()
    second: str | None = None
    head: str = "pool"
    extra: bool = False
    matricization: str = "spatial"
    ranks: tuple[int, ...] = (1,)
    form: str = "dense"
    forms: tuple[int, ...] = (0,)
    seed: int = 0


# What TFLite can't hold of any network: its PReLU takes at most four axes, so none of volumes.
_LIMITS_OF_CONVERTERS = ("'tfl.prelu' op failed to verify that operands",)


@dataclass
class Outcome:
    """What a check saw.

    Attributes:
        kinds: Types of the factorized layers.
        cut: Whether some kernel changed when its rank was cut.
        differs: Whether the outputs of the reduced network differ from the original's.
        refused: Formats whose converter refused folded and original network alike.
        errors: Largest error of each step, relative to the largest output.
        roundings: The same in units of what rounding every weight and input once does.
    """

    kinds: list[str] = field(default_factory=list)
    cut: bool = False
    differs: bool = False
    refused: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    roundings: dict[str, float] = field(default_factory=dict)


class Tally:
    """Count what the cases of a test saw, so that it can't pass by seeing nothing.

    Args:
        title: Heading of the table in pytest's summary.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._outcomes: list[Outcome] = []

    def check(self, program: Program) -> None:
        """Check a program and keep what was seen."""
        if len(self._outcomes) % 20 == 0:
            keras.backend.clear_session()  # it takes as long as a whole case
        self._outcomes.append(check(program))

    @property
    def empty(self) -> bool:
        """Whether no case was checked."""
        return not self._outcomes

    def report(self, record_error: Callable[..., None], count_case: Callable[..., None]) -> None:
        """Hand the figures to the summary, and assert that the cases were of use."""
        seen: Counter[str] = Counter()
        for outcome in self._outcomes:
            seen["cases"] += 1
            seen["a kernel changed by cutting its rank"] += outcome.cut
            seen["  and the outputs with it"] += outcome.cut and outcome.differs
            for kind in sorted(set(outcome.kinds)):
                seen[f"with {kind}"] += 1
            for refusal in outcome.refused:
                seen[f"refused, as the original is: {refusal[:90]}"] += 1
            for step, error in outcome.errors.items():
                record_error(step, self._title, error)
            for step, error in outcome.roundings.items():
                record_error(step, f"{self._title}: in roundings", error)
        for name, count in seen.items():
            count_case(self._title, name, count)
        cases = seen["cases"]
        assert not any(outcome.differs and not outcome.cut for outcome in self._outcomes)
        assert seen["  and the outputs with it"] >= 0.4 * cases
        unexplained = [
            refusal
            for outcome in self._outcomes
            for refusal in outcome.refused
            if not any(limit in refusal for limit in _LIMITS_OF_CONVERTERS)
        ]
        assert len(unexplained) <= 0.1 * cases, unexplained


def searching(cases: int) -> settings:
    """Return hypothesis' settings for a test of random networks.

    Args:
        cases: How many to draw, unless the environment says otherwise (see conftest.py).
    """
    wanted = int(os.environ.get("DPRP_HYPOTHESIS_EXAMPLES") or cases)
    return settings(max_examples=wanted, suppress_health_check=list(HealthCheck))


# --- drawing -----------------------------------------------------------------------------------

_ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "softplus", "swish", "elu")
_flags = st.booleans()
_windows = st.tuples(*[st.integers(1, 3)] * 3)
_strides = st.one_of(st.just((1, 1, 1)), st.just((2, 2, 2)), st.tuples(*[st.integers(1, 2)] * 3))


def _steps(ndim: int, nested: bool) -> st.SearchStrategy[Any]:
    kinds = ["plain", "plain", "plain", "plain", "plain", "plain", "transposed"]
    if ndim < 3:  # Keras has no three-dimensional depthwise layers
        kinds += ["depthwise", "separable"]
    paddings = ["same", "valid", "causal"] if ndim == 1 else ["same", "valid"]
    conv = st.builds(
        Conv,
        kind=st.sampled_from(kinds),
        filters=st.integers(1, 8),
        kernel=_windows,
        strides=_strides,
        dilation=st.integers(1, 2),
        groups=st.sampled_from([1, 1, 1, 1, 2, 3]),
        padding=st.sampled_from(paddings),
        bias=_flags,
        activation=st.sampled_from(_ACTIVATIONS),
    )
    choices: dict[str, st.SearchStrategy[Any]] = {
        "conv": conv,
        "norm": st.builds(Norm, kind=st.sampled_from(["batch", "layer", "group"])),
        "activate": st.builds(
            Activate, kind=st.sampled_from(["relu", "leaky", "parametric", "softmax", "dropout"])
        ),
        "dense": st.builds(
            Dense,
            units=st.integers(1, 8),
            bias=_flags,
            activation=st.sampled_from(_ACTIVATIONS),
        ),
        "pool": st.builds(
            Pool,
            kind=st.sampled_from(["max", "average"]),
            size=st.integers(1, 3),
            strides=st.integers(1, 2),
            padding=st.sampled_from(["same", "valid"]),
        ),
        "resize": st.builds(Resize, kind=st.sampled_from(["pad", "repeat"])),
        "join": st.builds(
            Join,
            kind=st.sampled_from([*_MERGE, "concatenate", "concatenate", "gate"]),
            back=st.integers(1, 4),
        ),
        "again": st.builds(Again, back=st.integers(1, 3)),
    }
    if ndim == 1:
        choices["recurrent"] = st.builds(
            Recurrent,
            kind=st.sampled_from(["LSTM", "GRU", "SimpleRNN"]),
            units=st.integers(1, 5),
            backwards=_flags,
            bias=_flags,
        )
    if nested:
        inner = st.lists(_steps(ndim, False), min_size=1, max_size=3).map(tuple)
        choices["nested"] = st.builds(Nested, steps=inner, sequential=_flags, twice=_flags)
    if ndim == 3:  # LiteRT has no pooling over volumes
        del choices["pool"]
    # one_of would count a strategy that is named several times once.
    return st.sampled_from(["conv"] * 7 + [*choices]).flatmap(choices.__getitem__)


def programs(*ndims: int, longest: int = 6) -> st.SearchStrategy[Program]:
    """Return the strategy of all programs with one of these numbers of spatial axes."""

    def of(ndim: int) -> st.SearchStrategy[Program]:
        low, high = {1: (5, 10), 2: (4, 7), 3: (3, 4)}[ndim]
        return st.builds(
            Program,
            ndim=st.just(ndim),
            sizes=st.tuples(*[st.integers(low, high)] * 3),
            channels=st.integers(1, 5),
            steps=st.lists(_steps(ndim, True), min_size=1, max_size=longest).map(tuple),
            second=st.sampled_from([None, None, None, "vector", "image"]),
            head=st.sampled_from(["pool", "flatten", "none"]),
            extra=st.sampled_from([False, False, True]),
            matricization=st.sampled_from(_MATRICIZATIONS),
            ranks=st.lists(st.sampled_from([1, 2, 3, 2, 1, 5]), min_size=1, max_size=3).map(tuple),
            form=st.sampled_from(
                ["dense", "two_stage", "smallest", "fast", "drawn", "drawn", "drawn"]
            ),
            forms=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
            seed=st.integers(0, 2**16),
        )

    return st.sampled_from(ndims).flatmap(of) if len(ndims) > 1 else of(ndims[0])


# --- building ----------------------------------------------------------------------------------


class _Builder:
    """Apply steps to a tensor; a step that can't be is adapted, or left out."""

    def __init__(self, ndim: int, prefix: str = "") -> None:
        self._ndim, self._prefix, self._count = ndim, prefix, 0
        self.made: list[Any] = []

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}{self._count}"

    def run(self, steps: Sequence[Any], x: Any) -> Any:
        seen = [x]
        for step in steps:
            x = self._step(step, x, seen)
            seen.append(x)
        return x

    def layer(self, layer: Any, x: Any) -> Any:
        self.made.append(layer)
        return layer(x)

    def _step(self, step: Any, x: Any, seen: list[Any]) -> Any:
        if isinstance(step, Conv):
            return self._conv(step, x)
        if isinstance(step, Dense):
            name = self.name("dense")
            dense = layers.Dense(
                step.units, use_bias=step.bias, activation=step.activation, name=name
            )
            return self.layer(dense, x)
        if isinstance(step, Recurrent):
            recurrent = getattr(layers, step.kind)(
                step.units,
                use_bias=step.bias,
                go_backwards=step.backwards,
                return_sequences=True,
                unroll=True,
                name=self.name("recurrent"),
            )
            return self.layer(recurrent, x)
        if isinstance(step, Pool):
            return self._pool(step, x)
        if isinstance(step, Resize):
            if step.kind == "pad" and max(x.shape[1:-1]) < _LARGEST[self._ndim]:
                return self.layer(_PAD[self._ndim](1, name=self.name("pad")), x)
            if step.kind == "repeat" and 2 * max(x.shape[1:-1]) <= _LARGEST[self._ndim]:
                return self.layer(_UPSAMPLE[self._ndim](2, name=self.name("repeat")), x)
            return x
        if isinstance(step, Norm):
            return self._norm(step, x)
        if isinstance(step, Activate):
            return self._activate(step, x)
        if isinstance(step, Join):
            return self._join(step, x, seen)
        if isinstance(step, Again):
            return self._again(step, x)
        return self._nested(step, x)

    def _conv(self, step: Conv, x: Any) -> Any:
        ndim, sizes, channels = self._ndim, x.shape[1:-1], x.shape[-1]
        kernel, strides, padding = step.kernel[:ndim], step.strides[:ndim], step.padding
        dilation = step.dilation if max(strides) == 1 else 1
        if ndim == 3:
            # LiteRT has no dilated ones. TensorFlow's (2.21, oneDNN on x86) come out wrong for
            # one channel, strides (1, 1, 2) and a last column that no window reaches.
            dilation, strides = 1, (*strides[:2], 1) if padding == "valid" else strides
        transposed = step.kind == "transposed"
        if transposed:
            # Keras builds no dilated transposed convolution whose output is padded.
            dilation = 1
            padding = "same" if padding == "causal" else padding
            if max(s * t for s, t in zip(sizes, strides, strict=True)) > _LARGEST[ndim]:
                strides = (1,) * ndim
        elif step.kind in ("depthwise", "separable"):
            # TensorFlow's depthwise kernels want equal strides and know no causal padding.
            strides = (strides[0],) * ndim
            padding = "same" if padding == "causal" else padding
        if padding == "valid" and not transposed:
            kernel = tuple(min(k, s) for k, s in zip(kernel, sizes, strict=True))
            if any(dilation * (k - 1) >= s for k, s in zip(kernel, sizes, strict=True)):
                dilation = 1
        options: dict[str, Any] = {
            "strides": strides if ndim > 1 else strides[0],
            "padding": padding,
            "dilation_rate": dilation,
            "use_bias": step.bias,
            "activation": step.activation,
            "name": self.name({"plain": "conv"}.get(step.kind, step.kind)),
        }
        window = kernel if ndim > 1 else kernel[0]
        if step.kind == "depthwise":
            multiplier = 1 + (step.filters > 4)
            layer = _DEPTHWISE[ndim](window, depth_multiplier=multiplier, **options)
        elif step.kind == "separable":
            layer = _SEPARABLE[ndim](step.filters, window, **options)
        elif transposed:
            layer = _TRANSPOSED[ndim](step.filters, window, **options)
        else:
            # Neither format has grouped convolutions over volumes.
            groups = 1 if ndim == 3 else math.gcd(step.groups, channels)
            filters = step.filters
            filters = groups * math.ceil(filters / groups)
            layer = _CONV[ndim](filters, window, groups=groups, **options)
        return self.layer(layer, x)

    def _pool(self, step: Pool, x: Any) -> Any:
        pool = _MAX_POOL if step.kind == "max" else _AVERAGE_POOL
        size = min(step.size, *x.shape[1:-1])
        name = self.name(step.kind)
        return self.layer(
            pool[self._ndim](size, strides=step.strides, padding=step.padding, name=name), x
        )

    def _norm(self, step: Norm, x: Any) -> Any:
        name = self.name(step.kind)
        if step.kind == "batch":
            return self.layer(layers.BatchNormalization(name=name), x)
        if step.kind == "layer":
            return self.layer(layers.LayerNormalization(name=name), x)
        groups = 2 if x.shape[-1] % 2 == 0 else 1
        return self.layer(layers.GroupNormalization(groups, name=name), x)

    def _activate(self, step: Activate, x: Any) -> Any:
        name = self.name(step.kind)
        made = {
            "relu": lambda: layers.ReLU(name=name),
            "leaky": lambda: layers.LeakyReLU(0.2, name=name),
            "parametric": lambda: layers.PReLU(
                shared_axes=list(range(1, self._ndim + 1)), name=name
            ),
            "softmax": lambda: layers.Softmax(name=name),
            "dropout": lambda: layers.Dropout(0.4, name=name),
        }
        return self.layer(made[step.kind](), x)

    def _join(self, step: Join, x: Any, seen: list[Any]) -> Any:
        other = seen[-1 - step.back % len(seen)]
        same_place = other.shape[1:-1] == x.shape[1:-1]
        if step.kind in _MERGE and other.shape == x.shape:
            return _MERGE[step.kind](name=self.name(step.kind))([x, other])
        if step.kind != "gate" and same_place and x.shape[-1] + other.shape[-1] <= 16:
            return layers.Concatenate(name=self.name("concatenate"))([x, other])
        # One weight per channel, computed from all of the other: squeeze and excite.
        squeezed = _GLOBAL_POOL[self._ndim](keepdims=True, name=self.name("squeeze"))(other)
        gate = layers.Dense(x.shape[-1], activation="sigmoid", name=self.name("gate"))
        return layers.Multiply(name=self.name("times"))([x, self.layer(gate, squeezed)])

    def _again(self, step: Again, x: Any) -> Any:
        if not self.made:
            return x
        layer = self.made[-1 - (step.back - 1) % len(self.made)]
        try:
            shape = layer.compute_output_shape(x.shape)
            layers.InputLayer(x.shape[1:])
            keras.src.layers.input_spec.assert_input_compatibility(layer.input_spec, x, layer.name)
        except ValueError:
            return x
        fits = min(shape[1:-1], default=1) >= 1 and max(shape[1:-1]) <= _LARGEST[self._ndim]
        takes = layer.input.shape[1:] == x.shape[1:] if isinstance(layer, keras.Model) else True
        return layer(x) if fits and takes else x

    def _nested(self, step: Nested, x: Any) -> Any:
        name = self.name("nested")
        inputs = keras.Input(x.shape[1:], name=f"{name}_input")
        inner = _Builder(self._ndim, f"{name}_")
        steps = step.steps
        if step.sequential:
            steps = [s for s in steps if not isinstance(s, (Join, Again))]
        outputs = inner.run(steps, inputs)
        if outputs is inputs:
            return x
        model = keras.Model(inputs, outputs, name=name)
        if step.sequential:
            model = keras.Sequential([inputs, *inner.made], name=name)
        y = self.layer(model, x)
        return model(y) if step.twice and y.shape == x.shape else y


def build(program: Program) -> keras.Model:
    """Return the network of a program, with weights drawn from its seed."""
    ndim = program.ndim
    builder = _Builder(ndim)
    shape = (*program.sizes[:ndim], program.channels)
    inputs = [keras.Input(shape, name="first")]
    x = inputs[0]
    if program.second == "image":
        inputs.append(keras.Input(shape, name="second"))
        window = 3 if ndim == 1 else (3,) * ndim
        twin = _CONV[ndim](program.channels, window, padding="same", name="twin")
        x = layers.Concatenate(name="pair")([twin(x), twin(inputs[1])])
    elif program.second == "vector":
        inputs.append(keras.Input((3,), name="second"))
        scale = layers.Dense(program.channels, name="scale")(inputs[1])
        scale = layers.Reshape((*(1,) * ndim, program.channels), name="shape")(scale)
        x = layers.Multiply(name="scaled")([x, scale])
    x = last = builder.run(program.steps, x)
    if program.head == "flatten":
        x = layers.Flatten(name="flat")(x)
    elif program.head == "pool":
        x = _GLOBAL_POOL[ndim](name="pool")(x)
    x = layers.Dense(3, name="head")(x)
    outputs: Any = x
    if program.extra:
        outputs = {"scores": x, "map": layers.Activation("tanh", name="map")(last)}
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name="network")
    _draw_weights(model, np.random.default_rng(program.seed))
    return model


def _draw_weights(model: keras.Model, rng: np.random.Generator) -> None:
    # Nothing at its default: zero biases and unit statistics would hide what is done with them.
    for layer in walk_layers(model):
        for weight in layer.weights:
            name, shape = weight.name, tuple(weight.shape)
            if name.endswith("kernel"):
                fan_in = max(1, math.prod(shape[:-1]))
                values = rng.normal(0, fan_in**-0.5, shape)
            elif name in ("gamma", "moving_variance"):
                values = rng.uniform(0.5, 1.5, shape)
            elif name in ("bias", "beta", "moving_mean", "alpha"):
                values = rng.normal(0, 0.3, shape)
            else:  # such as the state of dropout's generator
                continue
            weight.assign(values)


# --- checking ----------------------------------------------------------------------------------


def check(program: Program) -> Outcome:
    """Assert every property of a program.

    original = factorized at full rank; reduced = the original network with kernels truncated by
    NumPy; folded = both reloaded = TFLite = ONNX = reduced.
    """
    outcome = Outcome()
    model = build(program)
    rng = np.random.default_rng(program.seed + 1)
    x = [rng.standard_normal((2, *t.shape[1:])).astype("float32") for t in model.inputs]
    original = _call(model, x)
    assert all(np.isfinite(values).all() for values in original)
    kernels = [layer for layer in walk_layers(model) if _factorizable(layer)]
    outcome.kinds = [type(layer).__name__ for layer in kernels]

    compare = _Comparison(outcome, original, _sensitivity(model, x, original, rng))
    full = dprp.factorize(model, decomposition=program.matricization)
    names = [layer.name for layer in kernels]
    assert [layer.name for layer in low_rank_layers(full)] == names
    compare("full rank = original", _call(full, x))

    ranks = {
        layer.name: min(program.ranks[i % len(program.ranks)], layer.full_rank)
        for i, layer in enumerate(low_rank_layers(full))
    }
    low = dprp.factorize(model, decomposition=program.matricization, ranks=ranks)
    assert low.ranks == ranks
    before = [np.array(_kernel(layer)) for layer in kernels]
    after = [
        _cut(layer, program.matricization, ranks[name])
        for layer, name in zip(kernels, names, strict=True)
    ]
    for layer, kernel in zip(kernels, after, strict=True):
        _kernel(layer).assign(kernel)
    truncated = _call(model, x)
    compare = _Comparison(outcome, truncated, _sensitivity(model, x, truncated, rng))
    reduced = _call(low, x)
    compare("reduced = truncated", reduced)
    outcome.cut = any(
        np.linalg.norm(a - b) > 1e-3 * np.linalg.norm(b) for a, b in zip(after, before, strict=True)
    )
    outcome.differs = compare.differ(original)

    folded = _fold(program, low)
    _require_plain(folded)
    assert [t.shape for t in folded.outputs] == [t.shape for t in model.outputs]
    compare("folded", _call(folded, x))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, saved in (("factorized", low), ("folded", folded)):
            saved.save(folder / f"{title}.keras")
            loaded = load_model(folder / f"{title}.keras")
            for ours, theirs in zip(saved.get_weights(), loaded.get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            compare(f"{title}, reloaded", _call(loaded, x))
        for suffix, convert in ((".tflite", convert_tflite), (".onnx", convert_onnx)):
            outputs = _exported(outcome, suffix, convert, folder, folded, model, x)
            if outputs is not None:
                compare(suffix, outputs)
    return outcome


class _Comparison:
    """Compare outputs with a reference, by what roundings can do to it."""

    def __init__(
        self, outcome: Outcome, reference: list[np.ndarray], sensitivity: list[float]
    ) -> None:
        self._outcome, self._reference = outcome, reference
        # Sums end in a rounding of their own, so a constant output may be off by a few.
        self._units = [_UNIT * (1.0 + value) for value in sensitivity]

    def __call__(self, step: str, outputs: list[np.ndarray]) -> None:
        assert len(outputs) == len(self._reference)
        for ours, theirs, unit in zip(outputs, self._reference, self._units, strict=True):
            assert ours.shape == theirs.shape, (step, ours.shape, theirs.shape)
            error = _distance(ours, theirs)
            for table, value in (
                (self._outcome.errors, error),
                (self._outcome.roundings, error / unit),
            ):
                table[step] = max(table.get(step, 0.0), value)
            assert error <= _ROUNDINGS * unit, (
                f"{step}: off by {error:.3g} of the largest output, {error / unit:.0f} roundings; "
                f"allowed are {_ROUNDINGS:.0f}"
            )

    def differ(self, outputs: list[np.ndarray]) -> bool:
        """Whether outputs are further away than roundings could explain."""
        pairs = zip(outputs, self._reference, self._units, strict=True)
        return any(_distance(a, b) > 4 * _ROUNDINGS * unit for a, b, unit in pairs)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    scale = max(float(np.abs(theirs).max()), 1e-6)
    return float(np.abs(ours.astype(np.float64) - theirs).max()) / scale


def _sensitivity(
    model: keras.Model, x: list[np.ndarray], outputs: list[np.ndarray], rng: np.random.Generator
) -> list[float]:
    """Relative change of each output per relative change of every weight and input.

    Measured: all are changed at random by about 1e-3, three times, and the largest change counts.
    """
    weights = model.get_weights()
    largest = [0.0] * len(outputs)
    try:
        for _ in range(3):
            model.set_weights([_changed(values, rng) for values in weights])
            changed = _call(model, [_changed(values, rng) for values in x])
            for i, (a, b) in enumerate(zip(changed, outputs, strict=True)):
                largest[i] = max(largest[i], _distance(a, b) / _STEP)
    finally:
        model.set_weights(weights)
    return largest


def _changed(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if values.dtype.kind != "f":
        return values
    return (values * (1.0 + _STEP * rng.standard_normal(values.shape))).astype(values.dtype)


def _call(model: keras.Model, x: list[np.ndarray]) -> list[np.ndarray]:
    outputs = model(x if len(x) > 1 else x[0], training=False)
    return [np.asarray(values) for values in keras.tree.flatten(outputs)]


def _factorizable(layer: keras.layers.Layer) -> bool:
    plain = (*_CONV.values(), *_TRANSPOSED.values(), *_RECURRENT, layers.Dense)
    return type(layer) in plain and getattr(layer, "groups", 1) == 1


def _kernel(layer: Any) -> Any:
    """The variable that ranks are cut of: of a recurrent layer what its inputs meet."""
    return layer.cell.kernel if type(layer) in _RECURRENT else layer.kernel


def _cut(layer: Any, matricization: str, rank: int) -> np.ndarray:
    """A layer's kernel at a rank, in the order in which the layer holds its axes."""
    transposed = type(layer) in _TRANSPOSED.values()
    kernel = np.array(_kernel(layer))
    kernel = np.swapaxes(kernel, -1, -2) if transposed else kernel
    if matricization == "spatial" and (transposed or isinstance(layer, layers.Conv3D)):
        # No depthwise convolution could stand for it.
        matricization = "channel"
    kernel = _truncated(kernel, matricization, rank)
    return np.swapaxes(kernel, -1, -2) if transposed else kernel


def _truncated(kernel: np.ndarray, matricization: str, rank: int) -> np.ndarray:
    """The kernel's best approximation of a rank, written down once more without the library."""
    *spatial, channels, filters = kernel.shape
    length = math.prod(spatial)
    if length == 1:
        matrix = kernel.reshape(channels, filters)
        return _best(matrix, rank).reshape(kernel.shape)
    if matricization == "spatial":
        matrix = kernel.reshape(length, channels * filters)
        return _best(matrix, rank).reshape(kernel.shape)
    if matricization == "channel":
        matrix = kernel.reshape(length * channels, filters)
        return _best(matrix, rank).reshape(kernel.shape)
    # (A, B, C, S) -> (A, C, B, S) -> (A*C, B*S)
    along, across = math.prod(spatial[:-1]), spatial[-1]
    order = (0, 2, 1, 3)
    swapped = kernel.reshape(along, across, channels, filters).transpose(order)
    best = _best(swapped.reshape(along * channels, across * filters), rank)
    return best.reshape(along, channels, across, filters).transpose(order).reshape(kernel.shape)


def _best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def _fold(program: Program, low: keras.Model) -> keras.Model:
    if program.form != "drawn":
        return dprp.fold(low, form=program.form)
    forms: dict[str, Form | str] = {}
    for i, layer in enumerate(low_rank_layers(low)):
        choices = layer_forms(layer)
        forms[layer.name] = choices[program.forms[i % len(program.forms)] % len(choices)]
    return dprp.fold(low, forms=forms)


def _require_plain(model: keras.Model) -> None:
    for layer in walk_layers(model):
        assert type(layer).__module__.startswith("keras."), type(layer)
        assert not isinstance(layer, SVDLayer)


def _exported(
    outcome: Outcome,
    suffix: str,
    convert: Callable[[keras.Model], bytes],
    folder: Path,
    folded: keras.Model,
    original: keras.Model,
    x: list[np.ndarray],
) -> list[np.ndarray] | None:
    def run(model: keras.Model) -> list[np.ndarray]:
        path = folder / f"exported{suffix}"
        path.write_bytes(convert(model))
        names = [tensor.name for tensor in model.inputs]
        return list(_in_order(load_file(path).run(dict(zip(names, x, strict=True))), model))

    try:
        return run(folded)
    except ValueError as refusal:
        # What a converter or runtime can't do at all is no fault of folding.
        try:
            run(original)
        except ValueError:
            outcome.refused.append(f"{suffix}: {refusal}")
            return None
        raise AssertionError(f"only the folded network is refused for {suffix}") from refusal


def _in_order(outputs: dict[str, np.ndarray], model: keras.Model) -> Iterator[np.ndarray]:
    if len(outputs) == len(model.outputs) and not set(outputs) & set(model.output_names):
        # A .tflite file without a signature: Identity, Identity_1, ... in the model's order.
        yield from (outputs[name] for name in sorted(outputs))
    else:
        yield from (outputs[name] for name in model.output_names)
