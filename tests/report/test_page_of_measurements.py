"""Benchmarks, fold plan and quantization on the page; inputs are synthetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_runs import (
    FILES,
    make_bench,
    make_history,
    make_plan,
    make_quantization,
    make_ranks,
    make_results,
    write_run,
)
from page_reader import Page, browser, chromium, report_of
from PIL import Image

from dprp_tf.report import (
    write_report,
)
from dprp_tf.report.loading import load_run
from dprp_tf.report.tables import (
    bench_table,
)


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
    folder = write_run(tmp_path, bench=bench)
    assert bench_table(load_run(folder).bench or {}).rows[0][2].text == "\u2013"
    write_report(folder)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    bench = make_bench()
    for run in bench["runs"]:
        run["target"] += "/with-a-rather-long-name-behind-it"
    write_run(folder, bench=bench, plan=make_plan(), quantization=make_quantization())
    return write_report(folder)


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome on the path")
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
    text = chromium(frame, tmp_path / "profile", "--dump-dom")
    told = json.loads(text.split('<p id="told">')[1].split("</p>")[0])
    assert told["page"] == width
    assert len(told["cards"]) == 5
    assert max(told["cards"]) < width
    assert told["hidden"] == 0


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_warnings_and_tables_in_both_schemes(
    page_path: Path, tmp_path: Path, scheme: str
) -> None:
    picture_path = tmp_path / "page.png"
    chromium(
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


def test_what_makes_every_accuracy_doubtful_stands_first(tmp_path: Path) -> None:
    results, bench = make_results(), make_bench()
    for part, name in ((results, "trained"), (bench, "timed")):
        said = f"Test split: {name} has no test/ folder. Put images into test/<class>/."
        part["data"] = {**part.get("data", {}), "warnings": [said]}
    page = report_of(tmp_path, results=results, bench=bench)
    links = [found["href"].removeprefix("#") for found in page.find("a")]
    assert links[0] == "data"
    for name in ("trained", "timed"):
        assert f"{name} has no test/ folder" in page.text
    assert page.text.count("Put images into test/<class>/.") == 2
