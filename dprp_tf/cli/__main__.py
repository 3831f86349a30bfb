"""`python -m dprp_tf.cli`: the command where its script is not on the path."""

from dprp_tf.cli.main import main

__all__: list[str] = []

main()
