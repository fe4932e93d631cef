"""The paper's baseline, `mode="every-token"`: merges at every token and checks nothing.

Every drafted token is merged after the text as each model tokenises it by then, whether a token
boundary is cut or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safe_integrations.engine.draft import Draft
from safe_integrations.engine.events import Piece
from safe_integrations.engine.judge import Judge
from safe_integrations.engine.view import View


def ensemble_always(
    draft: Draft, verifiers: Sequence[View], judge: Judge, look: Callable[[], int]
) -> tuple[list[Piece], int]:
    """Judges a draft of one token, with forced text before it.

    Args:
        draft: The text.
        verifiers: All models but the drafter.
        judge: Merges.
        look: Has the verifiers tokenise the text; returns how many drafted tokens were thrown away
            to fit their windows.

    Returns:
        The pieces, and what `look` returned.
    """
    last = draft.steps[-1]  # what lies before it is forced
    overflow = 0
    if last.expected is not None:
        draft.cut(last.start)
        overflow = look()
    if last.expected is None or overflow:
        return [judge.judge(step, None) for step in draft.steps], overflow
    pieces = [judge.judge(step, None) for step in draft.steps[:-1]]
    distributions = [last.expected]
    for model in verifiers:
        model.begin(model.segments.ids, len(model.segments.ids))
    for model in verifiers:
        count = len(model.segments.ids)
        (expected,) = model.score(model.segments.ids, count)
        distributions.append(model.shaped(expected, model.segments.ids))
    draft.write(last.id, last.token)
    return [*pieces, draft.within_budget(judge.ensemble(last, distributions))], overflow
