"""A report's page as a parser and a browser read it."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from made_runs import (
    write_run,
)

from dprp_tf.report import (
    write_report,
)

VOID = {"meta", "img", "source", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collect tags, texts by section, table rows, and check that every tag is closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.stack: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.caption = ""
        self.text = ""
        self.title = ""
        self.feed(markup)
        self.close()
        assert self.stack == [], f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "caption":
            self.caption = ""
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")
        if tag == "small" and {"td", "th"} & set(self.stack):
            self.tables[self.caption][-1][-1] += " / "

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1:] == [tag], f"</{tag}> closes {self.stack[-1:]}"
        self.stack.pop()
        if tag == "caption":
            self.tables[self.caption] = []

    def handle_data(self, data: str) -> None:
        if "style" in self.stack:
            return
        if "title" in self.stack:
            self.title += data
        elif "caption" in self.stack:
            self.caption += data
        elif {"td", "th"} & set(self.stack):
            self.tables[self.caption][-1][-1] += data
        self.text += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(k.strip("_")) == v for k, v in attributes.items())
        ]


def report_of(folder: Path, **parts: Any) -> Page:
    path = write_report(write_run(folder / "run", **parts))
    assert path == folder / "run" / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def browser() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    return None


def chromium(page: Path, profile: Path, *options: str) -> str:
    program = browser()
    assert program is not None
    done = subprocess.run(
        [
            program,
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
