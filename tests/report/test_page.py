"""The page of a run, read back with a parser and looked at by a browser; inputs are synthetic."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_runs import (
    make_history,
    make_ranks,
    make_results,
    write_run,
)
from page_reader import Page, browser, chromium, report_of
from PIL import Image

from dprp_tf.report import (
    write_report,
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder, ranks=make_ranks(), history=make_history(), results=make_results())
    return write_report(folder)


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> Page:
    return Page(whole_run.read_text(encoding="utf-8"))


def test_the_verdict_comes_first_and_is_green(whole: Page) -> None:
    assert whole.find("section")[0]["class"] == "verdict good"
    assert whole.text.index("Achieved") < whole.text.index("Models")
    assert "The DPRP file is 41 % smaller and takes 0.63 times" in whole.text
    assert len(whole.find("li", class_="passed")) == 3
    assert whole.title == "DPRP on handwritten digits · report"


def test_the_models_table_has_each_figure_beside_the_baseline(whole: Page) -> None:
    assert whole.tables["Models"] == [
        ["Model", "Accuracy", "Parameters", "MACs", "Parameters while training"],
        ["Dense", "98.61 %", "272,474", "40,550,000", "\u2013"],
        [
            "DPRP",
            "98.33 % / \u22120.28 pt",
            "160,760 / \u221241 %",
            "23,900,000 / \u221241 %",
            "171,020",
        ],
    ]


def test_the_files_table_has_every_file(whole: Page) -> None:
    heads, *rows = whole.tables["Files"]
    assert heads[:6] == ["Format", "Model", "Size", "Accuracy", "Latency", "Latency ratio"]
    assert len(rows) == 10
    assert rows[0] == [
        "TFLite float32",
        "Dense / dense_float32.tflite",
        "1.11 MB",
        "98.61 %",
        "0.412 ms / 0.400 to 0.445 ms",
        "1\u00d7",
        "4.20 MB",
        "3.1e\u221207 / verified",
        "100.00 %",
    ]
    # The format spans both rows, so the second has no cell of its own for it.
    assert rows[1][:5] == [
        "DPRP / dprp_float32.tflite",
        "652 kB / \u221241 %",
        "98.33 % / \u22120.28 pt",
        "0.260 ms / 0.252 to 0.280 ms",
        "0.63\u00d7 / [0.60, 0.66]",
    ]
    assert len(whole.find("th", rowspan="2")) == 5


def test_the_layers_table_shows_ranks_and_their_bars(whole: Page) -> None:
    results = make_results()
    heads, *rows, total = whole.tables["Layers"]
    assert heads[4] == "Rank of full rank"
    for row, layer in zip(rows, results["layers"], strict=True):
        assert row[0] == layer["name"]
        assert row[4] == f"{layer['rank']} of {layer['full_rank']}"
    widths = [found["style"] for found in whole.find("i")][: len(rows)]
    assert widths == [
        f"width:{100 * layer['rank'] / layer['full_rank']:.1f}%" for layer in results["layers"]
    ]
    assert total[0] == "All factorized layers"
    assert total[1] == f"{sum(layer['dense_parameters'] for layer in results['layers']):,}"


def test_skipped_layers_settings_and_timing_are_there(whole: Page) -> None:
    assert whole.tables["Skipped layers"][1:] == [
        ["stage2_shortcut", "1x1 kernel: no spatial matrix to factorize"],
        ["classifier", "no rank saves parameters"],
    ]
    assert ["DPRP training", "1 min 2 s"] in whole.tables["Timing"]
    assert "compression_weight" in whole.text
    assert "dprp demo --epochs 20 --seed 1" in whole.text
    assert "1,437 training and 360 test examples" in whole.text
    assert "8 \u00d7 8 \u00d7 1" in whole.text
    assert "2025-11-21, 11:40 UTC" in whole.text


def test_the_page_needs_nothing_from_outside(whole: Page) -> None:
    names = {name for name, _ in whole.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in whole.tags:
        for name in ("src", "srcset", "href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    policy = whole.find("meta", http_equiv="x") or [
        found for found in whole.find("meta") if "http-equiv" in found
    ]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_every_plot_is_a_picture_in_light_and_dark_with_words(whole: Page) -> None:
    images, sources = whole.find("img"), whole.find("source")
    assert len(images) == len(sources) == 5
    assert len({image["alt"] for image in images}) == 5
    assert "parameters from 274,300 to" in " ".join(image["alt"] for image in images)
    for image, source in zip(images, sources, strict=True):
        assert source["media"] == "(prefers-color-scheme: dark)"
        corners = []
        for data in (image["src"], source["srcset"]):
            raw = base64.b64decode(data.removeprefix("data:image/png;base64,"))
            with Image.open(io.BytesIO(raw)) as picture:
                ratio = picture.width / picture.height
                corners.append(picture.convert("RGB").getpixel((0, 0)))
        assert corners == [(255, 255, 255), (0x16, 0x1B, 0x22)]
        assert ratio == pytest.approx(int(image["width"]) / int(image["height"]), rel=0.01)


def test_headings_links_and_table_regions_fit_together(whole: Page) -> None:
    identifiers = [found["id"] for _, found in whole.tags if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    links = [found["href"].removeprefix("#") for found in whole.find("a")]
    assert set(links) <= set(identifiers)
    assert links == ["models", "files", "plots", "layers", "skipped", "settings", "timing"]
    assert all(found["scope"] in ("row", "col") for found in whole.find("th"))


def test_a_missed_goal_is_amber_and_names_the_check(tmp_path: Path) -> None:
    page = report_of(tmp_path, results=make_results(achieved=False))
    assert page.find("section")[0]["class"] == "verdict missed"
    assert re.search(r"Not achieved\s+The DPRP file is smaller, but it is not faster", page.text)
    assert len(page.find("li", class_="failed")) == 1
    assert "Faster failed" in page.text


def test_each_model_that_is_judged_has_its_figures_in_its_format(tmp_path: Path) -> None:
    results = make_results()
    results["models"].append({"name": "cut", "label": "Cut", "accuracy": 0.9, "parameters": 99})
    results["files"].append(
        {"model": "cut", "format": "TFLite int8", "size_bytes": 31_224, "latency_ratio": 0.44}
    )
    results["headline"]["outcomes"] = [
        {"model": "dprp", "format": "TFLite float32"},
        {"model": "cut", "format": "TFLite int8"},
    ]
    page = report_of(tmp_path, results=results)
    verdict = page.text[page.text.index("Achieved") : page.text.index("Models")]
    first, second = verdict.split("DPRP", 2)[-1].split("Cut")
    assert "Latency, TFLite float32" in first
    assert "0.63" in first
    assert "Size, TFLite int8" in second
    assert "31.2 kB" in second
    assert "0.44" in second
    assert "float32" not in second
    # Of a model that the run does not hold there is nothing to show.
    results["headline"]["outcomes"][1]["model"] = "nobody"
    page = report_of(tmp_path / "nobody", results=results)
    assert len(page.find("dl", class_="tiles")) == 1


def test_without_a_verdict_the_figures_and_notes_stand_alone(tmp_path: Path) -> None:
    results = make_results()
    del results["headline"]
    notes = ["Nothing was cut.", "No file was timed: dprp bench <folder>"]
    page = report_of(tmp_path, results={**results, "notes": notes})
    assert "verdict" not in page.find("section")[0].get("class", "")
    assert "No verdict" not in page.text
    assert page.find("section")[0]["aria-label"] == "Result"
    assert len(page.find("dl", class_="tiles")) == 1
    assert page.text.index("Nothing was cut.") < page.text.index("Skipped layers")
    assert "No file was timed: dprp bench <folder>" in page.text
    with pytest.raises(ValueError, match="`notes` must be a list of texts"):
        report_of(tmp_path / "bad", results={**results, "notes": [3]})


def test_everything_optional_can_be_absent(tmp_path: Path) -> None:
    page = report_of(tmp_path, results={})
    assert page.find("section") == []
    assert page.tables == {}
    assert page.find("img") == []
    assert page.title == "DPRP run · report"


@pytest.mark.parametrize("key", sorted(make_results()))
def test_any_one_key_can_be_absent_or_null(tmp_path: Path, key: str) -> None:
    results = make_results()
    del results[key]
    report_of(tmp_path / "absent", results=results)
    report_of(tmp_path / "null", results={**results, key: None})


def test_entries_without_their_keys_do_not_fail(tmp_path: Path) -> None:
    page = report_of(
        tmp_path,
        results={
            "headline": {"achieved": True, "checks": [{}]},
            "models": [{}, {"name": "dprp", "accuracy": None}],
            "files": [{}, {"model": "dprp", "format": "ONNX", "latency_ms": None}],
            "layers": [{}, {"name": "a", "rank": 3}],
            "skipped": [{}],
            "settings": {"list": [1, 2], "none": None, "flag": True},
            "timing": {"unknown": None, "known": 2},
            "data": {"name": "digits"},
            "created": "yesterday",
        },
        ranks={"epochs": [{}]},
        history={"runs": {"dense": [], "dprp": [{}]}},
    )
    assert "yesterday" in page.text
    assert "[1, 2]" in page.text
    assert page.tables["Timing"][1:] == [["unknown", "\u2013"], ["known", "2.0 s"]]


def test_a_run_without_dprp_and_with_lost_epochs(tmp_path: Path) -> None:
    history = make_history(3, dprp=False)
    history["runs"]["dense"][1]["loss"] = math.nan
    results = make_results()
    for key in ("models", "files"):
        name = "name" if key == "models" else "model"
        results[key] = [item for item in results[key] if item[name] == "dense"]
    page = report_of(tmp_path, results=results, history=history)
    assert len(page.tables["Models"]) == 2
    assert len(page.tables["Files"]) == 1 + 5
    assert page.find("dl", class_="tiles") == []
    assert [figure["id"] for figure in page.find("figure")] == ["plot-tradeoff", "plot-training"]


def test_sixty_layers_are_all_listed(tmp_path: Path) -> None:
    page = report_of(tmp_path, results=make_results(layers=60), ranks=make_ranks(60, epochs=1))
    assert len(page.tables["Layers"]) == 1 + 60 + 1


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "</style><script>alert(1)</script><img src=x onerror='a()'>\"&"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key if key in KEYS else f"{evil}{key}": poison(item) for key, item in value.items()
            }
        if isinstance(value, list):
            return [poison(item) for item in value]
        if value in ("dense", "dprp"):
            return value
        return evil + value if isinstance(value, str) else value

    ranks, results = make_ranks(3, epochs=1), make_results()
    KEYS = set(results) | set(ranks) | {"epoch", "ranks", "singular_values", "total_rank", "macs"}
    KEYS |= {key for part in ("models", "files", "layers", "skipped") for key in results[part][0]}
    KEYS |= {"achieved", "text", "checks", "passed", "detail", "classes", "train", "test"}
    KEYS |= {"image_shape", "median", "p10", "p90"}
    page = report_of(tmp_path, results=poison(results), ranks=poison(ranks))
    assert page.find("script") == []
    assert all(image["src"].startswith("data:") for image in page.find("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    # Shown as text, not swallowed.
    assert page.title.startswith("</style><script>alert(1)</script>")
    assert page.tables["Layers"][1][0].startswith("</style><script>")
    assert page.tables["Skipped layers"][1][1].startswith("</style><script>")


def test_missing_results_are_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.json.*resume"):
        write_report(write_run(tmp_path / "run", ranks=make_ranks(2)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", results=make_results())
    path = write_report(run)
    before = path.read_bytes()
    (run / "results.json").write_text('{"models": 3}')
    with pytest.raises(ValueError, match="`models` must be a list"):
        write_report(run)
    assert path.read_bytes() == before
    assert sorted(item.name for item in run.iterdir()) == ["report.html", "results.json"]


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_report(whole_run: Path, tmp_path: Path, scheme: str) -> None:
    picture_path = tmp_path / "page.png"
    chromium(
        whole_run,
        tmp_path / "profile",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--window-size=1000,1600",
        f"--screenshot={picture_path}",
    )
    with Image.open(picture_path) as picture:
        assert picture.size == (1000, 1600)
        pixels = picture.convert("RGB")
    page = {"light": (0xF4, 0xF6, 0xF8), "dark": (0x0D, 0x11, 0x17)}[scheme]
    verdict = {"light": (0xE9, 0xF7, 0xEE), "dark": (0x10, 0x25, 0x1A)}[scheme]
    colours = {colour: count for count, colour in pixels.getcolors(maxcolors=1 << 24) or []}
    assert pixels.getpixel((2, 2)) == page
    assert colours[verdict] > 20_000
    # Text and pictures, not an empty sheet: hundreds of shades, and much that is not background.
    assert len(colours) > 200
    assert colours[page] < 0.7 * 1000 * 1600
