"""One HTML file that says what a run achieved, readable anywhere and without a network."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.files.atomic import write_text
from dprp_tf.report.benchmarks import bench_table, bench_warnings, run_label
from dprp_tf.report.cells import Cell, ComparisonTable
from dprp_tf.report.comparison import (
    files_by_format,
    files_table,
    model_label,
    models_table,
    verdict,
)
from dprp_tf.report.fold_plan import candidates_table, plan_figures, plan_notes, plan_table
from dprp_tf.report.formatting import (
    DASH,
    TIMES,
    change_text,
    clean_name,
    count_text,
    duration_text,
    number,
)
from dprp_tf.report.loading import RunData, load_run, mapping, records
from dprp_tf.report.plots import run_figures
from dprp_tf.report.quantization import quantization_table
from dprp_tf.report.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_CAPTIONS = {
    "tradeoff": (
        "Accuracy against cost",
        "Every file beside its dense counterpart. A line joins the two files of one format; up and "
        "to the left is better.",
    ),
    "bench": (
        "Benchmarks",
        "A panel for each target and number of threads; the bar below a point spans the 10th to "
        "the 90th percentile. Left is faster, and smaller in the panel of sizes.",
    ),
    "cost_by_epoch": (
        "Cost by epoch",
        "Counts of the factors while training, which can start above the dense network. Folding "
        "picks the cheaper form of each layer afterwards.",
    ),
    "ranks_by_layer": (
        "Ranks by layer",
        "Singular values each layer started with, and how many it kept.",
    ),
    "singular_values": (
        "Singular values",
        "Magnitude of the singular values after each epoch; hatched ones were removed.",
    ),
    "training": (
        "Training",
        "Solid lines are training, dashed ones validation.",
    ),
}


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write `report.html`: verdict, tables and plots of a run in one self-contained file.

    Images and styles are inside the file; it asks for no script and no network, follows the
    reader's light or dark preference, and fits a phone.

    Args:
        run_folder: Folder that a run wrote. Whatever it holds is shown: `results.json` (verdict
            and tables), `ranks.json` and `history.json` (plots), `bench.json`, `plan.json` and
            `quantization.json` (a section each).

    Returns:
        The path of the report, `run_folder/report.html`.

    Raises:
        FileNotFoundError: If the folder is missing, or holds nothing but plots of a training
            that has not finished.
        ValueError: If a file in it isn't valid.
        OSError: If the folder can't be written.

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "results.json").write_text('{"title": "Digits"}')
    >>> write_report(folder).name
    'report.html'
    """
    run = load_run(run_folder)
    finished = (run.results, run.bench, run.plan, run.quantization)
    if all(part is None for part in finished):
        raise FileNotFoundError(
            f"`run_folder` must hold results.json. Received: run_folder={run.folder}, without "
            f"{run.folder / 'results.json'}. Let the run finish, or resume it with the command "
            "that started it."
        )
    path = run.folder / "report.html"
    write_text(path, _page(run))
    return path


def _page(run: RunData) -> str:
    results = run.results or {}
    title = clean_name(
        results.get("title") or ("DPRP measurements" if run.results is None else "DPRP run")
    )
    sections = [
        ("models", "Models", _comparison(models_table(results), _MODELS_NOTE)),
        ("files", "Files", _comparison(files_table(results), _files_note(results))),
        ("quantization", "Quantization", _quantization(run)),
        ("benchmarks", "Benchmarks", _benchmarks(run)),
        ("fold-plan", "Fold plan", _fold_plan(run)),
        ("plots", "Plots", _plots(run)),
        ("layers", "Layers", _layers(results)),
        ("skipped", "Skipped layers", _skipped(results)),
        ("settings", "Settings", _settings(results)),
        ("timing", "Timing", _timing(results)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    bodies = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">\n'
        f'<h2 id="{key}-title">{name}</h2>\n{body}\n</section>'
        for key, name, body in sections
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)} · report</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
{_origin(results)}
</header>
{_verdict(results) if run.results is not None else ""}
{contents}
{bodies}
</main>
</body>
</html>
"""


_NUMERIC = ' class="num"'
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MODELS_NOTE = (
    "Parameters and MACs are those of the folded network that is exported; the small figures "
    "are the change from the first row."
)


def _origin(results: Mapping[str, Any]) -> str:
    data = mapping(results, "data")
    said = []
    if data.get("name"):
        said.append(f"<strong>{_text(data['name'])}</strong>")
    counts = [
        f"{count_text(data[key])} {word}"
        for key, word in (("train", "training"), ("test", "test"))
        if not math.isnan(number(data.get(key)))
    ]
    if counts:
        said.append(" and ".join(counts) + " examples")
    if isinstance(data.get("image_shape"), list | tuple):
        said.append(f" {TIMES} ".join(_text(size) for size in data["image_shape"]))
    if not math.isnan(number(data.get("classes"))):
        said.append(f"{count_text(data['classes'])} classes")
    lines = [f"<p>{' · '.join(said)}</p>"] if said else []
    if results.get("created"):
        lines.append(f"<p>{_time(str(results['created']))}</p>")
    if results.get("command"):
        lines.append(f"<pre><code>{escape(str(results['command']))}</code></pre>")
    return "\n".join(lines)


def _time(created: str) -> str:
    moment = _moment(created)
    if moment == clean_name(created):
        return escape(moment)
    return f'<time datetime="{escape(created)}">{escape(moment)}</time>'


def _moment(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return clean_name(created)
    zone = "" if moment.tzinfo is None else f" {moment.tzname()}"
    return f"{moment:%Y-%m-%d}, {moment:%H:%M}{zone}"


def _verdict(results: Mapping[str, Any]) -> str:
    outcome = verdict(results)
    kind, word = {
        True: ("good", "Achieved"),
        False: ("missed", "Not achieved"),
        None: ("unknown", "No verdict"),
    }[outcome.achieved]
    checks = "".join(
        f'<li class="{"passed" if passed else "failed"}"><strong>{escape(name)}</strong> '
        f"{'passed' if passed else 'failed'}{f'<span>{escape(detail)}</span>' if detail else ''}"
        "</li>"
        for name, passed, detail in outcome.checks
    )
    return (
        f'<section class="verdict {kind}" aria-label="Verdict">\n'
        f'<p class="word">{word}</p>\n<p class="claim">{escape(outcome.text)}</p>\n'
        f"{f'<ul>{checks}</ul>' if checks else ''}\n{_tiles(results)}\n</section>"
    )


def _tiles(results: Mapping[str, Any]) -> str:
    """Show the DPRP model's main figures, each with its change, where a dense one is beside it."""
    tiles = []
    names = [model.get("name") for model in records(results, "models")]
    if "dense" in names and "dprp" in names:
        table = models_table(results)
        row = table.rows[1 + [name for name in names if name != "dense"].index("dprp")]
        for column, cell in zip(table.columns, row, strict=True):
            if column.title in ("Accuracy", "Parameters", "MACs"):
                tiles.append((column.title, cell))
    for files in files_by_format(results).values():
        if {"dense", "dprp"} <= {file.get("model") for file in files}:
            # The first format of the run stands for all; the table below has the others.
            table = files_table({**results, "files": files})
            row = table.rows[[file.get("model") for file in files].index("dprp")]
            for column, cell in zip(table.columns, row, strict=True):
                if column.title in ("Size", "Latency ratio") and cell.text != DASH:
                    tiles.append((f"{column.title.split()[0]}, {row[0].text}", cell))
            break
    return _tile_list(tiles)


def _tile_list(tiles: Sequence[tuple[str, Cell]]) -> str:
    shown = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{_cell_body(cell)}</dd></div>" for title, cell in tiles
    )
    return f'<dl class="tiles">{shown}</dl>' if shown else ""


def _comparison(table: ComparisonTable, note: str, group_rows: bool = False) -> str:
    """Lay a table out; its groups are named beside their rows, or in a row above them."""
    if not table.rows:
        return ""
    starts = [*(table.starts or (0,)), len(table.rows)]
    bodies = []
    for start, end in itertools.pairwise(starts):
        heading = _cell_body(table.rows[start][0])
        rows = []
        if group_rows:
            width = len(table.columns) - 1
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{width}">{heading}</th></tr>'
            )
        for index in range(start, end):
            cells = list(zip(table.columns, table.rows[index], strict=True))
            named = cells[1:2] if group_rows else cells[:1]
            # One heading spans the rows of a group.
            span = ""
            if table.starts and not group_rows:
                span = f' rowspan="{end - start}"' if end - start > 1 else ""
                named = named if index == start else []
            rows.append(
                "<tr>"
                + "".join(f'<th scope="row"{span}>{_cell_body(cell)}</th>' for _, cell in named)
                + "".join(
                    f"<td{_NUMERIC if column.numeric else ''}>{_cell_body(cell)}</td>"
                    for column, cell in cells[1 + group_rows :]
                )
                + "</tr>"
            )
        bodies.append("<tbody>" + "\n".join(rows) + "</tbody>")
    columns = table.columns[1:] if group_rows else table.columns
    return _table(table.title, [(column.title, column.numeric) for column in columns], bodies, note)


def _table(
    caption: str, columns: Sequence[tuple[str, bool]], bodies: Sequence[str], note: str = ""
) -> str:
    heads = "".join(
        f'<th scope="col"{_NUMERIC if numeric else ""}>{escape(title)}</th>'
        for title, numeric in columns
    )
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll card" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"{''.join(bodies)}</table></div>{said}"
    )


def _cell_body(cell: Cell) -> str:
    tone = f' class="{cell.tone}"' if cell.tone else ""
    if not cell.note:
        return f"<span{tone}>{escape(cell.text)}</span>" if cell.tone else escape(cell.text)
    return f"{escape(cell.text)}<small{tone}>{escape(cell.note)}</small>"


def _files_note(results: Mapping[str, Any]) -> str:
    titles = [column.title for column in files_table(results).columns]
    said = [
        (
            "Latency",
            "Latency is the median of one inference, below it the 10th to 90th percentile.",
        ),
        (
            "Latency ratio",
            "The ratio to the dense file of the same format comes from interleaved runs, with its "
            "interval; it can differ from the quotient of the medians.",
        ),
        (
            "Max. error",
            "Max. error is the largest difference of an output from the Keras model's, on real "
            "inputs.",
        ),
    ]
    return " ".join(text for title, text in said if title in titles)


def _quantization(run: RunData) -> str:
    table = quantization_table(run.quantization or [])
    titles = [column.title for column in table.columns]
    said = [f"Changes are from {table.rows[0][0].text}."] if len(table.rows) > 1 else []
    if "Compressed" in titles:
        said.append("Compressed is the size of the file in a zip archive.")
    if "Same top-1" in titles:
        said.append("Same top-1 is the share of test samples put into the first row's class.")
    return _comparison(table, " ".join(said))


def _benchmarks(run: RunData) -> str:
    bench = run.bench or {}
    table = bench_table(bench)
    titles = [column.title for column in table.columns]
    said = []
    if "Latency" in titles:
        said.append(
            "Latency is the median of one inference at batch 1, below it the 10th to 90th "
            "percentile."
        )
    if "Instructions (proxy)" in titles:
        said.append(
            "An emulated target counts the instructions of one inference, a proxy for time, which "
            "means nothing there."
        )
    if "Ratio" in titles:
        said.append(
            "The ratio to the first file comes from files timed in turns in one run, with its "
            "interval."
        )
    if "Accuracy" in titles:
        samples, data = count_text(bench.get("samples")), mapping(bench, "data")
        on = f" on {samples} test samples" if samples != DASH else ""
        of = f" of {clean_name(data['name'])}" if on and data.get("name") else ""
        said.append(f"Accuracy is that of the very file{on}{of}, whatever the target.")
    if bench.get("created"):
        said.append(f"Measured {_moment(str(bench['created']))}.")
    warnings = "".join(
        f"<li><strong>{escape(warning.kind)}:</strong> {escape(warning.advice)}"
        + "".join(
            f"<p>{escape(seen)} <span>{escape('; '.join(places))}</span></p>"
            for seen, places in warning.seen
        )
        + "</li>"
        for warning in bench_warnings(bench)
    )
    listed = f'<ul class="warnings" aria-label="Warnings">{warnings}</ul>' if warnings else ""
    return f"{listed}{_comparison(table, ' '.join(said), group_rows=True)}"


def _fold_plan(run: RunData) -> str:
    plan = run.plan or {}
    chosen, candidates = plan_table(plan), candidates_table(plan)
    notes = "".join(f"<li>{escape(note)}</li>" for note in plan_notes(plan))
    version = f"{plan.get('runtime') or ''} {plan.get('runtime_version') or ''}"
    said = (run_label(plan), plan.get("processor"), version, plan.get("precision"))
    about = " · ".join(_text(part) for part in said if part and clean_name(part)) if plan else ""
    return "\n".join(
        part
        for part in (
            f'<p class="about">{about}</p>' if about else "",
            _tile_list(plan_figures(plan)),
            f'<ul class="notes">{notes}</ul>' if notes else "",
            _comparison(chosen, "The cost of a layer is that of its form, measured alone."),
            _comparison(
                candidates,
                "Cost of each form measured, relative to the dense layer, with its interval; "
                "✓ marks the form chosen.",
            ),
        )
        if part
    )


def _plots(run: RunData) -> str:
    light, dark = (dict(run_figures(run, theme)) for theme in ("light", "dark"))
    figures = []
    for name, figure in light.items():
        title, caption = _CAPTIONS[name]
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        figures.append(
            f'<figure class="card" id="plot-{name}">\n<h3>{title}</h3>\n'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><picture>'
            f'<source media="(prefers-color-scheme: dark)" srcset="{_embedded(dark[name])}">'
            f'<img src="{_embedded(figure)}" alt="{escape(_alternative(name, run))}" '
            f'width="{width}" height="{height}"></picture></div>\n'
            f"<figcaption>{caption}</figcaption>\n</figure>"
        )
    return "\n".join(figures)


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _alternative(name: str, run: RunData) -> str:
    """Say in words what a plot shows."""
    if name == "tradeoff":
        count = len(records(run.results or {}, "files"))
        return f"Scatter plots of accuracy against latency and size of {count} files."
    if name == "bench":
        bench = run.bench or {}
        return (
            f"Scatter plots of accuracy against cost and size of {len(records(bench, 'files'))} "
            f"files in {len(records(bench, 'runs'))} runs."
        )
    if name == "training":
        ends = []
        for run_name, entries in mapping(run.history or {}, "runs").items():
            last = entries[-1] if entries else {}
            accuracy = number(last.get("val_accuracy", last.get("accuracy")))
            if not math.isnan(accuracy):
                ends.append(f"{model_label({'name': run_name})} {100 * accuracy:.2f} %")
        ended = f" Accuracy at the end: {', '.join(ends)}." if ends else ""
        return f"Line plots of losses and accuracy by epoch.{ended}"
    epochs = records(run.ranks or {}, "epochs")
    first, last = epochs[0], epochs[-1]
    spanned = f"{len(epochs) - 1} epochs"
    if name == "cost_by_epoch":
        return (
            f"Line plots over {spanned}: parameters from {count_text(first.get('parameters'))} to "
            f"{count_text(last.get('parameters'))}, MACs from {count_text(first.get('macs'))} to "
            f"{count_text(last.get('macs'))}, each beside the dense network."
        )
    if name == "ranks_by_layer":
        return (
            f"Paired bars of the rank of each layer before training and after {spanned}; the "
            f"total went from {count_text(first.get('total_rank'))} to "
            f"{count_text(last.get('total_rank'))}."
        )
    return f"Heat maps of the singular values of up to three layers over {spanned}."


def _layers(results: Mapping[str, Any]) -> str:
    layers = records(results, "layers")
    if not layers:
        return ""
    texts = [
        (title, key)
        for title, key in (("Type", "type"), ("Decomposition", "decomposition"), ("Form", "form"))
        if any(layer.get(key) is not None for layer in layers)
    ]
    rows = []
    for layer in layers:
        dense, folded = layer.get("dense_parameters"), layer.get("folded_parameters")
        rows.append(
            f'<tr><th scope="row"><code>{_text(layer.get("name", DASH))}</code></th>'
            + "".join(f"<td>{_text(_known(layer.get(key)))}</td>" for _, key in texts)
            + f'<td class="num">{_rank(layer)}</td><td class="num">{count_text(dense)}</td>'
            + f'<td class="num">{_cell_body(_changed(folded, dense))}</td></tr>'
        )
    sums = [
        sum(number(layer.get(key)) for layer in layers)
        for key in ("dense_parameters", "folded_parameters")
    ]
    total = ""
    if not any(math.isnan(value) for value in sums):
        total = (
            f'<tfoot><tr><th scope="row" colspan="{len(texts) + 2}">All factorized layers</th>'
            f'<td class="num">{count_text(sums[0])}</td>'
            f'<td class="num">{_cell_body(_changed(sums[1], sums[0]))}</td></tr></tfoot>'
        )
    columns = [
        ("Layer", False),
        *((title, False) for title, _ in texts),
        ("Rank of full rank", True),
        ("Dense parameters", True),
        ("Folded parameters", True),
    ]
    return _table("Layers", columns, ["<tbody>" + "\n".join(rows) + "</tbody>", total])


def _changed(value: Any, baseline: Any) -> Cell:
    note = change_text(value, baseline)
    return Cell(count_text(value), note, "worse" if note.startswith("+") else "better")


def _rank(layer: Mapping[str, Any]) -> str:
    pairs = [layer.get(key) for key in ("rank", "full_rank")]
    if all(isinstance(pair, list | tuple) for pair in pairs):
        return " of ".join(", ".join(map(count_text, pair or ())) for pair in pairs)
    rank, full = map(number, pairs)
    said = f"{count_text(rank)} of {count_text(full)}"
    if math.isnan(rank) or not full > 0:
        return said
    return f"{said}{_bar(rank / full)}"


def _bar(share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def _skipped(results: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row"><code>{_text(layer.get("name", DASH))}</code></th>'
        f"<td>{_text(_known(layer.get('reason')))}</td></tr>"
        for layer in records(results, "skipped")
    )
    if not rows:
        return ""
    columns = [("Layer", False), ("Why it was left as it is", False)]
    return _table("Skipped layers", columns, [f"<tbody>{rows}</tbody>"])


def _settings(results: Mapping[str, Any]) -> str:
    pairs = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(_setting(value))}</dd></div>"
        for key, value in mapping(results, "settings").items()
    )
    return f'<dl class="card settings">{pairs}</dl>' if pairs else ""


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _timing(results: Mapping[str, Any]) -> str:
    timing = mapping(results, "timing")
    longest = max((s for s in map(number, timing.values()) if s > 0), default=0.0)
    rows = "\n".join(
        f'<tr><th scope="row">{_text(label)}</th><td class="num">{duration_text(seconds)}'
        f"{_bar(number(seconds) / longest) if longest and number(seconds) >= 0 else ''}</td></tr>"
        for label, seconds in timing.items()
    )
    if not rows:
        return ""
    columns = [("Step", False), ("Wall-clock time", True)]
    return _table("Timing", columns, [f"<tbody>{rows}</tbody>"])


def _known(value: Any) -> Any:
    return DASH if value is None else value


def _text(value: Any) -> str:
    return escape(clean_name(value))
