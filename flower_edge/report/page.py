"""The page: the table, the picture and how the figures came about, in one file."""

import base64
from html import escape
from io import BytesIO
from pathlib import Path

from flower_edge.report.data import Report
from flower_edge.report.figure import write_png

STYLE = """
body { margin: 2.5rem auto; max-width: 62rem; padding: 0 1.5rem; color: #333; background: #fff;
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
.subtitle { margin-top: 0; color: #666; }
.verdict { border-left: 4px solid #0072b2; padding: .4rem 1rem; background: #f3f8fc; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; margin: 1.5rem 0; }
li { margin-bottom: .3rem; }
"""


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file that needs no other: the picture is inside.

    Parameters
    ----------
    report : Report
        What to show.
    path : str or Path
        Where to write.

    Raises
    ------
    ImportError
        Without matplotlib; the message names the extra that brings it.
    """
    png = BytesIO()
    write_png(report, png)
    Path(path).write_text(_page(report, base64.b64encode(png.getvalue()).decode()), "utf-8")


def _page(report: Report, png: str) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in report.columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in report.rows
    )
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(report.title)}</h1>
<p class="subtitle">{escape(report.subtitle)}</p>
<p class="verdict">{escape(report.verdict)}</p>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<img src="data:image/png;base64,{png}"
alt="Maps of the links before and after, accuracy against energy, and consensus distance by round">
<h2>How the figures came about</h2>
<ul>
{notes}
</ul>
</body>
</html>
"""
