"""LeSS: masks of channels and thresholds of singular values, learned with the weights frozen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import Places
from dprp_tf.costs.compiled_loss import loss_weights_by_output
from dprp_tf.files.setting_fields import check_settings, setting
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.selection.methods.learning_state import LearningState
from dprp_tf.selection.methods.soft_cut import SoftCut, SoftSettings
from dprp_tf.selection.scoring.samples import picked
from dprp_tf.selection.solving.soft_costs import SoftCosts
from dprp_tf.training.divergence import DivergenceError
from dprp_tf.training.fine_tuning import FineTuning

__all__ = ["LeSS", "Learned"]

_MASKED = ("channels", "filters")
_CUTS = ("gate", "shrink")
_MEMORY = 0.95
_KEPT_EVERY = 50


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned of a model.

    Attributes:
        masks: m of each place, as learned.
        kept: sigma(m), how much of each place is left, 0 to 1.
        ranks: The soft ranks of the factorized layers, for Tucker-2 that of the channels and then
            that of the filters; None where there are none.
        history: By round the steps by its end, their mean loss with the budget's term, and the cost
            at its end relative to the bound.
        met: Whether the cost came as close to the budget as was asked.
    """

    masks: NDArray[np.float64]
    kept: NDArray[np.float64]
    ranks: NDArray[np.float64] | None
    history: tuple[Mapping[str, float], ...]
    met: bool


@dataclass(frozen=True)
class LeSS:
    """Settings of LeSS, which learns which channels and ranks a trained model can do without.

    Gradient steps on the masks m of channels and thresholds g of singular values alone lower

        loss(y, model with kernels SVT(mask * W, g)) + strength * ||B - B_d||^2,

    B being the cost at the soft counts as a share of the whole model's and B_d the budget; see
    `dprp_tf.selection.methods.soft_cut.SoftCut` for the kernels and counts, and `SoftCosts` for B.
    A kernel in Tucker-2 has two thresholds, one for each of its unfoldings.
    Masks begin at 1 and thresholds at 0. Rounds of steps go on until B is within `closeness` of
    B_d, at most `most_steps` in all.

    Args:
        steps: Steps of a round. Default 300.
        most_steps: Most steps in all. Default 900.
        closeness: eps, how far B may stay from the budget, relative to it. Default 0.02.
        batch_size: Samples per step. Default 64; the thesis has 128, and 64 on ImageNet.
        learning_rate: Adam's, in units of the masks, and of each kernel's largest singular value
            for the thresholds. Default 0.01.
        strength: lambda, before the first step. Default 1.
        strength_growth: Factor by which it grows each step, so that the budget is met in the end
            whatever the loss weighs. Default 1.015; 1 as in the thesis.
        first_steepness: mu_0 of the scheduled sigmoid. Default 5.
        most_steepness: alpha. Default 50.
        steepness_growth: beta, by which mu grows each step. Default 0.15. The thesis has 4, on
            ImageNet 8: after some ten such steps masks stay where they are, for at 1 the sigmoid
            has no slope any more.
        cut: `"gate"`: singular values above the threshold stay as they are, as they do where ranks
            are cut. `"shrink"`: all fall by the threshold, as in the thesis. Default `"gate"`.
        rank_steepness: How steeply a singular value above its threshold counts: q of a gate, t s_1
            where they shrink. Default: 4, and 2 where they shrink.
        refresh: Steps between two refreshes of the singular vectors. Default 10.
        masked: What a mask acts on: `"channels"`, which is what removing them amounts to, or the
            `"filters"` that make them, as in the thesis. Default `"channels"`.
        masks: Whether to learn masks; without, only ranks fall. Default True.
        thresholds: Whether to learn thresholds; without, only channels go. Default True.
        data_share: Share of the data to learn from. Default 1.

    Raises:
        ValueError: If a value is out of range, or neither masks nor thresholds are learned.

    Source: BSR/LeSS thesis, chapter 4, Algorithm 2; 4.7.4 for two thresholds.

    Example:

    >>> LeSS(masks=False).thresholds
    True
    """

    name: ClassVar[str] = "less"
    steps: int = setting(300, "Steps of a round.", minimum=1)
    most_steps: int = setting(900, "Most steps in all.", minimum=1)
    closeness: float = setting(0.02, "How far the cost may stay from the budget.", above=0)
    batch_size: int = setting(64, "Samples per step.", minimum=1)
    learning_rate: float = setting(0.01, "Adam's rate.", above=0)
    strength: float = setting(1.0, "Weight of the distance to the budget.", above=0)
    strength_growth: float = setting(1.015, "Factor by which it grows each step.", minimum=1)
    first_steepness: float = setting(5.0, "Steepness of the sigmoid at first.", above=0)
    most_steepness: float = setting(50.0, "Steepness of the sigmoid at last.", above=0)
    steepness_growth: float = setting(0.15, "What it grows by each step.", minimum=0)
    cut: str = setting("gate", "What becomes of singular values.", choices=_CUTS)
    rank_steepness: float | None = setting(
        None, "How steeply singular values count.", above=0, none_means="4, shrinking 2"
    )
    refresh: int = setting(10, "Steps between refreshes of the singular vectors.", minimum=1)
    masked: str = setting("channels", "What a mask acts on.", choices=_MASKED)
    masks: bool = setting(True, "Whether to learn masks.")
    thresholds: bool = setting(True, "Whether to learn thresholds.")
    data_share: float = setting(1.0, "Share of the data to learn from.", above=0, maximum=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if not (self.masks or self.thresholds):
            raise ValueError(
                "`masks` or `thresholds` must be learned. Received: neither, with which nothing "
                "would become smaller."
            )

    def soften(
        self,
        model: keras.Model,
        places: Places,
        costs: SoftCosts,
        bounds: Mapping[str, float],
        moments: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> SoftCut:
        """Return the model that is learned with, before its first step.

        Args:
            model: The trained model.
            places: Its channels that may go.
            costs: What it costs, and which layers' ranks may fall in which decomposition.
            bounds: The shares of the costs that are wanted.
            moments: Second moments of the layers' inputs, for energies of the outputs.
        """
        settings = SoftSettings(
            masks=self.masks,
            thresholds=self.thresholds,
            steepness=(self.first_steepness, self.most_steepness, self.steepness_growth),
            cut=self.cut,
            rank_steepness=self.rank_steepness or (4.0 if self.cut == "gate" else 2.0),
            masked=self.masked,
            strength=self.strength,
            strength_growth=self.strength_growth,
        )
        return SoftCut(model, places, costs, bounds, settings, moments)

    def learn(
        self,
        model: keras.Model,
        soft: SoftCut,
        x: Any,
        y: Any,
        *,
        told: Callable[[float | None, str], None] = lambda share, text: None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> Learned:
        """Take steps until the budget is met.

        Args:
            model: The trained model, which says the loss.
            soft: What `soften` made of it; its masks and thresholds change.
            x: Inputs.
            y: Labels.
            told: Called with the share done and a text.
            seed: Seed of the order of the samples.
            folder: Where to keep the state every 50 steps; the same call goes on from there.
                Default: nowhere.

        Returns:
            What was learned.

        Raises:
            DivergenceError: If the loss is no longer finite.
            ValueError: If the model has no loss and nothing says which is meant, or the folder is
                of another learning.
        """
        soft.compile(
            # The sigmoids' derivatives fall by orders of magnitude as they become steeper: a long
            # memory of larger ones, or a floor beneath them, would stop the masks there.
            optimizer=keras.optimizers.Adam(self.learning_rate, beta_2=_MEMORY, epsilon=1e-12),
            loss=FineTuning().for_model(model, y).loss,
            loss_weights=loss_weights_by_output(model) or None,
        )
        count = len(keras.tree.flatten(x)[0])
        soft.optimizer.build(soft.trainable_variables)
        variables = [*soft.variables, *soft.optimizer.variables]
        state = LearningState(folder, self._identity(model, soft, count, seed))
        state.restore(variables)
        batches = self._batches(count, np.random.default_rng(seed))
        for _ in range(state.done):
            next(batches)
        while state.done < self.most_steps and not self._met(state):
            rows = next(batches)
            soft.reset_metrics()
            loss = soft.train_on_batch(picked(x, rows), picked(y, rows), return_dict=True)["loss"]
            state.note(float(loss), float(keras.ops.convert_to_numpy(soft.spent)))
            if not math.isfinite(state.losses[-1]):
                raise DivergenceError(
                    f"Learning diverged at step {state.done}: its loss is {state.losses[-1]}. "
                    "Look for values in the data that are not finite, or lower `learning_rate`.",
                    epoch=1,
                    step=state.done,
                    terms=("app",),
                )
            if state.done % self.refresh == 0:
                soft.refresh()
                told(
                    state.done / self.most_steps,
                    f"learning, {state.spent[-1]:.2f} of the budget",
                )
            if state.done % _KEPT_EVERY == 0:
                sync(soft)
                state.keep(variables)
        soft.refresh()
        kept, ranks = soft.counts()
        masks = np.asarray(keras.ops.convert_to_numpy(soft.masks), dtype=np.float64)
        return Learned(masks, kept, ranks, self._history(state), self._met(state))

    def _met(self, state: LearningState) -> bool:
        """Whether a round has ended close to the budget."""
        ended = state.done > 0 and state.done % self.steps == 0
        return ended and abs(state.spent[-1] - 1) <= self.closeness

    def _history(self, state: LearningState) -> tuple[dict[str, float], ...]:
        rounds = [
            (begun, min(begun + self.steps, state.done))
            for begun in range(0, state.done, self.steps)
        ]
        return tuple(
            {
                "steps": end,
                "loss": float(np.mean(state.losses[begun:end])),
                "spent": state.spent[end - 1],
            }
            for begun, end in rounds
        )

    def _identity(self, model: keras.Model, soft: SoftCut, count: int, seed: int) -> dict[str, Any]:
        """What the steps depend on, but for the data's values."""
        digest = hashlib.sha256()
        for weight in model.weights:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
        found = {
            **asdict(self),
            "bounds": soft.bounds,
            "samples": count,
            "seed": seed,
            "weights": digest.hexdigest(),
            "variables": [list(variable.shape) for variable in soft.variables],
        }
        if "tucker" in soft.decompositions.values():
            # Left out else, as folders hold it that were begun before there was any.
            found["decomposition"] = "tucker"
        return found

    def _batches(self, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
        """Numbers of the samples of each step, always as many."""
        chosen = rng.permutation(count)[: max(1, round(self.data_share * count))]
        size = min(self.batch_size, len(chosen))
        while True:
            order = rng.permutation(chosen)
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size]
