"""A selection in a folder: its log, plan, plot and models; started or continued alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.data.sampling import balanced_sample
from dprp_tf.files.atomic import remove_leftovers, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.files.settings import require_same_settings
from dprp_tf.report import save_channel_plan_plot, save_rank_plan_plot
from dprp_tf.runs.choosing_channels import choose_channels
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.excluded_layers import all_but
from dprp_tf.runs.files import format_for, timed_files
from dprp_tf.runs.first_look import first_look
from dprp_tf.runs.kept_plans import CANDIDATES, KeptPlan, plan_path
from dprp_tf.runs.learning_plans import learn_plan, learning_data, samples_of_cuts
from dprp_tf.runs.ownership import SELECTION, require_own
from dprp_tf.runs.progress import Display
from dprp_tf.runs.reporting import report_run, where_drawn
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.runs.time_tables import LATENCY, WIDTHS, require_table_for, times_for
from dprp_tf.selection.channel_choice import METHODS_BY_DATA
from dprp_tf.selection.compressing import bsr
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.methods.similarity import FeatureSimilarity
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selector import Selector
from dprp_tf.training.fine_tuning import FineTuning
from dprp_tf.training.saving import load_model, save_model

__all__ = ["select_in_folder", "selector_of"]

_RESULTS = "selection.json"
_CONFIG = "config.json"

_CUT = {"ranks": "ranks", "channels": "channels", "both": "channels and ranks"}


def select_in_folder(
    folder: str | os.PathLike[str],
    model: keras.Model,
    dataset: Dataset,
    settings: SelectionSettings,
    *,
    latency: LatencyTable | WidthTable | None = None,
    layers: Callable[[keras.layers.Layer], bool] | None = None,
    display: Display | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Choose what is cut, cut the model, fine-tune it if asked, and write all of it to a folder.

    The folder gets `candidates.jsonl` (every candidate, as it is evaluated), `rank_plan.json` (the
    `RankPlan`), `rank_plan.png`, `cut.keras` (plain layers, not fine-tuned), with fine-tuning
    `model.keras` (where the search itself fine-tunes, the model that met the accuracy), and
    `selection.json` with the accuracies on the test split, which is used for nothing else. By
    `settings.cut` the plan is `channel_plan.json` (a `ChannelPlan`) or `joint_plan.json` (a
    `JointPlan`) instead.

    Unless `settings.precision` is None, the last of them becomes a file for the target, verified
    and timed in turns with the dense model's file; one that does not pass stays, with `verified`
    False in its row. Where the budget is one of time, or of accuracy alone, the cut is chosen by
    what each layer takes there: `latency.json` by rank, or `widths.json` by channels, measured if
    it isn't given.

    Args:
        folder: The folder; the same call goes on in it after an interruption.
        model: The dense, trained model.
        dataset: Its data.
        settings: What to do.
        latency: A latency table, where channels go a width table, which then says target, runtime,
            precision and threads. Default: measured where one is needed.
        layers: Says which layers may be cut. Default: all that can be but `settings.exclude`.
        display: Where progress is shown.
        fresh: Whether to discard what the folder holds.

    Returns:
        What `selection.json` holds.

    Raises:
        BudgetError: If no cut meets the budget.
        ValueError: If the folder is of another selection, or a setting is unusable.
        TargetError: If files can't be timed on the target.
    """
    place = Path(folder)
    if latency is not None:
        require_table_for(latency, settings)
        measured_for = ("target", "runtime", "precision", "threads")
        settings = replace(settings, **{name: getattr(latency, name) for name in measured_for})
    require_own(place, SELECTION)
    with run_lock(place):
        remove_leftovers(place)
        _same_settings(place, settings, fresh)
        try:
            return _run(
                place, model, dataset, settings, latency, layers, display or Display(quiet=True)
            )
        except ValueError:
            # Other settings may be tried in the same folder, if nothing came of these.
            log = place / CANDIDATES
            empty = not log.exists() or len(log.read_bytes().splitlines()) == 1
            if empty and {*SELECTION.held(place)} <= {_CONFIG, LATENCY, WIDTHS, log.name}:
                for name in (log.name, LATENCY, WIDTHS, _CONFIG):
                    (place / name).unlink(missing_ok=True)
            raise


def _run(
    place: Path,
    model: keras.Model,
    dataset: Dataset,
    settings: SelectionSettings,
    latency: LatencyTable | WidthTable | None,
    layers: Callable[[keras.layers.Layer], bool] | None,
    display: Display,
) -> dict[str, Any]:
    look = first_look(model, dataset)
    look.warn()
    # For layers that draw from no generator of their own.
    keras.utils.set_random_seed(settings.seed)
    held_out, rest = _held_out(dataset, settings.samples, settings.seed)
    layers = layers or all_but(model, settings.exclude)
    latency = times_for(place, model, settings, latency, layers, display.step)
    tuning = settings.tuning
    if settings.distill:
        tuning = replace(tuning or FineTuning(epochs=30), teacher=model)
    if settings.learned:
        rest = learning_data(rest, settings.seed)
    plan, tuned = _chosen(place, model, held_out, rest, settings, tuning, latency, layers, display)
    seen = None
    if _by_outputs(plan, settings):
        seen = samples_of_cuts(rest) if settings.learned else held_out[0]
    small = cut(model, plan, calibration_data=seen, latency=latency)
    save_model(small, place / "cut.keras")
    display.step("evaluating")
    results: dict[str, Any] = {
        "settings": settings.as_dict(),
        "data": {**dataset.description, **look.as_dict()},
        "shares": plan.shares,
        "accuracy": {"dense": accuracy(model, dataset), "cut": accuracy(small, dataset)},
    }
    models = {"dense": model, "cut": small}
    if tuned is None and tuning is not None:
        tuned = small
        tuning.for_model(model, rest.y_train).fit(
            tuned,
            rest,
            callbacks=[display.training("fine-tuning", tuning.epochs)],
            folder=place / "tuned",
        )
    if tuned is not None:
        save_model(tuned, place / "model.keras")
        # What ships; the model that was cut is, by now, often this very one.
        models = {"dense": model, "tuned": tuned}
        results["accuracy"]["tuned"] = accuracy(tuned, dataset)
    write_json(place / _RESULTS, results)
    if settings.precision is not None:
        results["files"] = timed_files(
            place,
            format_for(settings.runtime, settings.precision),
            models,
            dataset,
            target=settings.target,
            threads=settings.threads,
            # What took so long to tune is told all the same.
            keep_unverified=True,
            progress=display.step,
        )
        write_json(place / _RESULTS, results)
    with where_drawn(place):
        _draw(plan, place)
    report_run(place)
    display.finish()
    return results


def _chosen(
    place: Path,
    model: keras.Model,
    held_out: tuple[np.ndarray, np.ndarray],
    rest: Dataset,
    settings: SelectionSettings,
    tuning: FineTuning | None,
    latency: LatencyTable | WidthTable | None,
    layers: Callable[[keras.layers.Layer], bool] | None,
    display: Display,
) -> tuple[KeptPlan, keras.Model | None]:
    """Choose what is cut, and return with it the model that the search trained, if it did."""
    doing = "learning" if settings.learned else "choosing"
    progress = display.search(f"{doing} {_CUT[settings.cut]}")
    if settings.learned:
        assert not isinstance(latency, LatencyTable)
        plan = learn_plan(place, model, held_out, rest, settings, latency, layers, progress)
        return plan, None
    if settings.cut != "ranks":
        assert not isinstance(latency, LatencyTable)
        plan = choose_channels(place, model, held_out, settings, latency, layers, progress)
        return plan, None
    assert not isinstance(latency, WidthTable)
    options: dict[str, Any] = {
        "decomposition": settings.decomposition,
        "layers": layers,
        "truncation": settings.truncation,
        "latency": latency,
        "progress": progress,
        "seed": settings.seed,
        "score": "accuracy",
    }
    selector = selector_of(replace(settings, tuning=tuning))
    if isinstance(selector, FeatureSimilarity):
        # An interrupted training of a candidate goes on.
        selector = replace(selector, folder=place / "similarity")
    if settings.method == "bsr":
        # What prepares the dense kernels begins as the teacher itself.
        first = replace(tuning or FineTuning(), epochs=settings.regularized_epochs, teacher=None)
        found = bsr(
            model,
            budget=settings.budget,
            data=held_out,
            training_data=rest,
            search=selector,
            strength=settings.strength,
            regularized=first,
            tuning=tuning or FineTuning(epochs=30),
            folder=place,
            callbacks=[display.training("training", first.epochs)],
            **options,
        )
        return found.plan, found.model
    ranks = select_ranks(
        model,
        method=selector,
        budget=settings.budget,
        data=held_out,
        training_data=rest,
        log=place / CANDIDATES,
        **options,
    )
    ranks.save(plan_path(place, "ranks"))
    if isinstance(selector, FeatureSimilarity) and selector.tuning is not None:
        # The search trained what it chose; where it chose the model itself, nothing is to do.
        assert selector.tuned_path is not None
        return ranks, load_model(selector.tuned_path) if selector.tuned_path.exists() else model
    return ranks, None


def _by_outputs(plan: KeptPlan, settings: SelectionSettings) -> bool:
    """Whether cuts by a plan keep outputs on samples."""
    if isinstance(plan, RankPlan):
        return plan.truncation == "output"
    return settings.learned or plan.method in METHODS_BY_DATA


def _draw(plan: KeptPlan, place: Path) -> None:
    """Write the pictures of a plan: of its channels, of its ranks, or of both."""
    channels = plan.channels if isinstance(plan, JointPlan) else plan
    ranks = plan.ranks if isinstance(plan, JointPlan) else plan
    if isinstance(channels, ChannelPlan):
        save_channel_plan_plot(channels, place / "channel_plan.png")
    if isinstance(ranks, RankPlan) and ranks.layers:
        save_rank_plan_plot(ranks, place / "rank_plan.png")


def selector_of(settings: SelectionSettings) -> Selector | str:
    """Return the method of a selection, or of the first step of BSR.

    Args:
        settings: The selection's settings.

    Returns:
        A selector, or the name of one that needs no settings of its own.

    Example:

    >>> from dprp_tf.costs.budget import Budget
    >>> selector_of(SelectionSettings(method="energy", budget=Budget.of(0.5)))
    'energy'
    """
    name = "mbs" if settings.method == "bsr" else settings.method
    if name == "mbs":
        pairs = settings.searches or ((3, 5),)
        return BeamSearch(samples=settings.samples, searches=pairs)
    if name == "similarity":
        # Only a search for an accuracy trains its candidates.
        drop = settings.budget.accuracy_drop
        return FeatureSimilarity(tuning=None if drop is None else settings.tuning)
    return name


def _held_out(
    dataset: Dataset, samples: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], Dataset]:
    """Take samples of every class alike out of the training split; return both parts.

    Of no class more than half is taken while another has more: the rest may be trained on.
    """
    count = len(dataset.x_train)
    if not 1 <= samples < count:
        raise ValueError(
            f"`samples` must lie in 1..{count - 1}, some of the training images. "
            f"Received: samples={samples}"
        )
    taken = balanced_sample(dataset.y_train, samples, seed, share=0.5)
    left = np.setdiff1d(np.arange(count), taken)
    x = np.asarray(dataset.x_train[taken], dtype=np.float32)
    return (x, dataset.y_train[taken]), dataset.with_rows(left)


def _same_settings(place: Path, settings: SelectionSettings, fresh: bool) -> None:
    path = place / _CONFIG
    if fresh:
        SELECTION.discard(place)
    require_same_settings(path, settings.as_dict(), "a selection")
