"""How many places each group keeps within some bounds, by the method of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras

from dprp_tf.selection.channel_choice import ChannelChoice
from dprp_tf.selection.measured_cuts import MeasuredCuts, gives_classes
from dprp_tf.selection.solving.joint_costs import JointCosts

__all__ = ["chosen_widths"]


def chosen_widths(
    model: keras.Model,
    choice: ChannelChoice,
    shares: Mapping[str, float],
    told: Callable[[float | None, str], None] = lambda share, text: None,
) -> dict[str, int]:
    """Return the widths that a method chooses.

    Args:
        model: The whole model.
        choice: The order in which its channels go, with the method.
        shares: The largest shares of the whole model's costs, by metric.
        told: Called with the share done and a text. Default: nothing shown.

    Returns:
        Widths by group: for `"outputs"` those of `MeasuredCuts`, else those of `choose_widths`.

    Raises:
        BudgetError: If no widths meet the bounds; in shares.

    Example:

    >>> chosen_widths.__name__
    'chosen_widths'
    """
    if choice.method != "outputs":
        return choice.widths(shares)
    assert choice.samples is not None
    cuts = MeasuredCuts(
        model,
        choice,
        JointCosts(model, choice.costs),
        classes=gives_classes(model, choice.samples[1]),
        told=told,
    )
    return cuts.choose(shares)[0]
