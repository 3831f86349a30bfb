"""The script `dprp`, and `python -m dprp_tf.cli` where it is not on the path."""

from dprp_tf.cli.stopping import loading, told_to_stop

__all__ = ["start"]


def start() -> None:
    """Run the command line; told to stop while it still loads, it says so in one line too."""
    with told_to_stop():
        with loading():
            from dprp_tf.cli.main import main
        main()


if __name__ == "__main__":
    start()
