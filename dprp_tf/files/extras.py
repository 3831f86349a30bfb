"""Import packages that only some features need, and name the extra that brings them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, *, extra: str, feature: str) -> Any:
    """Import an optional package in the function that needs it.

    Args:
        module: Name of the module, such as `"onnx"` or `"matplotlib.figure"`.
        extra: The extra of `dprp-tf` that installs it: `"export"`, `"qat"` or `"report"`.
        feature: What needs it, as the subject of a sentence.

    Returns:
        The module.

    Raises:
        ImportError: If it can't be imported; the message names the package and the extra.

    Example:

    >>> require("json", extra="export", feature="This example").dumps([1])
    '[1]'
    >>> require("no_such_package.part", extra="export", feature="This example")
    Traceback (most recent call last):
      ...
    ImportError: This example needs no_such_package, which can't be imported. \
Install it with: pip install "dprp-tf[export]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A package that is there may lack one of its own.
        package = (error.name or module).partition(".")[0]
        raise ImportError(
            f"{feature} needs {package}, which can't be imported. Install it with: "
            f'pip install "dprp-tf[{extra}]"',
            name=package,
        ) from error
