"""The skeleton and style of the report: one static page, no script, nothing loaded from elsewhere."""

import html

STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --text: #1a1f27; --soft: #5c6673; --line: #e3e7ec; --accent: #2f6fde;
  --good: #12805c; --good-bg: #e2f5ec; --bad: #b3372a; --bad-bg: #fbe9e6; --model: #2f6fde; --baseline: #8a94a3;
  --series-0: #2f6fde; --series-1: #e4572e; --series-2: #12927a; --series-3: #8b5fbf; --series-4: #c98a08;
  --series-5: #5c6673;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #171b21; --text: #e4e8ee; --soft: #97a1af; --line: #2a313a; --accent: #6ea2ff;
    --good: #56d3a5; --good-bg: #12332a; --bad: #ff8d7d; --bad-bg: #3b1d1a; --model: #6ea2ff; --baseline: #7c8695;
    --series-0: #6ea2ff; --series-1: #ff8a66; --series-2: #4fd0b5; --series-3: #b894ec; --series-4: #e9b949;
    --series-5: #97a1af;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; color-scheme: light dark; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  -webkit-font-smoothing: antialiased;
}
main, header > div { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding: 56px 0 28px; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -.025em; margin: 0 0 12px; }
h2 { font-size: 1.5rem; letter-spacing: -.015em; margin: 0; }
h3 { font-size: 1rem; margin: 28px 0 10px; }
p { margin: 8px 0; max-width: 76ch; }
a { color: var(--accent); text-decoration: none; }
header .pill { margin-top: 8px; }
.soft, small { color: var(--soft); }
small { font-weight: 400; }
nav { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 20px; }
nav a {
  color: var(--text); text-decoration: none; border: 1px solid var(--line); background: var(--card);
  border-radius: 99px; padding: 4px 14px; font-size: .9rem;
}
nav a:hover { border-color: var(--accent); color: var(--accent); }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 28px; margin: 0 0 24px;
}
.head { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; margin-bottom: 6px; }
.pill {
  display: inline-block; border-radius: 99px; padding: 2px 12px; font-size: .82rem; font-weight: 600;
  white-space: nowrap;
}
.good { color: var(--good); background: var(--good-bg); }
.bad { color: var(--bad); background: var(--bad-bg); }
.roles { display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0 4px; font-size: .85rem; }
.roles span { border: 1px solid var(--line); border-radius: 8px; padding: 3px 10px; color: var(--soft); }
.roles b { color: var(--text); font-weight: 600; }
.scroll { overflow-x: auto; margin: 14px -28px 0; padding: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th {
  text-align: left; font-weight: 600; color: var(--soft); font-size: .8rem; padding: 8px 14px 8px 0;
  border-bottom: 1px solid var(--line); white-space: nowrap;
}
td { padding: 9px 14px 9px 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td small { display: block; font-size: .8rem; }
td.wide { white-space: normal; min-width: 15em; }
.grid {
  display: grid; gap: 18px; grid-template-columns: repeat(auto-fit,minmax(min(100%,330px),1fr)); margin-top: 16px;
}
.grid.fill { grid-template-columns: repeat(auto-fill,minmax(min(100%,330px),1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill,minmax(min(100%,185px),1fr)); }
.grid.two { grid-template-columns: repeat(auto-fit,minmax(min(100%,430px),1fr)); }
figure { margin: 0; }
figcaption { font-size: .85rem; margin-bottom: 6px; font-weight: 600; }
figcaption.under { font-weight: 400; color: var(--soft); margin: 6px 0 0; }
video, img { display: block; width: 100%; border-radius: 10px; background: #111418; }
.strip { overflow-x: auto; margin-top: 18px; }
.strip img { min-width: 760px; max-width: 1124px; }
.plots { overflow-x: auto; margin-top: 18px; color: var(--text); }
.plots svg { display: block; width: 100%; min-width: 860px; height: auto; }
.plots svg text, .chart svg text { fill: currentColor; font-family: inherit !important; }
.chart { border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px 8px; min-width: 0; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { font-size: 12.5px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart svg .tick { fill: var(--soft); font-size: 11.5px; }
.chart .whisker { stroke-width: 3; stroke-linecap: round; }
.chart line.model { stroke: var(--model); opacity: .55; }
.chart line.baseline { stroke: var(--baseline); opacity: .55; }
.chart circle.model { fill: var(--model); }
.chart circle.baseline { fill: var(--baseline); }
.chart svg text.model { font-weight: 650; }
.chart svg text.baseline { fill: var(--soft); }
.number { font-variant-numeric: tabular-nums; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .8rem; color: var(--soft); padding: 2px 0 6px; }
.legend b { color: var(--text); font-weight: 600; }
.legend i {
  display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle;
}
details { margin-top: 16px; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill,minmax(210px,1fr)); gap: 16px 24px; margin: 16px 0 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 2px 0 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .85rem; padding: 8px 0 56px; }
"""


def page(title: str, header: str, body: str) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><header><div>{header}</div></header>\n<main>{body}</main></body></html>\n"
    )


def section(anchor: str, title: str, content: str, verdict: bool | None = None) -> str:
    """A card with a heading and, for what was measured, whether it beats its baselines."""
    mark = "" if verdict is None else pill(verdict)
    return f'<section id="{anchor}"><div class="head"><h2>{escape(title)}</h2>{mark}</div>{content}</section>\n'


def pill(good: bool, yes: str = "beats its baselines", no: str = "does not beat its baselines") -> str:
    """A coloured verdict, readable without its colour."""
    return f'<span class="pill {"good" if good else "bad"}">{"✓" if good else "✗"} {yes if good else no}</span>'


def table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML; a first cell of a row that is long may wrap."""
    columns = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'


def facts(entries: dict[str, str]) -> str:
    """Names and values in a grid."""
    return (
        "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in entries.items()) + "</dl>"
    )


def video(source: str, caption: str) -> str:
    """A looping, silent video with a caption below."""
    player = f'<video src="{source}" autoplay loop muted playsinline preload="auto"></video>'
    return f'<figure>{player}<figcaption class="under">{escape(caption)}</figcaption></figure>'


def escape(text: str) -> str:
    """Text as HTML."""
    return html.escape(text, quote=True)
