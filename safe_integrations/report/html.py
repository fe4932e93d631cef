"""A finished answer as HTML, for notebooks: hover over a piece to see who wanted what there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from safe_integrations.engine.events import (
    ENSEMBLED,
    Candidate,
    Piece,
    Statistics,
    Verdict,
    Vote,
)
from safe_integrations.engine.tokens import END
from safe_integrations.report.characters import Characters, characters
from safe_integrations.report.payloads import show
from safe_integrations.report.verdicts import (
    LOOKS,
    MODEL_COLUMNS,
    drawn,
    facts,
    legend,
    model_rows,
    present,
    short,
    visible,
    words,
)

# `hidden` and `mark`/`u` keep the answer readable where a viewer strips the style sheet. A tooltip
# has an opaque background of the notebook's theme; all else is translucent and inherits.
_STYLE: Final = """
.safe-answer{position:relative;line-height:1.6}
.safe-answer .safe-text{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4em 0}
.safe-answer .safe-text :is(mark,u,span){color:inherit;text-decoration:none;background:none}
.safe-answer .safe-p,.safe-answer .safe-key{border-radius:3px;cursor:default}
.safe-answer .safe-p:hover,.safe-answer .safe-p:focus{outline:2px solid currentColor;
outline-offset:-1px}
.safe-answer .safe-nl::before{content:"\\21b5"}
.safe-answer .safe-end::before{content:"end";font-size:.75em;padding:0 .4em;opacity:.75}
.safe-answer .safe-tip{position:absolute;left:0;z-index:99;margin-top:.2em;padding:.6em .8em;
max-width:100%;width:max-content;box-sizing:border-box;overflow:hidden;pointer-events:none;white-space:normal;
color-scheme:light dark;
background:var(--jp-layout-color1,var(--vscode-editor-background,Canvas))!important;
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,CanvasText))!important;
border:1px solid rgba(128,128,128,.5);border-radius:6px;box-shadow:0 4px 16px rgba(0,0,0,.25);
font-size:12px;line-height:1.45;font-weight:normal}
.safe-answer .safe-p:hover>.safe-tip,.safe-answer .safe-p:focus>.safe-tip{display:block}
.safe-answer .safe-p:hover~.safe-p:focus>.safe-tip{display:none}
.safe-answer .safe-tip b{display:block;margin-bottom:.3em}
.safe-answer .safe-tip>span+b{margin-top:.8em}
.safe-answer .safe-tip>span{display:flex;flex-wrap:wrap;gap:.6em 2em;align-items:flex-start}
.safe-answer table{table-layout:auto;border-collapse:collapse;margin:0;font-size:12px;border:0;
color:inherit}
.safe-answer :is(th,td){padding:1px 10px 1px 0;text-align:right;border:0;background:none;
color:inherit;white-space:nowrap;font-variant-numeric:tabular-nums;vertical-align:baseline}
.safe-answer th{font-weight:normal;opacity:.65}
.safe-answer :is(th,td):first-child{text-align:left}
.safe-answer tr{background:none!important}
.safe-answer .safe-votes :is(th,td):nth-child(even){text-align:left}
.safe-answer .safe-models :is(th,td):nth-child(2){text-align:left}
.safe-answer code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;padding:0 2px;
color:inherit;background:rgba(128,128,128,.18);border-radius:3px;unicode-bidi:isolate}
.safe-answer code+code{margin-left:2px}
.safe-answer .safe-candidates tr:nth-child(2){font-weight:bold}
.safe-answer .safe-legend,.safe-answer .safe-sum{font-size:12px;opacity:.85}
.safe-answer .safe-key{padding:0 .4em;margin-right:.5em;white-space:nowrap}
.safe-answer .safe-sum{margin:.6em 0 .3em}
""" + "\n".join(
    f".safe-answer .safe-{verdict},.safe-answer .safe-text .safe-{verdict}.safe-p{{{look.css}}}"
    for verdict, look in LOOKS.items()
    if look.css
)


def provenance_html(
    text: str, pieces: Sequence[Piece], statistics: Statistics, finish_reason: str
) -> str:
    """An answer (the parts of a `Result`) with its ensembled pieces marked, and how it was made.

    Returns:
        One `div` with its own style sheet; no scripts, nothing loaded from elsewhere.
    """
    body = "".join(_characters(part, statistics) for part in characters(pieces, text))
    keys = "".join(
        f'<span class="safe-key safe-{verdict}">{told}</span>' if verdict else told
        for told, verdict in legend(statistics)
    )
    rows = [list(map(escape, row)) for row in model_rows(statistics)]
    return (
        f'<div class="safe-answer"><style>{_STYLE}</style>'
        f'<div class="safe-legend">{keys} Hover over the text to see who wanted what.</div>'
        f'<div class="safe-text">{body}</div>'
        f'<div class="safe-sum">{escape(facts(statistics, finish_reason))}</div>'
        f"{_table(MODEL_COLUMNS, rows, 'safe-models')}</div>"
    )


def _characters(part: Characters, statistics: Statistics) -> str:
    loud, tag = part.verdict in ENSEMBLED, LOOKS[part.verdict].tag
    kind = "" if part.text else " safe-end"
    if loud and part.text and not part.text.strip("\n"):
        kind = " safe-nl"
    focus = ' tabindex="0"' if loud else ""
    tips = "".join(_tip(piece, statistics) for piece in part.pieces)
    return (
        f'<{tag} class="safe-p safe-{part.verdict}{kind}"{focus}>{escape(visible(part.text))}'
        f'<span class="safe-tip" role="tooltip" hidden>{tips}</span></{tag}>'
    )


def _tip(piece: Piece, statistics: Statistics) -> str:
    title = words(piece)
    if piece.verdict is Verdict.CHANGED:
        title += f" from {_code(piece.proposed)} to {_code(piece.written)}"
    if told := drawn(piece):
        title += f" ({escape(told)})"
    tables = _votes(piece.votes) + _candidates(piece, present(statistics, piece.start))
    return f"<b>{title}</b>" + (f"<span>{tables}</span>" if tables else "")


def _votes(votes: Iterable[Vote]) -> str:
    rows = [
        [
            escape(short(v.model)),
            "".join(map(_code, v.tokens)),
            _percent(v.probability),
            _code(v.best),
            _percent(v.best_probability),
        ]
        for v in votes
    ]
    return _table(("model", "own tokens", "", "favourite", ""), rows, "safe-votes")


def _candidates(piece: Piece, names: list[str]) -> str:
    rows = [[_code(c.symbol), _percent(c.probability), *_by_model(c)] for c in piece.candidates]
    by_units = any(c.tokens for c in piece.candidates)
    first = "candidate" if by_units else "candidate (renormalised)"
    return _table((first, "merged", *map(escape, names)), rows, "safe-candidates")


def _by_model(candidate: Candidate) -> list[str]:
    """What each model gives a candidate, and its own tokens of it where these are several."""
    if not candidate.tokens:
        return list(map(_percent, candidate.by_model))
    return [
        ("".join(map(_code, tokens)) + " " if len(tokens) > 1 else "") + _percent(p)
        for p, tokens in zip(candidate.by_model, candidate.tokens, strict=True)
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    lines = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>" for tag, cells in lines
    )
    return f'<table class="{kind}">{body}</table>' if rows else ""


_percent: Final = "{:.1%}".format


def _code(symbol: bytes) -> str:
    if symbol == END:
        return "<i>end</i>"
    return f"<code>{escape(visible(show(symbol), keep='').replace(' ', '␣'))}</code>"
