"""A finished answer as HTML, for notebooks: hover over a piece to see who wanted what there."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Final

from safe_integrations.engine.events import Piece, Statistics, Verdict, Vote
from safe_integrations.engine.tokens import END
from safe_integrations.report.characters import Span, spans
from safe_integrations.report.payloads import show

if TYPE_CHECKING:
    from safe_integrations.report.result import Result

_CANDIDATES: Final = 6
"""Candidates listed in a tooltip."""

_TITLES: Final = {
    Verdict.UNVERIFIED: "written by the drafter; nobody was asked",
    Verdict.UNSAFE: "kept unchecked: it does not start on a token boundary of every verifier",
    Verdict.UNANIMOUS: "kept: every model would write this",
    Verdict.MAJORITY: "kept: probable enough on average",
    Verdict.CONFIRMED: "ensembled: the draft was confirmed",
    Verdict.CHANGED: "ensembled: the draft was changed",
}

# `hidden` and `mark`/`u` keep the answer readable where a viewer strips the style sheet. A tooltip
# has an opaque background of the notebook's theme; all else is translucent and inherits.
_STYLE: Final = """
.safe-answer{position:relative;line-height:1.6}
.safe-answer .safe-text{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4em 0}
.safe-answer .safe-text :is(mark,u,span){color:inherit;text-decoration:none;background:none}
.safe-answer .safe-p,.safe-answer .safe-key{border-radius:3px;cursor:default}
.safe-answer .safe-confirmed{background:rgba(56,139,253,.16);box-shadow:inset 0 -2px #388bfd}
.safe-answer .safe-changed{background:rgba(240,136,62,.32);box-shadow:inset 0 -2px #e36b17}
.safe-answer .safe-unsafe{box-shadow:inset 0 -1px rgba(128,128,128,.55)}
.safe-answer .safe-text .safe-p.safe-confirmed{background:rgba(56,139,253,.16)}
.safe-answer .safe-text .safe-p.safe-changed{background:rgba(240,136,62,.32)}
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
.safe-answer table{table-layout:auto;border-collapse:collapse;margin:0;font-size:12px;border:0}
.safe-answer :is(th,td){padding:1px 10px 1px 0;text-align:right;border:0;background:none;
color:inherit;white-space:nowrap;font-variant-numeric:tabular-nums;vertical-align:baseline}
.safe-answer th{font-weight:normal;opacity:.65}
.safe-answer :is(th,td):first-child{text-align:left}
.safe-answer tr{background:none!important}
.safe-answer .safe-votes :is(th,td):nth-child(even){text-align:left}
.safe-answer code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;padding:0 2px;
color:inherit;background:rgba(128,128,128,.18);border-radius:3px;unicode-bidi:isolate}
.safe-answer .safe-won{font-weight:bold}
.safe-answer .safe-legend,.safe-answer .safe-sum{font-size:12px;opacity:.85}
.safe-answer .safe-key{padding:0 .4em;margin-right:.5em;white-space:nowrap}
.safe-answer .safe-sum{margin:.6em 0 .3em}
"""


def provenance_html(result: Result) -> str:
    """The answer with its ensembled pieces marked, and how it was made.

    Args:
        result: A finished answer.

    Returns:
        One `div` with its own style sheet; no scripts, nothing loaded from elsewhere.
    """
    names = [_short(model.name) for model in result.statistics.models]
    text = "".join(_span(span, names) for span in spans(result.pieces, result.text))
    return (
        f'<div class="safe-answer"><style>{_STYLE}</style>{_legend(result.statistics)}'
        f'<div class="safe-text">{text}</div>{_summary(result)}</div>'
    )


def _span(span: Span, names: list[str]) -> str:
    verdict = span.verdict
    classes = ["safe-p", f"safe-{verdict}"]
    loud = verdict in (Verdict.CONFIRMED, Verdict.CHANGED)
    if not span.text:
        classes.append("safe-end")
    elif loud and not span.text.strip("\n"):
        classes.append("safe-nl")
    tag = {Verdict.CHANGED: "mark", Verdict.CONFIRMED: "u"}.get(verdict, "span")
    focus = ' tabindex="0"' if loud else ""
    tips = "".join(_tip(piece, names) for piece in span.pieces)
    return (
        f'<{tag} class="{" ".join(classes)}"{focus}>{_text(span.text)}'
        f'<span class="safe-tip" role="tooltip" hidden>{tips}</span></{tag}>'
    )


def _tip(piece: Piece, names: list[str]) -> str:
    title = _TITLES[piece.verdict]
    if piece.verdict is Verdict.CHANGED:
        title += f" from {_code(piece.proposed)} to {_code(piece.written)}"
    tables = _votes(piece.votes) + _candidates(piece, names)
    return f"<b>{title}</b>" + (f"<span>{tables}</span>" if tables else "")


def _votes(votes: Iterable[Vote]) -> str:
    rows = [
        [
            escape(_short(v.model)),
            _code(v.token),
            _percent(v.probability),
            _code(v.best),
            _percent(v.best_probability),
        ]
        for v in votes
    ]
    return _table(["model", "own token", "", "favourite", ""], rows, kind="safe-votes")


def _candidates(piece: Piece, names: list[str]) -> str:
    rows = [
        [_code(c.symbol), _percent(c.probability), *map(_percent, c.by_model)]
        for c in piece.candidates[:_CANDIDATES]
    ]
    more = len(piece.candidates) - len(rows)
    if more > 0:
        rows.append([f"and {more} more"])
    won = [c.symbol == piece.written for c in piece.candidates[:_CANDIDATES]]
    return _table(["candidate (renormalised)", "merged", *map(escape, names)], rows, won)


def _legend(statistics: Statistics) -> str:
    if len(statistics.models) < 2:
        return '<div class="safe-legend">one model wrote this alone</div>'
    confirmed = statistics.ensembled - statistics.changed
    return (
        '<div class="safe-legend">'
        f'<span class="safe-key safe-confirmed">ensembled, draft confirmed: {confirmed}</span>'
        f'<span class="safe-key safe-changed">ensembled, draft changed: {statistics.changed}</span>'
        f'<span class="safe-key safe-unsafe">kept unchecked: {statistics.unsafe}</span>'
        "hover over the text to see who wanted what</div>"
    )


def _summary(result: Result) -> str:
    s = result.statistics
    facts = (
        f"{s.tokens} tokens, {s.ensembled_ratio:.0%} ensembled, {s.acceptance:.0%} accepted as "
        f"drafted · {s.cycles} cycles · {s.seconds:.2f} s, {s.overhead_seconds:.2f} s of it "
        f"outside the models · finished by {result.finish_reason}"
    )
    rows = [
        [
            escape(m.name),
            str(m.forward_passes),
            str(m.forwarded_tokens),
            f"{m.prompt_tokens} ({m.reused_tokens} reused)",
            f"{m.seconds:.2f}",
        ]
        for m in s.models
    ]
    head = ["model", "forward passes", "tokens forwarded", "prompt", "seconds"]
    return f'<div class="safe-sum">{facts}</div>{_table(head, rows)}'


def _table(
    head: list[str], rows: list[list[str]], bold: list[bool] | None = None, kind: str = "safe-table"
) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    marks = [False, *(bold or [])]
    marks += [False] * (len(lines) - len(marks))
    body = "".join(
        f'<tr class="safe-won">{line}</tr>' if mark else f"<tr>{line}</tr>"
        for line, mark in zip(lines, marks, strict=True)
    )
    return f'<table class="{kind}">{body}</table>'


def _short(model: str) -> str:
    """A model's name without the owner or the folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def _percent(probability: float) -> str:
    return f"{probability:.1%}"


_CONTROLS: Final = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {127: 0x2421}
_BLANKS: Final = _CONTROLS | {ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}


def _text(text: str) -> str:
    return escape(text.translate(_CONTROLS))


def _code(symbol: bytes) -> str:
    if symbol == END:
        return "<i>end</i>"
    return f"<code>{escape(show(symbol).translate(_BLANKS))}</code>"
