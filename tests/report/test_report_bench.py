"""Benchmarks, fold plan and quantization in plots, tables and the page; inputs are synthetic."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from test_report_html import Page, _browser, report_of
from test_report_inputs import make_history, make_ranks, make_results, write_run

from dprp_tf.report import NothingToPlotError, bench_report, plot_bench, save_plots, write_report
from dprp_tf.report.bench_warnings import bench_warnings
from dprp_tf.report.loading import load_run
from dprp_tf.report.tables.benchmarks import bench_table
from dprp_tf.report.tables.fold_plan import plan_figures, plan_notes, plan_table
from dprp_tf.report.tables.measured_forms import measured_forms_table
from dprp_tf.report.tables.quantization import quantization_table

FILES = (
    ("dense_float32.tflite", 1_105_648, 0.9861, 1.0),
    ("dprp_float32.tflite", 652_300, 0.9833, 0.63),
    ("dense_int8.tflite", 312_240, 0.9833, 0.55),
    ("dprp_int8.tflite", 184_900, 0.9806, 0.44),
)
BUSY = (
    "Busy machine: other work kept 1.6 of 4 CPUs busy during a run of 1 thread. Stop what else "
    "runs there and measure again; ratios suffer less than times."
)
DRIFT = (
    "Thermal drift: the last third of the samples took 12 % longer than the first. Let the machine "
    "cool, or cool it better; ratios of files timed in turns stay fair."
)


def make_bench(with_accuracy: bool = True) -> dict[str, Any]:
    """Make `bench.json` of four files on two timed targets and an emulated one; none measured."""
    random.seed(5)
    runs: list[dict[str, Any]] = []
    for target, threads, milliseconds, processor in (
        ("local", 1, 0.412, "Example 3000 @ 2.10GHz"),
        ("local", 2, 0.268, "Example 3000 @ 2.10GHz"),
        ("ssh://pi@raspberrypi.local:22", 1, 3.71, "Cortex-A72"),
        ("qemu:cortex-a72", 1, None, "Cortex-A72"),
    ):
        results, ratios = [], []
        for position, (name, size, _, share) in enumerate(FILES):
            slow = share * random.uniform(0.96, 1.04) if position else 1.0
            result: dict[str, Any] = {
                "path": f"runs/demo/{name}",
                "target": target,
                "machine": {"architecture": "aarch64", "processor": processor, "cpus": 4},
                "runtime": "LiteRT",
                "runtime_version": "2.3.0",
                "threads": threads,
                "size_bytes": size,
                "warnings": [BUSY] if target == "local" else [],
            }
            if milliseconds is None:
                result |= {"median_ms": None, "instructions": round(9_412_345 * slow)}
            else:
                median = milliseconds * slow
                result |= {
                    "median_ms": median,
                    "p10_ms": median * 0.97,
                    "p90_ms": median * 1.08,
                    "instructions": None,
                    "peak_memory_bytes": 61_000_000 + size,
                    "cold_start_ms": 92.1 * slow,
                }
            results.append(result)
            ratios.append({"ratio": slow, "low": slow - 0.02, "high": slow + 0.02})
        runs.append(
            {
                "target": target,
                "threads": threads,
                "unit": "ms" if milliseconds else "instructions",
                "results": results,
                "ratios": ratios,
            }
        )
    runs[2]["results"][3]["warnings"] = [DRIFT]
    return {
        "created": "2025-11-21T12:00:00+00:00",
        "files": [
            {
                "path": f"runs/demo/{name}",
                "name": name,
                "size_bytes": size,
                "accuracy": accuracy if with_accuracy else None,
            }
            for name, size, accuracy, _ in FILES
        ],
        "runs": runs,
        "failures": [
            {"target": "adb://serial", "threads": 1, "message": "adb://serial: no such device."}
        ],
    }


def make_plan(layers: int = 6) -> dict[str, Any]:
    """Make `plan.json` as a planner writes it."""
    random.seed(2)
    rows = []
    for index in range(layers):
        dense = 0.02 * (1 + index)
        ratios = {"dense": 1.0, "summed": 0.5 + 0.1 * index, "concatenated": 0.45 + 0.13 * index}
        if index > 2:
            ratios["channel"] = 0.8
        form = min(ratios, key=lambda name: ratios[name])
        rows.append(
            {
                "name": f"stage{1 + index // 2}_block{index % 2}_conv1",
                "form": form,
                "ranks": [] if form == "dense" else [3],
                "dense_cost": dense,
                "cost": dense * ratios[form],
                "reason": f"{form} takes {ratios[form]:.2f} of the dense layer's time",
                "candidates": [
                    {
                        "form": name,
                        "ranks": [] if name == "dense" else [3],
                        "cost": dense * ratio,
                        "ratio": ratio,
                        "low": ratio - 0.02,
                        "high": ratio + 0.02,
                    }
                    for name, ratio in ratios.items()
                ],
            }
        )
    return {
        "version": 1,
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "processor": "Example 3000 @ 2.10GHz",
        "precision": "float32",
        "threads": 1,
        "target": "local",
        "dense_macs": 40_550_000,
        "planned_macs": 24_330_000,
        "unit": "ms",
        "layers": rows,
        "dense_cost": 0.52,
        "planned_cost_predicted": 0.33,
        "planned_cost_measured": 0.352,
        "ratio": {"ratio": 0.677, "low": 0.66, "high": 0.69},
        "notes": ["2 of 6 layers stay dense: no other form was faster beyond the noise."],
    }


def make_quantization() -> list[dict[str, Any]]:
    """Make `quantization.json`."""
    return [
        {
            "name": name,
            "accuracy": accuracy,
            "bytes": size,
            "compressed_bytes": zipped,
            "agreement": agreement,
        }
        for name, accuracy, size, zipped, agreement in (
            ("float32", 0.9833, 652_300, 604_000, 1.0),
            ("float16", 0.9833, 331_200, 301_000, 1.0),
            ("int8, post-training", 0.9806, 184_900, 151_200, 0.9944),
            ("int8, quantization-aware", 0.9861, 185_100, 152_800, 0.9917),
        )
    ]


def printed(bench: dict[str, Any], width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(bench_report(bench))
    return capture.get()


def test_the_table_has_every_file_on_every_target_beside_the_first() -> None:
    table = bench_table(make_bench())
    assert [column.title for column in table.columns] == [
        "Target",
        "File",
        "Latency",
        "Instructions (proxy)",
        "Ratio",
        "Size",
        "Accuracy",
        "Peak memory",
        "Cold start",
    ]
    assert table.starts == (0, 4, 8, 12)
    assert len(table.rows) == 16
    first, second = ([(cell.text, cell.note) for cell in row] for row in table.rows[:2])
    assert first[:5] == [
        ("local, 1 thread", "Example 3000 @ 2.10GHz, 4 CPUs"),
        ("dense_float32.tflite", "LiteRT 2.3.0"),
        ("0.412 ms", "0.400 to 0.445 ms"),
        ("\u2013", ""),
        ("1\u00d7", ""),
    ]
    assert second[5:7] == [("652 kB", "\u221241 %"), ("98.33 %", "\u22120.28 pt")]
    assert table.rows[1][4].tone == "better"
    emulated = table.rows[12]
    assert (emulated[2].text, emulated[3].text) == ("\u2013", "9.41 M")
    # Counts have no interval.
    assert table.rows[13][4].note == ""
    assert table.rows[13][4].text.endswith("\u00d7")


def test_columns_that_nothing_fills_are_left_out() -> None:
    bench = make_bench(with_accuracy=False)
    bench["runs"] = bench["runs"][3:]
    titles = [column.title for column in bench_table(bench).columns]
    assert titles == ["Target", "File", "Instructions (proxy)", "Ratio", "Size"]
    alone = make_bench()
    for run in alone["runs"]:
        run["results"], run["ratios"] = run["results"][:1], run["ratios"][:1]
    assert "Ratio" not in [column.title for column in bench_table(alone).columns]


def test_a_path_given_twice_has_two_rows() -> None:
    bench = make_bench()
    bench["files"][1] = dict(bench["files"][0])
    for run in bench["runs"]:
        run["results"][1]["path"] = run["results"][0]["path"]
    rows = bench_table(bench).rows
    assert rows[0][1] == rows[1][1]
    assert rows[0][2] != rows[1][2]


def test_a_warning_stands_once_with_every_place_it_concerns() -> None:
    failed, busy, drift = bench_warnings(make_bench())
    assert (failed.kind, failed.seen) == (
        "Not measured",
        (("adb://serial: no such device.", ("adb://serial, 1 thread",)),),
    )
    assert busy.kind == "Busy machine"
    assert busy.advice.startswith("Stop what else runs there")
    assert busy.seen == (
        (
            "other work kept 1.6 of 4 CPUs busy during a run of 1 thread",
            ("local, 1 thread", "local, 2 threads"),
        ),
    )
    # Only one of four files drifted: it is named.
    assert drift.seen[0][1] == ("dprp_int8.tflite on ssh://pi@raspberrypi.local:22, 1 thread",)


def test_warnings_of_one_kind_stand_together_with_their_range() -> None:
    bench = make_bench()
    for run in bench["runs"]:
        for result in run["results"]:
            result["warnings"] = []
    for position, share in enumerate((12, 8, 103, 9)):
        bench["runs"][1]["results"][position]["warnings"] = [DRIFT.replace("12 %", f"{share} %")]
    bench["runs"][2]["results"][3]["warnings"] = [DRIFT]
    bench["runs"][0]["results"][0]["warnings"] = ["no colon {here} 3"]
    failed, other, drift = bench_warnings(bench)
    assert failed.kind == "Not measured"
    assert (other.kind, other.seen) == (
        "Warning",
        (("no colon here 3", ("dense_float32.tflite on local, 1 thread",)),),
    )
    assert drift.seen == (
        (
            "the last third of the samples took 8 to 103 % longer than the first",
            (
                # Every file of this run, one file of that.
                "local, 2 threads",
                "dprp_int8.tflite on ssh://pi@raspberrypi.local:22, 1 thread",
            ),
        ),
    )


def test_sentences_that_differ_in_two_figures_stay_apart() -> None:
    bench = make_bench()
    for run, (limit, maximum) in zip(bench["runs"], ((600, "1,800"), (700, "1,500")), strict=False):
        for result in run["results"]:
            result["warnings"] = [f"Limited clock: held to {limit} of {maximum} MHz. Raise it."]
    (clock,) = (warning for warning in bench_warnings(bench) if warning.kind == "Limited clock")
    assert clock.seen == (
        ("held to 600 of 1,800 MHz", ("local, 1 thread",)),
        ("held to 700 of 1,500 MHz", ("local, 2 threads",)),
    )


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_shows_a_table_for_each_run_at_any_width(width: int) -> None:
    text = printed(make_bench(), width)
    assert max(map(len, text.splitlines())) <= width
    for said in ("local, 2 threads (Example 3000", "0.64\u00d7", "9.41 M", "98.06 %", "185 kB"):
        assert said in text
    assert ("Left out at this width: runtime, Cold start" in text) == (width == 80)
    flat = " ".join(text.split())
    assert "Busy machine: Stop what else runs there" in flat
    assert "(local, 1 thread; local, 2 threads)" in flat


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_plot_has_a_panel_for_each_run_and_one_for_size(theme: str) -> None:
    bench = make_bench()
    figure = plot_bench(bench, theme)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["local, 1 thread", "local, 2 threads"]
    assert titles[3:] == ["qemu:cortex-a72, 1 thread", "File size"]
    for axes, run in zip(figure.axes, bench["runs"], strict=False):
        key = "median_ms" if run["unit"] == "ms" else "instructions"
        drawn = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines]
        assert drawn == [
            (result[key], file["accuracy"])
            for result, file in zip(run["results"], bench["files"], strict=True)
        ]
        low, high = axes.get_xlim()
        assert all(low < x < high for x, _ in drawn)
    # One file has one colour and marker everywhere, and no two files share both.
    looks = [[(line.get_color(), line.get_marker()) for line in axes.lines] for axes in figure.axes]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0])) == len(FILES)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [name for name, *_ in FILES]


def test_the_bar_of_a_point_spans_the_percentiles() -> None:
    bench = make_bench()
    (bar,) = plot_bench({**bench, "runs": bench["runs"][:1]}).axes[0].collections[:1]
    result = bench["runs"][0]["results"][0]
    (start, end) = bar.get_segments()[0]
    assert (start[0], end[0]) == pytest.approx((result["p10_ms"], result["p90_ms"]))


def test_without_accuracies_the_height_is_the_size() -> None:
    figure = plot_bench(make_bench(with_accuracy=False))
    assert len(figure.axes) == 4
    assert [float(line.get_ydata()[0]) for line in figure.axes[0].lines] == [
        size for _, size, _, _ in FILES
    ]


def test_the_legend_stays_inside_the_picture_however_long_the_names() -> None:
    bench = make_bench()
    for index, file in enumerate(bench["files"]):
        file["name"] = f"experiment_{index}_" + "very_long_name_" * 4 + ".tflite"
    figure = plot_bench({**bench, "runs": bench["runs"][:1]})
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert whole.y0 <= box.y0 < box.y1 <= lowest


def test_nothing_measured_is_nothing_to_plot() -> None:
    with pytest.raises(NothingToPlotError, match="`bench`"):
        plot_bench({"files": [], "runs": []})
    with pytest.raises(NothingToPlotError, match="`bench`"):
        plot_bench({"files": [{"name": "a", "size_bytes": None}], "runs": []})


def test_a_plan_is_told_by_its_sums_its_layers_and_its_candidates() -> None:
    plan = make_plan()
    figures = {title: (cell.text, cell.note) for title, cell in plan_figures(plan)}
    assert figures == {
        "Dense, measured": ("0.520 ms", ""),
        "Planned, measured": ("0.352 ms", "\u221232 %"),
        "Planned, predicted": ("0.330 ms", "6.2 % below measured"),
        "Cost ratio": ("0.68\u00d7", "[0.66, 0.69]"),
        "MAC ratio": ("0.60\u00d7", ""),
    }
    layers = plan_table(plan)
    assert [column.title for column in layers.columns] == [
        "Layer",
        "Form",
        "Rank",
        "Dense",
        "Planned",
        "Reason",
    ]
    assert [cell.text for cell in layers.rows[0][:4]] == [
        "stage1_block0_conv1",
        "concatenated",
        "3",
        "0.0200 ms",
    ]
    candidates = measured_forms_table(plan)
    assert [column.title for column in candidates.columns][1:] == [
        "Dense",
        "Summed",
        "Concatenated",
        "Channel",
    ]
    for row, layer in zip(candidates.rows, plan["layers"], strict=True):
        marked = [
            column.title.lower()
            for column, cell in zip(candidates.columns, row, strict=True)
            if "\u2713" in cell.text
        ]
        assert marked == [layer["form"]]
    assert candidates.rows[0][4].text == "\u2013"
    assert plan_notes(plan) == plan["notes"]


def test_a_slower_and_underestimated_plan_says_so() -> None:
    plan = {**make_plan(), "planned_cost_measured": 0.6, "planned_cost_predicted": 0.75}
    cells = dict(plan_figures(plan))
    assert (cells["Planned, measured"].note, cells["Planned, measured"].tone) == ("+15 %", "worse")
    assert cells["Planned, predicted"].note == "25 % above measured"


def test_of_one_form_at_several_ranks_the_chosen_stands_in_the_table() -> None:
    layer = {
        "name": "conv",
        "form": "channel",
        "ranks": [4],
        "candidates": [
            {"form": "dense", "ranks": [], "ratio": 1.0},
            {"form": "channel", "ranks": [4], "ratio": 0.7},
            {"form": "channel", "ranks": [2], "ratio": 0.5},
            {"form": "separable", "ranks": [8], "ratio": 0.9},
            {"form": "separable", "ranks": [6], "ratio": 0.8},
        ],
    }
    (row,) = measured_forms_table({"layers": [layer]}).rows
    assert [cell.text for cell in row] == ["conv", "1\u00d7", "\u2713 0.70\u00d7", "0.80\u00d7"]


def test_a_plan_in_instructions_has_no_milliseconds() -> None:
    plan = {**make_plan(), "unit": "instructions", "dense_cost": 9_412_345}
    assert dict(plan_figures(plan))["Dense, measured"].text == "9.41 M"
    plan["layers"][0]["dense_cost"] = 1_200_000
    assert plan_table(plan).rows[0][3].text == "1.20 M"


@pytest.mark.parametrize(
    ("ranks", "said"),
    [([3], "3"), ([4, 8], "4 \u00d7 8"), ([], "\u2013"), (None, "\u2013"), (5, "5")],
)
def test_ranks_of_any_form_are_told(ranks: Any, said: str) -> None:
    layers = [{"name": "a", "ranks": ranks}, {"name": "b", "ranks": [1]}]
    assert plan_table({"layers": layers}).rows[0][1].text == said


def test_quantization_is_told_beside_the_first_row() -> None:
    table = quantization_table(make_quantization())
    assert [column.title for column in table.columns] == [
        "Quantization",
        "Size",
        "Compressed",
        "Accuracy",
        "Same top-1",
    ]
    assert [(cell.text, cell.note) for cell in table.rows[2]] == [
        ("int8, post-training", ""),
        ("185 kB", "\u221272 %"),
        ("151 kB", "\u221275 %"),
        ("98.06 %", "\u22120.27 pt"),
        ("99.44 %", ""),
    ]
    assert table.rows[3][3].tone == "better"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report_of(
        tmp_path_factory.mktemp("whole"),
        ranks=make_ranks(),
        history=make_history(),
        results=make_results(),
        bench=make_bench(),
        plan=make_plan(),
        quantization=make_quantization(),
    )


def test_the_page_gathers_everything_of_the_folder(whole: Page) -> None:
    links = [found["href"].removeprefix("#") for found in whole.find("a")]
    assert links[:6] == ["models", "files", "quantization", "benchmarks", "fold-plan", "plots"]
    identifiers = [found["id"] for _, found in whole.tags if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    assert set(links) <= set(identifiers)
    assert "plot-bench" in identifiers
    assert len(whole.find("img")) == 6


def test_the_benchmark_section_names_runs_above_their_files(whole: Page) -> None:
    heads, *rows = whole.tables["Benchmarks"]
    assert heads[0] == "File"
    assert len(rows) == 4 * (1 + len(FILES))
    assert rows[0] == ["local, 1 thread / Example 3000 @ 2.10GHz, 4 CPUs"]
    assert rows[1][:3] == [
        "dense_float32.tflite / LiteRT 2.3.0",
        "0.412 ms / 0.400 to 0.445 ms",
        "\u2013",
    ]
    assert all(len(row) in (1, len(heads)) for row in rows)
    assert {found["colspan"] for found in whole.find("th", scope="rowgroup")} == {str(len(heads))}
    assert "Busy machine: Stop what else runs there" in whole.text
    assert "local, 1 thread; local, 2 threads" in whole.text
    assert "Measured 2025-11-21, 12:00 UTC." in whole.text


def test_the_plan_and_quantization_sections_have_their_tables(whole: Page) -> None:
    assert len(whole.tables["Fold plan"]) == 1 + 6
    assert len(whole.tables["Forms measured"]) == 1 + 6
    assert "local, 1 thread \u00b7 Example 3000 @ 2.10GHz \u00b7 litert 2.3.0" in whole.text
    assert "2 of 6 layers stay dense" in whole.text
    assert [row[0] for row in whole.tables["Quantization"][1:]] == [
        row["name"] for row in make_quantization()
    ]


def test_a_folder_with_a_benchmark_alone_has_a_page_without_a_verdict(tmp_path: Path) -> None:
    page = report_of(tmp_path, bench=make_bench())
    assert page.title == "DPRP measurements \u00b7 report"
    assert "verdict" not in page.text.lower()
    assert [found["href"] for found in page.find("a")] == ["#benchmarks", "#plots"]
    for part, section in (("plan", "#fold-plan"), ("quantization", "#quantization")):
        value = make_plan() if part == "plan" else make_quantization()
        alone = report_of(tmp_path / part, **{part: value})
        assert [found["href"] for found in alone.find("a")] == [section]


def test_the_plots_of_a_folder_include_the_benchmark(tmp_path: Path) -> None:
    folder = write_run(tmp_path, bench=make_bench())
    assert [path.name for path in save_plots(folder)] == ["bench.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bench", "[]", r"bench\.json must hold a JSON object.*list"),
        ("plan", "{", r"plan\.json must hold valid JSON"),
        ("quantization", '{"rows": []}', r"`quantization\.json` must be a list of objects"),
        ("quantization", "[1]", r"`quantization\.json` must be a list of objects"),
        ("bench", '{"runs": 3}', "`runs` must be a list of objects"),
        ("plan", '{"layers": [], "ratio": 0.5}', "`ratio` must be an object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_run(tmp_path, results=make_results())
    (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


@pytest.mark.parametrize("null", [True, False])
def test_parts_that_are_absent_or_null_do_not_fail(null: bool) -> None:
    parts: dict[str, Any] = {
        "bench": make_bench(),
        "plan": make_plan(),
        "quantization": make_quantization(),
    }
    for name, whole_part in parts.items():
        for way in _ways(whole_part):
            part = copy.deepcopy(whole_part)
            place = part
            for step in way[:-1]:
                place = place[step]
            if null:
                place[way[-1]] = None
            else:
                del place[way[-1]]
            if name == "bench":
                bench_table(part)
                bench_warnings(part)
            elif name == "plan":
                measured_forms_table(part)
                plan_table(part)
                plan_figures(part)
                plan_notes(part)
            else:
                quantization_table(part)


def _ways(value: Any) -> list[tuple[Any, ...]]:
    """Where each kind of key stands: of a list's entries, in the last one only."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            found.append((key,))
            found += [(key, *way) for way in _ways(item)]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found += [(len(value) - 1, *way) for way in _ways(value[-1])]
    return found


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "</style><script>alert(1)</script><img src=x onerror='a()'>"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        if value in ("ms", "instructions"):
            return value
        return evil + value if isinstance(value, str) else value

    page = report_of(
        tmp_path,
        bench=poison(make_bench()),
        plan=poison(make_plan()),
        quantization=poison(make_quantization()),
    )
    assert page.find("script") == []
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.tables["Quantization"][1][0].startswith("</style><script>")


def test_figures_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    bench = make_bench()
    bench["runs"][0]["results"][0]["median_ms"] = math.nan
    bench["files"][0]["accuracy"] = math.inf
    folder = write_run(tmp_path, bench=json.loads(json.dumps(bench)))
    assert bench_table(load_run(folder).bench or {}).rows[0][2].text == "\u2013"
    write_report(folder)


def _chromium(page: Path, profile: Path, *options: str) -> str:
    browser = _browser()
    assert browser is not None
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            f"--user-data-dir={profile}",
            *options,
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    bench = make_bench()
    for run in bench["runs"]:
        run["target"] += "/with-a-rather-long-name-behind-it"
    write_run(folder, bench=bench, plan=make_plan(), quantization=make_quantization())
    return write_report(folder)


@pytest.mark.skipif(_browser() is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("width", [360, 400, 1280])
def test_in_a_browser_only_tables_and_plots_scroll(
    page_path: Path, tmp_path: Path, width: int
) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<iframe id="page" src="{page_path.as_uri()}" style="border: 0; width: {width}px;
        height: 800px"></iframe><p id="told"></p><script>
        window.onload = () => {{
          const page = document.getElementById("page").contentDocument;
          const cards = [...page.querySelectorAll(".scroll")];
          document.getElementById("told").textContent = JSON.stringify({{
            page: page.documentElement.scrollWidth,
            cards: cards.map((card) => card.clientWidth),
            hidden: [...page.querySelectorAll(".warnings p, .about, .tiles div")].filter(
              (part) => part.scrollWidth > part.clientWidth + 1).length,
          }});
        }};</script>""",
        encoding="utf-8",
    )
    text = _chromium(frame, tmp_path / "profile", "--dump-dom")
    told = json.loads(text.split('<p id="told">')[1].split("</p>")[0])
    assert told["page"] == width
    assert len(told["cards"]) == 5
    assert max(told["cards"]) < width
    assert told["hidden"] == 0


@pytest.mark.skipif(_browser() is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_warnings_and_tables_in_both_schemes(
    page_path: Path, tmp_path: Path, scheme: str
) -> None:
    picture_path = tmp_path / "page.png"
    _chromium(
        page_path,
        tmp_path / "profile",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--window-size=1000,1400",
        f"--screenshot={picture_path}",
    )
    with Image.open(picture_path) as picture:
        pixels = picture.convert("RGB")
    colours = {colour: count for count, colour in pixels.getcolors(maxcolors=1 << 24) or []}
    warning = {"light": (0xFF, 0xF4, 0xE0), "dark": (0x2B, 0x20, 0x10)}[scheme]
    card = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x16, 0x1B, 0x22)}[scheme]
    assert colours[warning] > 20_000
    assert colours[card] > 100_000
    assert len(colours) > 200
