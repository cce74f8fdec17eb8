"""What every page of ours is made of: one file that needs no network and no script, for the dark and for phones too."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lit_pretrain import __version__
from lit_pretrain.comparison.charts import COLORS, Curve, line_chart

# Okabe & Ito 2008, which all eyes tell apart; in the dark the same hues, lighter.
STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--dim:#5b6470;--rule:#d9dee4;--soft:#f4f6f8;--mark:#0072b2;
--bad:#b3261e;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b1478a;--c4:#2a93cf;--c5:#b97d00;--c6:#444}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--text:#e6e9ed;--dim:#9aa5b1;--rule:#333a43;--soft:#1d2228;
--mark:#56b4e9;--bad:#ff8a80;--c0:#56b4e9;--c1:#ff9147;--c2:#3ccf9f;--c3:#e59cc8;--c4:#9ad4f5;--c5:#f0b93f;--c6:#ccc}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.3rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0}
.dim,.none,figcaption{color:var(--dim)}
.bad{color:var(--bad)}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{color:var(--dim);font-weight:600}
td.number,th.number{text-align:right;white-space:nowrap}
td.long{min-width:12rem;overflow-wrap:anywhere}
@media(max-width:30rem){th,td{padding-right:.45rem;font-size:.87em}td.long{min-width:6.5rem}}
tr.best td{font-weight:600}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{background:var(--soft);padding:.6rem .8rem;border-radius:6px;overflow-x:auto;margin:.3rem 0 .9rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.tile{background:var(--soft);border-radius:8px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.25rem;line-height:1.3}
.tile span{color:var(--dim);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem 1.6rem}
figure{margin:0}
figcaption{font-size:.85rem}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;fill:var(--dim)}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg .dashed{stroke-dasharray:4 3;stroke-width:1.2}
svg.graph{max-width:26rem}
svg .box{fill:var(--soft);stroke:var(--rule)}
svg .here{stroke:var(--mark);stroke-width:2}
svg .title{font-weight:600;font-size:13px;fill:var(--text)}
svg .tie{fill:none;stroke:var(--dim)}
svg .head{fill:var(--dim)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.5rem 0;padding:0;list-style:none;font-size:.9rem}
.swatch{display:inline-block;width:1.4em;height:0;border-top:3px solid;vertical-align:middle;margin-right:.45em}
.swatch.dashed{border-top-style:dashed}
.switch input{position:absolute;opacity:0}
.switch label{display:inline-block;padding:.25rem .8rem;border:1px solid var(--rule);margin:0 .3rem .8rem 0;
border-radius:999px;cursor:pointer}
.switch input:checked+label{background:var(--mark);border-color:var(--mark);color:var(--back)}
.switch input:focus-visible+label{outline:2px solid var(--mark);outline-offset:2px}
.switch .panel{display:none}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.pictures img{max-width:100%;height:auto;border-radius:4px;background:#fff}
summary{cursor:pointer;color:var(--mark);margin:.4rem 0}
"""
# A colour's line, marker and swatch; which panel a switch shows.
STYLE += "".join(
    f"svg .line.c{n}{{stroke:var(--c{n})}}svg .dot.c{n}{{fill:var(--c{n})}}.swatch.c{n}{{border-color:var(--c{n})}}\n"
    for n in range(COLORS)
)
STYLE += "".join(
    f".switch input:nth-of-type({n}):checked~.panel:nth-of-type({n}){{display:block}}\n" for n in (1, 2, 3)
)


BREAKS = re.compile(r"([/_](?=\w))")
BREAK = r"\1<wbr>"


def page(title: str, parts: Sequence[str], made: str) -> str:
    """A whole page.

    Args:
        title: In the browser's tab, not escaped yet.
        parts: HTML of its body.
        made: When it was made, for its end.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever stands in a run's names and texts, nothing is fetched and nothing runs.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f'\n<p class="dim">lit_pretrain {escape(__version__)}, {escape(made)}</p>\n</body>\n</html>\n'
    )


def section(name: str, heading: str, *parts: str) -> str:
    """A part of a page with its heading; empty without content."""
    content = "\n".join(part for part in parts if part)
    return f'<section id="{name}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>' if content else ""


def paragraph(text: str, style: str = "") -> str:
    """A sentence."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = (), best: int = -1) -> str:
    """A table, which scrolls by itself where it is wider than the page.

    Args:
        headings: Of its columns; none for a table without.
        rows: Whatever has a text, escaped here.
        numbers: Columns of numbers.
        best: Row that is emphasised; -1 for none.
    """
    style = [' class="number"' if place in numbers else "" for place in range(len(rows[0]) if rows else 0)]
    head = "".join(f"<th{mark}>{escape(heading)}</th>" for heading, mark in zip(headings, style, strict=False))
    lines = []
    for place, row in enumerate(rows):
        cells = []
        for value, mark in zip(row, style, strict=True):
            text = escape(str(value)).replace("\n", "<br>")
            if not mark and " " not in text:
                # Where a name may be broken on a phone, so that what stands beside it is seen.
                text = BREAKS.sub(BREAK, text)
            cells.append(
                f'<td class="long">{text}</td>' if not mark and len(str(value)) > 40 else f"<td{mark}>{text}</td>"
            )
        emphasis = ' class="best"' if place == best else ""
        lines.append(f"<tr{emphasis}>{''.join(cells)}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if headings else ""
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def tiles(facts: Mapping[str, str]) -> str:
    """The few numbers that matter, large."""
    shown = "".join(
        f'<div class="tile"><b>{escape(text)}</b><span>{BREAKS.sub(BREAK, escape(name))}</span></div>'
        for name, text in facts.items()
    )
    return f'<div class="tiles">{shown}</div>'


def legend(curves: Sequence[Curve]) -> str:
    """Which line is which."""
    items = {}
    for curve in curves:
        style = f"swatch c{curve.color % COLORS}" + (" dashed" if curve.dashed or curve.color >= COLORS else "")
        items[curve.name] = f'<li><span class="{style}"></span>{escape(curve.name)}</li>'
    return f'<ul class="legend">{"".join(items.values())}</ul>'


def switch(name: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is shown, chosen above them; three at most.

    Args:
        name: Of the page's switch, unlike any other of the page.
        panels: HTML by what is chosen.
    """
    if len(panels) == 1:
        return next(iter(panels.values()))
    inputs = [
        f'<input type="radio" name="{name}" id="{name}-{place}"{" checked" if not place else ""}>'
        f'<label for="{name}-{place}">{escape(title)}</label>'
        for place, title in enumerate(panels)
    ]
    contents = [f'<div class="panel">{content}</div>' for content in panels.values()]
    return f'<div class="switch">{"".join(inputs)}{"".join(contents)}</div>'


def chart(title: str, curves: Sequence[Curve], x_name: str, named: bool = False) -> str:
    """A chart with its title, and with the lines' names if they are not said elsewhere."""
    names = legend(curves) if named else ""
    return f"<figure><h3>{escape(title)}</h3>{line_chart(curves, title, x_name)}{names}</figure>"
