"""By what the forms of a folded model were chosen, known as long as the model is in memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import keras

from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.latency_table import LatencyTable

__all__ = ["ChosenForms", "form_doubts", "remember_choice"]

_CHOICES: weakref.WeakKeyDictionary[keras.Model, ChosenForms] = weakref.WeakKeyDictionary()
_RUNTIMES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class ChosenForms:
    """What decided on the forms of a model's layers.

    Args:
        target: Where the forms were timed; None if nothing was timed.
        runtime: `"litert"` or `"onnxruntime"`; None likewise.
        precision: `"float32"`, `"float16"` or `"int8"`; None likewise.

    Example:

    >>> chosen = ChosenForms("local", "litert", "float32")
    >>> chosen.doubt("litert", "float32") is None
    True
    >>> print(chosen.doubt("litert", "int8"))
    the layers' forms were chosen by times in float32, LiteRT, local, and this file is int8: ...
    """

    target: str | None = None
    runtime: str | None = None
    precision: str | None = None

    @classmethod
    def by(cls, measured: FoldPlan | LatencyTable | None) -> ChosenForms:
        """Return what decided, where it was a plan's or a table's times.

        Args:
            measured: The plan or table; None if nothing was timed.
        """
        if measured is None:
            return cls()
        return cls(measured.target, measured.runtime, measured.precision)

    def doubt(self, runtime: str, precision: str) -> str | None:
        """Return why a file may be slower than the dense one, if the forms were not timed for it.

        Args:
            runtime: The file's, `"litert"` or `"onnxruntime"`.
            precision: The file's: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.

        Returns:
            A sentence without its full stop; None if the forms were timed as the file computes.
        """
        if self.target is None:
            return (
                "the layers' forms were chosen without timing anything: the file may be slower "
                "than the dense one's"
            )
        differing = []
        if self.precision != precision:
            differing.append(precision)
        if self.runtime != runtime:
            differing.append(f"for {_RUNTIMES[runtime]}")
        if not differing:
            return None
        return (
            f"the layers' forms were chosen by times in {self.precision}, "
            f"{_RUNTIMES[str(self.runtime)]}, {self.target}, and this file is "
            f"{' and '.join(differing)}: it may be slower than the dense one's; choose them by "
            "times in its own precision and runtime"
        )


def remember_choice(model: keras.Model, choice: ChosenForms) -> None:
    """Remember by what the forms of a model's layers were chosen.

    Args:
        model: The folded model.
        choice: What decided.
    """
    _CHOICES[model] = choice


def form_doubts(model: keras.Model, runtime: str, precision: str) -> tuple[str, ...]:
    """Return what speaks against the forms of a model's layers in a file of it.

    Args:
        model: Any model.
        runtime: The file's, `"litert"` or `"onnxruntime"`.
        precision: The file's: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.

    Returns:
        `ChosenForms.doubt` of what was remembered; empty for a model that was not folded here, that
        was loaded from a file, or whose forms were chosen by name.

    Example:

    >>> form_doubts(keras.Sequential(), "litert", "int8")
    ()
    """
    choice = _CHOICES.get(model)
    doubt = None if choice is None else choice.doubt(runtime, precision)
    return () if doubt is None else (doubt,)
