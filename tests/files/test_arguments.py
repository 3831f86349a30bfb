"""One meaning of integer wherever a user gives one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.costs.form import Form
from dprp_tf.data.augmentation import CropAndFlip
from dprp_tf.deploy.targets import SSHTarget
from dprp_tf.files.arguments import check_choice, check_integer, check_number, is_integer
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.methods.similarity import FeatureSimilarity


def _dense() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])


TAKERS: dict[str, Callable[[Any], Any]] = {
    "units": dprp.SVDDense,
    "filters": lambda n: dprp.SVDConv2D(n, 3),
    "kernel_size": lambda n: dprp.SVDConv2D(4, n),
    "strides": lambda n: dprp.SVDConv2D(4, 3, strides=(n, n)),
    "rank": lambda n: dprp.SVDDense(4, rank=n),
    "ranks": lambda n: dprp.factorize(_dense(), ranks=n),
    "classes": lambda n: zoo.resnet_small((8, 8, 1), n, widths=(4, 8)),
    "input_shape": lambda n: zoo.resnet_small((8, 8, n), 2, widths=(4, 8)),
    "padding": CropAndFlip,
    "samples": lambda n: FeatureSimilarity(samples=n),
    "port": lambda n: SSHTarget("pi", "pi", n),
}


@pytest.mark.parametrize("name", TAKERS)
def test_truth_values_and_fractions_are_no_integers_and_numpys_are(name: str) -> None:
    for wrong in (True, 2.0, "2", np.float32(2.0), -1):
        with pytest.raises(ValueError, match=rf"`{name}`.*Received"):
            TAKERS[name](wrong)
    for right in (2, np.int64(2), np.uint8(2)):
        TAKERS[name](right)


def test_numpys_integers_are_stored_as_pythons() -> None:
    two = np.int64(2)
    convolution = dprp.SVDConv2D(two, (two, two), strides=two).get_config()
    keys = ("filters", "kernel_size", "strides")
    assert json.dumps([convolution[key] for key in keys]) == "[2, [2, 2], [2, 2]]"
    assert json.dumps(dprp.SVDDense(two).get_config()["units"]) == "2"
    assert json.dumps(Form("tucker", (two, two)).as_dict()["ranks"]) == "[2, 2]"
    for kind in (FeatureSimilarity, BeamSearch):
        assert repr(kind(samples=two)) == repr(kind(samples=2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: check_integer("n", 0), "`n` must be an integer of 1 or more. Received: n=0"),
        (lambda: check_integer("n", "2", 0), "an integer of 0 or more. Received: n='2'"),
        (lambda: check_integer("n", 9, 1, 8), "an integer of 1 to 8. Received: n=9"),
        (lambda: check_number("x", 0, above=0), "finite number above 0. Received: x=0"),
        (lambda: check_number("x", 2, 0, 1), "number at least 0 and at most 1. Received: x=2"),
        (lambda: check_number("x", 1, 0, below=1), "at least 0 and below 1. Received: x=1"),
        (lambda: check_number("x", float("nan"), 0), "at least 0. Received: x=nan"),
        (lambda: check_number("x", float("inf"), 0), "at least 0. Received: x=inf"),
        (lambda: check_number("x", True, 0), "at least 0. Received: x=True"),
        (lambda: check_choice("c", "z", ["a", "b"]), "one of ('a', 'b'). Received: c='z'"),
    ],
)
def test_refusals_name_argument_range_and_value(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_what_passes_comes_back_as_pythons() -> None:
    assert type(check_integer("n", np.int32(3), 1, 3)) is int
    assert type(check_number("x", np.float32(0.5), 0, 1)) is float
    assert is_integer(np.int8(0), 0)
    assert not is_integer(np.bool_(True), 0)
    check_choice("c", None, (None, "a"))


def test_an_integer_beyond_what_a_float_holds_is_no_number() -> None:
    with pytest.raises(ValueError, match="`seconds` must be a finite number above 0"):
        check_number("seconds", 10**400, above=0)
