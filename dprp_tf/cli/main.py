"""The command `dprp`: what the library does, one command each."""

from __future__ import annotations

import os

# Each group registers its commands when imported; `dprp --help` lists them in this order.
from dprp_tf.cli import looking, training  # isort: skip
from dprp_tf.cli import compressing, selecting, listing_channels, planning  # isort: skip
from dprp_tf.cli import deploying, gating, packaging, reporting  # isort: skip
from dprp_tf.cli.app import app
from dprp_tf.cli.console import told_warnings

__all__ = [
    "app",
    "compressing",
    "deploying",
    "gating",
    "listing_channels",
    "looking",
    "main",
    "packaging",
    "planning",
    "reporting",
    "selecting",
    "training",
]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with told_warnings():
        app(prog_name="dprp")


if __name__ == "__main__":
    main()
