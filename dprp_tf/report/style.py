"""The style sheet of the HTML report; its colours are those of the plots."""

from __future__ import annotations

from dprp_tf.report.theme import THEMES

__all__ = ["STYLE"]

_LIGHT, _DARK = THEMES["light"], THEMES["dark"]

STYLE = f"""
:root {{
  color-scheme: light dark;
  --page: #f4f6f8; --card: {_LIGHT.background}; --text: {_LIGHT.text}; --muted: {_LIGHT.muted};
  --line: {_LIGHT.grid}; --accent: {_LIGHT.dprp}; --track: {_LIGHT.removed};
  --good: #116b36; --good-page: #e9f7ee; --missed: #8a4b00; --missed-page: #fff4e0;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #0d1117; --card: {_DARK.background}; --text: {_DARK.text}; --muted: {_DARK.muted};
    --line: {_DARK.grid}; --accent: {_DARK.dprp}; --track: {_DARK.removed};
    --good: #5fd38a; --good-page: #10251a; --missed: #f0b45a; --missed-page: #2b2010;
  }}
}}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}}
main {{ max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.75rem 0 .75rem; }}
h3 {{ font-size: 1rem; margin: 0 0 .75rem; }}
header p {{ margin: .1rem 0; color: var(--muted); }}
header strong {{ color: var(--text); font-weight: 600; }}
code, pre {{ font-family: ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; }}
code {{ font-size: .92em; overflow-wrap: anywhere; }}
pre {{
  margin: .75rem 0 0; padding: .6rem .9rem; background: var(--card); color: var(--text);
  border: 1px solid var(--line); border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .9rem;
}}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; }}
.scroll {{ overflow-x: auto; }}
.scroll:focus-visible, a:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
.note, figcaption {{
  color: var(--muted); font-size: .875rem; margin: .6rem 0 0; max-width: 52rem;
}}
.better {{ color: var(--good); }}
.worse {{ color: var(--missed); font-weight: 600; }}

.verdict {{
  margin: 1.75rem 0 0; padding: 1.25rem 1.5rem; border-radius: 10px;
  border: 1px solid var(--line); border-left: 6px solid var(--muted); background: var(--card);
}}
.verdict.good {{ border-left-color: var(--good); background: var(--good-page); }}
.verdict.missed {{ border-left-color: var(--missed); background: var(--missed-page); }}
.verdict .word {{ margin: 0; font-weight: 700; color: var(--muted); }}
.verdict.good .word {{ color: var(--good); }}
.verdict.missed .word {{ color: var(--missed); }}
.verdict .claim {{ margin: .15rem 0 0; font-size: 1.2rem; line-height: 1.4; max-width: 56rem; }}
.verdict ul {{ list-style: none; margin: 1rem 0 0; padding: 0; display: grid; gap: .3rem; }}
.verdict li {{ padding-left: 1.6rem; position: relative; }}
.verdict li::before {{ position: absolute; left: 0; font-weight: 700; }}
.verdict li.passed::before {{ content: "✓" / ""; color: var(--good); }}
.verdict li.failed::before {{ content: "✗" / ""; color: var(--missed); }}
.verdict li.failed {{ font-weight: 600; }}
.verdict li span {{ color: var(--muted); font-weight: 400; }}
.verdict li span::before {{ content: " · "; }}
.tiles {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 0;
}}
.tiles div {{
  padding: .7rem .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}}
.tiles dt {{ color: var(--muted); font-size: .85rem; }}
.tiles dd {{ margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }}
.tiles small {{ display: block; font-size: .875rem; font-weight: 500; }}

nav ul {{
  display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: 1.5rem 0 0; font-size: .95rem;
}}
a {{ color: var(--accent); }}

table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
caption {{
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}}
th, td {{
  padding: .55rem .7rem; text-align: left; vertical-align: top;
  border-top: 1px solid var(--line); font-weight: 400;
}}
thead th {{
  border-top: 0; color: var(--muted); font-size: .825rem; font-weight: 600; vertical-align: bottom;
  white-space: nowrap;
}}
tbody th {{ font-weight: 600; min-width: 7rem; }}
#layers tbody th {{ min-width: 12.5rem; max-width: 22rem; }}
#skipped tbody th {{ min-width: 10rem; max-width: 22rem; }}
#fold-plan td:last-child:not(.num) {{ min-width: 15rem; }}
tbody th[rowspan] {{ white-space: nowrap; }}
tbody tr + tr td {{ border-top-color: transparent; }}
tbody:only-of-type tr + tr td {{ border-top-color: var(--line); }}
tr.group th {{ background: var(--page); padding-top: .45rem; padding-bottom: .45rem; }}
tr.group th small {{ display: inline; margin-left: .75rem; }}
tr.group ~ tr td {{ border-top-color: var(--line); }}
tfoot th, tfoot td {{ font-weight: 600; border-top-width: 2px; }}
.num {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
td small, tbody th small {{
  display: block; font-size: .8rem; color: var(--muted); font-weight: 400;
}}
#layers td small {{ display: inline-block; min-width: 3.9rem; }}
small.better {{ color: var(--good); }}
small.worse {{ color: var(--missed); font-weight: 600; }}
.bar {{
  display: inline-block; width: 7rem; height: .55rem; margin-left: .75rem; border-radius: 3px;
  background: var(--track); overflow: hidden; vertical-align: .05em;
}}
.bar i {{ display: block; height: 100%; background: var(--accent); }}
.warnings {{ list-style: none; margin: 0 0 1rem; padding: 0; display: grid; gap: .5rem; }}
.warnings li {{
  padding: .6rem .9rem; border: 1px solid var(--line); border-left: 4px solid var(--missed);
  border-radius: 8px; background: var(--missed-page); font-size: .9rem;
}}
.warnings strong {{ color: var(--missed); }}
.warnings p {{ margin: .1rem 0 0; padding-left: 1rem; }}
.warnings span {{ color: var(--muted); }}
.warnings span::before {{ content: "· "; }}
.about {{ margin: 0; color: var(--muted); }}
section > .tiles {{ margin: .75rem 0 1rem; }}
.notes {{ margin: 0 0 1rem; padding-left: 1.2rem; font-size: .9rem; }}
.card + .card, .note + .card {{ margin-top: 1.25rem; }}

figure {{ margin: 0 0 1.25rem; padding: 1.1rem 1.25rem; }}
figure img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; }}
.settings {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr));
  margin: 0; padding: .4rem 1rem; gap: 0 2rem; font-size: .9rem;
}}
.settings div {{ display: flex; justify-content: space-between; gap: 1rem; padding: .35rem 0; }}
.settings dt {{ color: var(--muted); overflow-wrap: anywhere; }}
.settings dd {{
  margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}}
@media (max-width: 44rem) {{
  main {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.5rem; }}
  .verdict {{ padding: 1rem; }}
  .verdict .claim {{ font-size: 1.05rem; }}
  .tiles {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .tiles dd {{ font-size: 1.1rem; }}
  .tiles div:last-child:nth-child(odd) {{ grid-column: 1 / -1; }}
  figure {{ padding: .9rem; }}
  figure img {{ max-width: none; width: 46rem; }}
  th, td {{ padding: .5rem .6rem; }}
  tbody th {{ min-width: 0; }}
  tbody th[rowspan] {{ white-space: normal; }}
  .bar {{ width: 4rem; }}
}}
@media print {{
  body {{ background: #fff; }}
  nav {{ display: none; }}
  figure, tr, .verdict {{ break-inside: avoid; }}
}}
"""
