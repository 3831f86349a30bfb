"""One HTML file that says what a run achieved, readable anywhere and without a network."""

from __future__ import annotations

import os
from pathlib import Path

from dprp_tf.files.atomic import LONGEST_WRITING, remove_leftovers, write_text
from dprp_tf.files.extras import require
from dprp_tf.report.contents import PageContents, page_contents
from dprp_tf.report.loading import load_run
from dprp_tf.report.theme import THEMES

__all__ = ["write_report"]


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write `report.html`: verdict, tables and plots of a run in one self-contained file.

    Images and styles are inside the file; it asks for no script and no network, follows the
    reader's light or dark preference, and fits a phone.

    Args:
        run_folder: Folder that a run wrote. Whatever it holds is shown: `results.json` (verdict
            and tables), `selection.json` (the same of a selection), `ranks.json` and
            `history.json` (plots), `rank_plan.json`, `channel_plan.json`, `joint_plan.json`,
            `bench.json`, `plan.json` and `quantization.json` (a section each).

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
    chosen = run.plan_of_selection or None
    finished = (run.results, run.selection, chosen, run.bench, run.plan, run.quantization)
    if all(part is None for part in finished):
        raise FileNotFoundError(
            f"`run_folder` must hold results.json. Received: run_folder={run.folder}, without "
            f"{run.folder / 'results.json'}. Let the run finish, or resume it with the command "
            "that started it."
        )
    path = run.folder / "report.html"
    remove_leftovers(run.folder, of=path.stem, unchanged_for=LONGEST_WRITING)
    write_text(path, _markup(page_contents(run)))
    return path


def _markup(page: PageContents) -> str:
    require("jinja2", extra="report", feature="A report's page")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Names in a run are anyone's: the templates escape every text, and mark none as safe.
    templates = Environment(
        loader=PackageLoader("dprp_tf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = templates.get_template("page.html")
    return template.render(page=page, light=THEMES["light"], dark=THEMES["dark"])
