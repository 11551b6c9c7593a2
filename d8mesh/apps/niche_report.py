"""What Niche Discovery found, as one HTML page: charts, the ranking, and what its numbers mean.

The page stands alone: no script, no picture, no style from elsewhere, and it forbids itself to
load any. What models wrote is text in it and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Final

from d8mesh.apps.answers import SCORES, Niche
from d8mesh.apps.findings import Finding, Findings
from d8mesh.words import tr, translated

HTML_NAME: Final = "niches.html"
#: Niches in the chart of the best.
CHARTED: Final = 12
#: Rows of the ranking: a browser shows more only slowly; the CSV has all.
MAX_RANKED: Final = 1000
#: A map of more markets or geographies is no map; the CSV has all.
MAX_MAP_ROWS: Final = 60
MAX_MAP_COLUMNS: Final = 20

_RankedNiche = tuple[str, str, Niche]

_PAGE: Final = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><title>Niche Discovery</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --line: #8884; --bar: #0b7285; --weak: #888; }}
body {{ font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin-top: 2.5rem; }} .weak {{ color: var(--weak); }}
table {{ border-collapse: collapse; width: 100%; }} .wide {{ overflow-x: auto; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .6rem; }}
th, td {{ border-bottom: 1px solid var(--line); }}
td {{ overflow-wrap: anywhere; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.bars {{ display: grid; grid-template-columns: minmax(8rem, 1fr) minmax(4rem, 2fr) 3rem; }}
.bars {{ gap: .4rem .8rem; align-items: center; }}
.bar {{ background: var(--line); border-radius: 3px; }}
.bar i {{ display: block; height: 1.1rem; background: var(--bar); border-radius: 3px; }}
.cell {{ text-align: center; }} .cell b {{ font-weight: 600; }}
</style></head><body>
{body}
</body></html>
"""


def page(findings: Findings, pairs: Sequence[tuple[str, str]], *, lang: str) -> str:
    """Return the report of what was found of `pairs`.

    Args:
        lang: of the page, as HTML names it.
    """
    ranking = findings.ranking()
    parts = [
        "<h1>Niche Discovery</h1>",
        f"<p>{_escape(_summary(findings, pairs, ranking))}</p>",
        *_explained(),
        *(_best(ranking) if ranking else ()),
        *(_map(ranking) if ranking else ()),
        *(_ranked(ranking) if ranking else ()),
        *_unusable(findings),
    ]
    return _PAGE.format(lang=html.escape(lang), body="\n".join(parts))


def _summary(
    findings: Findings, pairs: Sequence[tuple[str, str]], ranking: Sequence[_RankedNiche]
) -> str:
    found = sum(findings.is_found(pair) for pair in pairs)
    unusable = sum(findings.is_unusable(pair) for pair in pairs)
    told = tr(
        "{pairs} pairs: {found} found, {unusable} unusable, {left} unanswered; {count} niches",
        pairs=len(pairs),
        found=found,
        unusable=unusable,
        left=len(pairs) - found - unusable,
        count=len(ranking),
    )
    models = sorted({each.model for each in findings.all() if each.model})
    answered = tr("answered by {models}", models=", ".join(models))
    return f"{told}; {answered}" if models else told


def _explained() -> Iterable[str]:
    yield f"<h2>{_escape(tr('What the numbers mean'))}</h2>"
    yield "<p>" + _escape(
        tr(
            "A model gave each niche four scores from 0 to 100: demand (how many want it), "
            "growth (how fast that grows), feasibility (how easily a small company can offer "
            "it) and competition (how many offer it already)."
        )
    )
    formula = "(demand + growth + feasibility + 100 − competition) / 4"
    yield _escape(tr("The opportunity is {formula}: 100 is best.", formula=formula))
    yield _escape(
        tr("The scores are a language model's opinion: a place to begin looking, no market study.")
    )
    yield "</p>"


def _best(ranking: Sequence[_RankedNiche]) -> Iterable[str]:
    yield f'<h2>{_escape(tr("The best opportunities"))}</h2><div class="bars">'
    for market, geography, niche in ranking[:CHARTED]:
        place = _escape(f"{market}, {geography}")
        yield (
            f'<span>{_escape(niche.name)}<br><small class="weak">{place}</small></span>'
            f'<span class="bar"><i style="width:{niche.opportunity:.1f}%"></i></span>'
            f'<span class="number">{niche.opportunity:.1f}</span>'
        )
    yield "</div>"


def _map(ranking: Sequence[_RankedNiche]) -> Iterable[str]:
    """Yield a table of markets and geographies, each cell as strong as its mean opportunity."""
    by_pair: dict[tuple[str, str], list[float]] = {}
    for market, geography, niche in ranking:
        by_pair.setdefault((market, geography), []).append(niche.opportunity)
    markets = sorted({market for market, _ in by_pair})[:MAX_MAP_ROWS]
    geographies = sorted({geography for _, geography in by_pair})[:MAX_MAP_COLUMNS]
    yield f"<h2>{_escape(tr('Mean opportunity by market and geography'))}</h2>"
    yield '<div class="wide"><table><tr><th></th>'
    yield "".join(f'<th class="cell">{_escape(each)}</th>' for each in geographies) + "</tr>"
    for market in markets:
        cells = (by_pair.get((market, geography)) for geography in geographies)
        row = "".join(map(_cell, cells))
        yield f"<tr><th>{_escape(market)}</th>{row}</tr>"
    yield "</table></div>"


def _cell(opportunities: list[float] | None) -> str:
    if not opportunities:
        return '<td class="cell weak">–</td>'
    middle = mean(opportunities)
    style = f"background:rgb(11 114 133 / {middle * 0.7:.0f}%)"
    return f'<td class="cell" style="{style}"><b>{middle:.1f}</b></td>'


def _ranked(ranking: Sequence[_RankedNiche]) -> Iterable[str]:
    yield f'<h2>{_escape(tr("Ranking"))}</h2><div class="wide"><table><tr>'
    heads = (tr("opportunity"), *map(tr, SCORES))
    yield "".join(f'<th class="number">{_escape(head)}</th>' for head in heads)
    yield f"<th>{_escape(tr('niche'))}</th><th>{_escape(tr('market, geography'))}</th></tr>"
    for market, geography, niche in ranking[:MAX_RANKED]:
        numbers = [f"{niche.opportunity:.1f}", *(f"{getattr(niche, s):g}" for s in SCORES)]
        row = "".join(f'<td class="number">{number}</td>' for number in numbers)
        name, text = _escape(niche.name), _escape(niche.description)
        place = _escape(f"{market}, {geography}")
        yield f'<tr>{row}<td><b>{name}</b><br>{text}</td><td class="weak">{place}</td></tr>'
    yield "</table></div>"
    if len(ranking) > MAX_RANKED:
        left = len(ranking) - MAX_RANKED
        yield f"<p>{_escape(tr('{count} more are in the CSV file', count=left))}</p>"


def _unusable(findings: Findings) -> Iterable[str]:
    unusable: list[Finding] = [each for each in findings.all() if not each.is_found]
    if not unusable:
        return
    yield f"<h2>{_escape(tr('Unusable'))}</h2><ul>"
    for each in unusable[:MAX_RANKED]:
        told = f"{each.market}, {each.geography}: {translated(each.error)}"
        yield f"<li>{_escape(told)}</li>"
    yield "</ul>"


def _escape(text: str) -> str:
    """Return `text` as HTML shows it, in one line and without what drives anything."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return html.escape(" ".join(line.split()))
