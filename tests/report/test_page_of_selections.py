"""The page of a selection's folder, read back; inputs are synthetic."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page

from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.report import save_plots, write_report

PLAN = RankPlan(
    method="activation",
    decomposition="channel",
    truncation="output",
    budget={"parameters": 0.4, "macs": 0.6, "tolerance": 0.01},
    layers=(
        PlannedRanks("<b>first</b>", "channel", (3, 3, 4, 8), (8,), (2,), 0.125, 88, 288),
        PlannedRanks("kept", "channel", (1, 1, 8, 8), (8,), None, 0.0, 64, 64),
    ),
    cost={"parameters": 160.0, "macs": 4000.0, "milliseconds": 0.25},
    dense={"parameters": 400.0, "macs": 8000.0, "milliseconds": 1.0},
)
SELECTION: dict[str, Any] = {
    "settings": {"budget": {"parameters": 0.4, "macs": 0.6}, "method": "activation", "seed": 0},
    "data": {"name": "garments", "classes": 10, "train": 3000, "test": 4000},
    "shares": PLAN.shares,
    "accuracy": {"dense": 0.8, "cut": 0.7, "tuned": 0.79},
}

CHANNELS = ChannelPlan(
    method="activation",
    multiple=8,
    budget={"macs": 0.5},
    groups=(
        PlannedChannels("<i>stem</i>", 32, 24, 0.125, {"<i>stem</i>": tuple(range(8))}),
        PlannedChannels("whole", 16, 16, 0.0, {}),
    ),
    cost={"parameters": 300.0, "macs": 6000.0},
    dense={"parameters": 400.0, "macs": 8000.0},
)
JOINT = JointPlan("outputs", CHANNELS, PLAN, {"macs": 0.5}, {"macs": 4000.0}, {"macs": 8000.0})


def _write(folder: Path, **parts: Any) -> Path:
    folder.mkdir()
    for name, value in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def _page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_has_accuracies_costs_plan_and_picture(tmp_path: Path) -> None:
    folder = _write(tmp_path / "run", selection=SELECTION, rank_plan=PLAN.as_dict())
    (folder / "candidates.jsonl").write_text("heading\nfirst\nsecond\ntorn")
    page = _page(folder)
    assert page.title == "Selected ranks on garments · report"
    assert page.tables["Models"] == [
        ["Model", "Accuracy", "Parameters", "MACs"],
        ["Dense", "80.00 %", "400", "8,000"],
        [
            "Cut, not fine-tuned",
            "70.00 % / \u221210.00 pt",
            "160 / \u221260 %",
            "4,000 / \u221250 %",
        ],
        ["Cut and fine-tuned", "79.00 % / \u22121.00 pt", "160 / \u221260 %", "4,000 / \u221250 %"],
    ]
    assert page.tables["Rank plan"] == [
        [
            *("Layer", "Decomposition", "Rank of full rank", "Energy lost"),
            *("Dense weights", "Chosen weights"),
        ],
        ["<b>first</b>", "channel", "2 of 8", "12.50 %", "288", "88 / \u221269 %"],
        ["kept", "stays dense", "\u2013", "\u2013", "64", "64 / ±0 %"],
        ["Together", "352", "152 / \u221257 %"],
    ]
    told = "activation · channel · asked: parameters 0.4, macs 0.6 · 2 candidates evaluated"
    assert told in page.text
    assert [figure["id"] for figure in page.find("figure")] == ["plot-rank_plan"]
    (image,) = page.find("img")
    assert image["alt"] == "1 of 2 layers are cut; kernel weights from 352 to 152."
    # What came out is shown large: the fine-tuned model, then what the plan predicts.
    assert len(page.find("dl", class_="tiles")) == 2
    assert page.text.index("79.00 %") < page.text.index("Cut, not fine-tuned")
    assert "0.25" in page.text
    assert "verdict" not in {found.get("class") for found in page.find("section")}
    assert [path.name for path in save_plots(folder)] == ["rank_plan.png"]


def test_channels_have_a_section_and_a_picture_of_their_own(tmp_path: Path) -> None:
    selection = {**SELECTION, "settings": {"cut": "channels", "method": "activation"}}
    folder = _write(tmp_path / "run", selection=selection, channel_plan=CHANNELS.as_dict())
    (folder / "candidates.jsonl").write_text("heading\n")
    page = _page(folder)
    assert page.title == "Selected channels on garments · report"
    assert page.tables["Models"][2][2:] == ["300 / \u221225 %", "6,000 / \u221225 %"]
    assert page.tables["Channel plan"] == [
        ["Group", "Filters go from", "Lost", "Channels", "Kept"],
        ["<i>stem</i>", "<i>stem</i>", "12.50 %", "32", "24 / \u221225 %"],
        ["whole", "\u2013", "\u2013", "16", "16 / ±0 %"],
        ["Together", "48", "40 / \u221217 %"],
    ]
    assert "activation · in multiples of 8 · asked: macs 0.5" in page.text
    (image,) = page.find("img")
    assert image["alt"] == "1 of 2 groups lose channels; channels from 48 to 40."
    assert [path.name for path in save_plots(folder)] == ["channel_plan.png"]
    assert "Rank plan" not in page.text


def test_channels_and_ranks_are_one_section_with_a_picture_each(tmp_path: Path) -> None:
    selection = {**SELECTION, "settings": {"cut": "both", "method": "outputs"}}
    folder = _write(tmp_path / "run", selection=selection, joint_plan=JOINT.as_dict())
    page = _page(folder)
    assert page.title == "Selected channels and ranks on garments · report"
    assert set(page.tables) == {"Models", "Channel plan", "Rank plan"}
    # What both cost together, beside the whole model.
    assert page.tables["Models"][2][-1] == "4,000 / \u221250 %"
    told = "outputs · channels in multiples of 8 · channel ranks · asked: macs 0.5"
    assert told in page.text
    assert "without the channels that go" in page.text
    assert [figure["id"] for figure in page.find("figure")] == [
        "plot-channel_plan",
        "plot-rank_plan",
    ]
    assert {entry["id"] for entry in page.find("section") if "id" in entry} >= {"joint-plan"}
    names = [path.name for path in save_plots(folder)]
    assert names == ["channel_plan.png", "rank_plan.png"]


def test_one_kind_alone_is_said_where_both_were_asked_for(tmp_path: Path) -> None:
    dense = replace(PLAN, layers=())
    page = _page(_write(tmp_path / "channels", joint_plan=replace(JOINT, ranks=dense).as_dict()))
    assert "Every layer stays dense: channels alone change the outputs least" in page.text
    assert set(page.tables) == {"Channel plan"}
    assert [figure["id"] for figure in page.find("figure")] == ["plot-channel_plan"]
    whole = replace(CHANNELS, groups=CHANNELS.groups[1:])
    page = _page(_write(tmp_path / "ranks", joint_plan=replace(JOINT, channels=whole).as_dict()))
    assert "Every channel stays: ranks alone change the outputs least" in page.text


def test_what_was_learned_says_so(tmp_path: Path) -> None:
    rounds = ({"steps": 300, "loss": 0.5, "spent": 1.2}, {"steps": 600, "loss": 0.4, "spent": 1.01})
    learned = replace(JOINT, method="less", ranks=replace(PLAN, history=rounds))
    page = _page(_write(tmp_path / "both", joint_plan=learned.as_dict()))
    assert "Learned in 600 steps, at whose end the cost was 1.01 of the budget" in page.text
    assert "alone" not in page.text
    dense = replace(learned, ranks=replace(PLAN, layers=(), history=rounds))
    page = _page(_write(tmp_path / "channels", joint_plan=dense.as_dict()))
    assert "Every layer stays dense: channels alone are what was learned." in page.text


def test_files_are_shown_where_there_are_some(tmp_path: Path) -> None:
    files = [
        {"model": model, "format": "TFLite int8", "file": f"{model}.tflite", "size_bytes": size}
        for model, size in (("dense", 300_000), ("tuned", 120_000))
    ]
    selection = {**SELECTION, "files": files}
    page = _page(_write(tmp_path / "run", selection=selection, rank_plan=PLAN.as_dict()))
    assert page.tables["Files"][1:] == [
        ["TFLite int8", "Dense / dense.tflite", "300 kB"],
        ["Cut and fine-tuned / tuned.tflite", "120 kB / \u221260 %"],
    ]
    assert "Size, TFLite int8" in page.text


def test_what_is_not_there_yet_is_left_out(tmp_path: Path) -> None:
    page = _page(_write(tmp_path / "searched", rank_plan=PLAN.as_dict()))
    assert set(page.tables) == {"Rank plan"}
    page = _page(_write(tmp_path / "without a plan", selection=SELECTION))
    assert set(page.tables) == {"Models"}
    assert page.tables["Models"][0] == ["Model", "Accuracy"]


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    damaged = {**PLAN.as_dict(), "truncation": "sideways"}
    with pytest.raises(ValueError, match="A rank plan must have"):
        write_report(_write(tmp_path / "run", selection=SELECTION, rank_plan=damaged))
    with pytest.raises(ValueError, match="It must be a channel plan of version 1"):
        write_report(_write(tmp_path / "wide", channel_plan={**CHANNELS.as_dict(), "groups": 3}))
    with pytest.raises(ValueError, match="It must be a joint plan of version 1"):
        write_report(_write(tmp_path / "both", joint_plan={"version": 7}))


def test_what_a_killed_report_left_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = _write(tmp_path / "run", rank_plan=PLAN.as_dict(), selection=SELECTION)
    plots, token = folder / "plots", "0123abcd" * 4
    plots.mkdir()
    left = [plots / f".rank_plan.{token}.png", folder / f".report.{token}.html"]
    # What another process may be writing now, a model that takes long, and a person's own.
    kept = [
        *(path.with_name(path.name.replace("0", "f")) for path in left),
        folder / f".model.{token}.keras",
        plots / ".notes.png",
    ]
    for path in (*left, *kept):
        path.write_text("half")
    for path in (*left, *kept[2:]):
        os.utime(path, (0, 0))
    save_plots(folder)
    write_report(folder)
    assert [path.exists() for path in left] == [False, False]
    assert all(path.exists() for path in kept)
