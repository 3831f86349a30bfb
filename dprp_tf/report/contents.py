"""What the page of a run shows, as plain data for its templates."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dprp_tf.report.bench_warnings import BenchWarning, bench_warnings, data_warnings
from dprp_tf.report.figures.gallery import run_figures
from dprp_tf.report.formatting import DASH, TIMES, clean_name, count_text, number
from dprp_tf.report.loading import RunData, mapping, records, texts
from dprp_tf.report.pictures import png_bytes
from dprp_tf.report.selection import selection_results
from dprp_tf.report.tables.benchmarks import bench_table, run_label
from dprp_tf.report.tables.cells import Cell, Table
from dprp_tf.report.tables.channel_plan import (
    channel_plan_about,
    channel_plan_figures,
    channel_plan_table,
)
from dprp_tf.report.tables.files import files_by_format, files_table
from dprp_tf.report.tables.fold_plan import plan_figures, plan_notes, plan_table
from dprp_tf.report.tables.joint_plan import (
    joint_plan_about,
    joint_plan_figures,
    joint_plan_notes,
)
from dprp_tf.report.tables.layers import layers_table, skipped_layers_table
from dprp_tf.report.tables.measured_forms import measured_forms_table
from dprp_tf.report.tables.models import BASELINE, baseline_first, model_label, models_table
from dprp_tf.report.tables.quantization import quantization_table
from dprp_tf.report.tables.rank_plan import (
    rank_plan_about,
    rank_plan_figures,
    rank_plan_table,
)
from dprp_tf.report.tables.scores import bench_score, score_title
from dprp_tf.report.tables.search import search_table
from dprp_tf.report.tables.timing import timing_table
from dprp_tf.report.verdict import Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "PageContents", "Picture", "Section", "page_contents"]

_MODELS_NOTE = (
    "Parameters and MACs are those of the folded network that is exported; the small figures "
    "are the change from the first row."
)

_RANK_PLAN_NOTE = (
    "Weights are those of the kernels as cut; the energy lost is the share that the cut takes."
)

_CHANNEL_PLAN_NOTE = (
    "Channels of a group go together: those that other layers have tied to them go too. The share "
    "lost is that of what the method looks at."
)

_RANKS_LEFT_NOTE = (
    "Dense weights are those of the model without the channels that go; the energy lost is the "
    "share that the cut takes of them."
)


@dataclass(frozen=True)
class Picture:
    """A figure in light and dark as data addresses, its size in CSS pixels, and its words."""

    name: str
    title: str
    caption: str
    words: str
    width: int
    height: int
    light: str
    dark: str


@dataclass(frozen=True)
class Outcome:
    """The main figures of a model beside the dense one: its label where there are several."""

    label: str
    figures: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; whatever it has is shown in this order.

    Args:
        key: What a link to it names.
        title: Its heading.
        about: A line below the heading.
        warnings: What casts doubt on its figures.
        figures: Heading and cell of its main figures, shown large.
        notes: Sentences in a list.
        tables: Each table with the note below it.
        groups_above: Whether the groups of its tables are named in a row above them.
        pictures: Its plots.
        settings: Names and values.
    """

    key: str
    title: str
    about: str = ""
    warnings: tuple[BenchWarning, ...] = ()
    figures: tuple[tuple[str, Cell], ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[tuple[Table, str], ...] = ()
    groups_above: bool = False
    pictures: tuple[Picture, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def has_something(self) -> bool:
        """Whether there is anything below its heading."""
        shown = (self.about, self.warnings, self.figures, self.notes, self.tables, self.pictures)
        return any((*shown, self.settings))


@dataclass(frozen=True)
class PageContents:
    """Everything the page of a run says.

    Args:
        title: Its name.
        data_name: The data set; empty where unknown.
        facts: Counts, shape and classes of the data.
        created: When the run was, as people write it; empty where unknown.
        created_iso: The same for machines; empty where the run's time can't be read.
        command: The command that started it.
        verdict: Its verdict; `None` where it recorded none, and for measurements without a run.
        headline: The main figures below the verdict, of each model that it judges.
        notes: What a reader must know of it, in sentences.
        sections: The parts that have something to show.
    """

    title: str
    data_name: str
    facts: tuple[str, ...]
    created: str
    created_iso: str
    command: str
    verdict: Verdict | None
    headline: tuple[Outcome, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def page_contents(run: RunData) -> PageContents:
    """Gather what the page of a run shows.

    Args:
        run: What `load_run` returned.

    Returns:
        Texts, cells and pictures, none of them escaped.

    Raises:
        ValueError: If a part of the run isn't of its kind.

    Example:

    >>> from pathlib import Path
    >>> page_contents(RunData(Path("run"), results={"title": "Digits"})).title
    'Digits'
    """
    results = run.results or {}
    if run.results is None and run.selection is not None:
        results = selection_results(run.selection, run.plan_of_selection)
    untitled = "DPRP measurements" if run.results is None else "DPRP run"
    data = mapping(results, "data")
    created = str(results.get("created") or "")
    moment = _moment(created)
    sections: tuple[Section, ...] = (
        Section("data", "Data", warnings=tuple(data_warnings(results))),
        _tables("models", "Models", (models_table(results), _MODELS_NOTE)),
        _tables("files", "Files", _with_note(files_table(results))),
        _rank_plan(run),
        _channel_plan(run.channel_plan or {}),
        _joint_plan(run.joint_plan or {}),
        _quantization(run),
        _benchmarks(run.bench or {}),
        _fold_plan(run.plan or {}),
        Section("plots", "Plots", pictures=_pictures(run)),
        _tables("search", "Search", _with_note(search_table(results))),
        _tables("layers", "Layers", (layers_table(results), "")),
        _tables("skipped", "Skipped layers", (skipped_layers_table(results), "")),
        _settings(results),
        _tables("timing", "Timing", (timing_table(results), "")),
    )
    if results.get("front"):
        # Of a search the picture of its front comes first.
        sections = tuple(sorted(sections, key=lambda section: section.key != "plots"))
    return PageContents(
        title=clean_name(results.get("title") or untitled),
        data_name=clean_name(data.get("name") or ""),
        facts=_facts(data),
        created=moment,
        created_iso=created if moment != clean_name(created) else "",
        command=str(results.get("command") or ""),
        verdict=verdict(results) if results.get("headline") else None,
        headline=_outcomes(results),
        notes=tuple(map(clean_name, texts(results, "notes"))),
        sections=tuple(section for section in sections if section.has_something),
    )


def _facts(data: Mapping[str, Any]) -> tuple[str, ...]:
    counts = [
        f"{count_text(data[key])} {word}"
        for key, word in (("train", "training"), ("test", "test"))
        if not math.isnan(number(data.get(key)))
    ]
    facts = [" and ".join(counts) + " examples"] if counts else []
    if isinstance(data.get("image_shape"), list | tuple):
        facts.append(f" {TIMES} ".join(map(clean_name, data["image_shape"])))
    if not math.isnan(number(data.get("classes"))):
        facts.append(f"{count_text(data['classes'])} classes")
    return tuple(facts)


def _moment(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return clean_name(created)
    zone = "" if moment.tzinfo is None else f" {moment.tzname()}"
    return f"{moment:%Y-%m-%d}, {moment:%H:%M}{zone}"


def _outcomes(results: Mapping[str, Any]) -> tuple[Outcome, ...]:
    """What came out beside a dense one: of each model that the verdict judges, else of one."""
    formats = files_by_format(results)
    judged = [
        (row.get("model"), clean_name(row.get("format") or ""))
        for row in records(mapping(results, "headline"), "outcomes")
    ]
    # Else the first format of the run stands for all; the table below has the others.
    asked = judged or [(None, next(iter(formats), ""))]
    found = [_figures(results, model, form, formats.get(form, [])) for model, form in asked]
    names = {row.get("name"): model_label(row) for row in records(results, "models")}
    labels = [names.get(model) or model_label({"name": model}) for model, _ in asked]
    if len(asked) == 1:
        labels = [""]
    return tuple(
        Outcome(label, figures) for label, figures in zip(labels, found, strict=True) if figures
    )


def _figures(
    results: Mapping[str, Any], model: Any, form: str, files: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, Cell], ...]:
    """The figures of a model, and of its file among those of a format; None for what came out."""
    figures: list[tuple[str, Cell]] = []
    models = [row.get("name") for row in baseline_first(records(results, "models"), "name")]
    row = _place(models, model)
    if row is not None:
        cells = _cells(models_table(results), row)
        titles = ("Accuracy", "Parameters", "MACs")
        figures += [(title, cells[title]) for title in titles if title in cells]
    row = _place([file.get("model") for file in files], model)
    if row is not None:
        cells = _cells(files_table({**results, "files": files}), row)
        figures += [
            (f"{title.split()[0]}, {form}", cells[title])
            for title in ("Size", "Latency ratio")
            if title in cells and cells[title].text != DASH
        ]
    return tuple(figures)


def _place(names: Sequence[Any], model: Any) -> int | None:
    """The place of a model beside a dense one; by default of DPRP, else of the last in order."""
    if names[:1] != [BASELINE] or len(names) < 2:
        return None
    if model is None:
        return names.index("dprp") if "dprp" in names else len(names) - 1
    return names.index(model) if model in names[1:] else None


def _cells(table: Table, row: int) -> dict[str, Cell]:
    titles = [column.title for column in table.columns]
    return dict(zip(titles, table.rows[row], strict=True))


def _tables(key: str, title: str, *tables: tuple[Table, str], **parts: Any) -> Section:
    """Make a section of the tables that have rows."""
    shown = tuple((table, note) for table, note in tables if table.rows)
    return Section(key, title, tables=shown, **parts)


def _with_note(table: Table, before: str = "", after: str = "") -> tuple[Table, str]:
    """Put below a table what is to be known of its columns, and what of this run."""
    return table, " ".join(part for part in (before, table.note, after) if part)


def _rank_plan(run: RunData) -> Section:
    plan = run.rank_plan
    if not plan:
        return Section("rank-plan", "Rank plan")
    looked = f"{count_text(run.candidates)} candidates evaluated" if run.candidates else ""
    return _tables(
        "rank-plan",
        "Rank plan",
        (rank_plan_table(plan), _RANK_PLAN_NOTE),
        about=" · ".join(part for part in (rank_plan_about(plan), looked) if part),
        figures=tuple(rank_plan_figures(plan)),
    )


def _channel_plan(plan: Mapping[str, Any]) -> Section:
    if not plan:
        return Section("channel-plan", "Channel plan")
    return _tables(
        "channel-plan",
        "Channel plan",
        (channel_plan_table(plan), _CHANNEL_PLAN_NOTE),
        about=channel_plan_about(plan),
        figures=tuple(channel_plan_figures(plan)),
    )


def _joint_plan(plan: Mapping[str, Any]) -> Section:
    if not plan:
        return Section("joint-plan", "Channels and ranks")
    return _tables(
        "joint-plan",
        "Channels and ranks",
        (channel_plan_table(mapping(plan, "channels")), _CHANNEL_PLAN_NOTE),
        (rank_plan_table(mapping(plan, "ranks")), _RANKS_LEFT_NOTE),
        about=joint_plan_about(plan),
        figures=tuple(joint_plan_figures(plan)),
        notes=tuple(joint_plan_notes(plan)),
    )


def _quantization(run: RunData) -> Section:
    table = quantization_table(run.quantization or [])
    changes = f"Changes are from {table.rows[0][0].text}." if len(table.rows) > 1 else ""
    return _tables("quantization", "Quantization", _with_note(table, before=changes))


def _benchmarks(bench: Mapping[str, Any]) -> Section:
    table, said = bench_table(bench), []
    score = score_title(bench_score(bench))
    if any(column.title == score for column in table.columns):
        samples, data = count_text(bench.get("samples")), mapping(bench, "data")
        on = f" on {samples} test samples" if samples != DASH else ""
        of = f" of {clean_name(data['name'])}" if on and data.get("name") else ""
        said.append(f"{score} is that of the very file{on}{of}, whatever the target.")
    if bench.get("created"):
        said.append(f"Measured {_moment(str(bench['created']))}.")
    return _tables(
        "benchmarks",
        "Benchmarks",
        _with_note(table, after=" ".join(said)),
        warnings=(*data_warnings(bench), *bench_warnings(bench)),
        groups_above=True,
    )


def _fold_plan(plan: Mapping[str, Any]) -> Section:
    version = f"{plan.get('runtime') or ''} {plan.get('runtime_version') or ''}"
    said = (run_label(plan), plan.get("processor"), version, plan.get("precision"))
    parts = [clean_name(part) for part in said if part] if plan else []
    return _tables(
        "fold-plan",
        "Fold plan",
        (plan_table(plan), "The cost of a layer is that of its form, measured alone."),
        (
            measured_forms_table(plan),
            "Cost of each form measured, relative to the dense layer, with its interval; "
            "✓ marks the form chosen.",
        ),
        about=" · ".join(part for part in parts if part),
        figures=tuple(plan_figures(plan)),
        notes=tuple(plan_notes(plan)),
    )


def _settings(results: Mapping[str, Any]) -> Section:
    settings = tuple(
        (clean_name(name), clean_name(_setting(value)))
        for name, value in mapping(results, "settings").items()
    )
    return Section("settings", "Settings", settings=settings)


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pictures(run: RunData) -> tuple[Picture, ...]:
    dark = {entry.name: figure for entry, figure in run_figures(run, "dark")}
    pictures = []
    for entry, figure in run_figures(run, "light"):
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        pictures.append(
            Picture(
                entry.name,
                entry.title,
                entry.caption,
                entry.describe(getattr(run, entry.part)),
                width,
                height,
                light=_embedded(figure),
                dark=_embedded(dark[entry.name]),
            )
        )
    return tuple(pictures)


def _embedded(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(figure)).decode("ascii")
