"""Shapes: ways to put one conversation, for chat templates that do not take every one.

Nothing is left out and nothing changes its place among the other texts. The first shape is the
conversation as it is; each further one gives up a little more of its form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import chain, count, product, takewhile
from typing import Any, Final

Turn = dict[str, Any]
_Step = Callable[[list[Turn]], list[Turn]]


def _joined(turns: list[Turn]) -> list[Turn]:
    """Neighbours of one role made one turn; calls and results stay alone."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else turn
        more = (last.keys() | turn.keys()) & {"tool_calls", "tool_call_id"}
        if last is turn or last["role"] != turn["role"] or more or turn["role"] == "tool":
            joined.append(turn)
        else:
            shared = {key: value for key, value in last.items() if turn.get(key) == value}
            joined[-1] = shared | {"content": _both(last["content"], turn["content"])}
    return joined


def _late_system_by_user(turns: list[Turn]) -> list[Turn]:
    """System texts behind the first turn as the user's words."""
    return [*turns[:1], *_system_by_user(turns[1:])]


def _system_by_user(turns: list[Turn]) -> list[Turn]:
    return [turn | {"role": "user"} if turn["role"] == "system" else turn for turn in turns]


def _user_first(turns: list[Turn]) -> list[Turn]:
    """An empty turn of the user before anybody else's but the system's."""
    at = 1 if turns[:1] and turns[0]["role"] == "system" else 0
    if [turn["role"] for turn in turns[at : at + 1]] == ["user"]:
        return turns
    return [*turns[:at], {"role": "user", "content": ""}, *turns[at:]]


def _one_call_a_turn(turns: list[Turn]) -> list[Turn]:
    """Several calls of one turn, each with its result behind it."""
    answers = _answers(turns)
    apart: list[Turn] = []
    moved: set[int] = set()
    number = 0
    for i, turn in enumerate(turns):
        calls = turn.get("tool_calls") or ()
        results = [*takewhile(lambda j: turns[j]["role"] == "tool", range(i + 1, len(turns)))]
        if len(calls) < 2 and i not in moved:
            apart.append(turn)
        for j, call in enumerate(calls if len(calls) > 1 else ()):
            apart.append(turn | {"tool_calls": [call]} | ({"content": ""} if j else {}))
            mine = [result for result in results if answers[result] == number + j]
            apart += [turns[result] for result in mine]
            moved.update(mine)
        number += len(calls)
    return apart


def _text_before_calls(turns: list[Turn]) -> list[Turn]:
    """What is said beside calls as a turn of its own."""
    apart: list[Turn] = []
    for turn in turns:
        if turn.get("tool_calls") and turn["content"].strip():
            said = {key: value for key, value in turn.items() if key != "tool_calls"}
            apart += [said, turn | {"content": ""}]
        else:
            apart.append(turn)
    return apart


def _numbered(turns: list[Turn]) -> list[Turn]:
    """Ids of nine letters and digits, the strictest form that templates ask for."""
    number = count()
    named = []
    for turn, answer in zip(turns, _answers(turns), strict=True):
        id_of = {} if answer is None else {"tool_call_id": f"call{answer:05}"}
        turn = _with_calls(turn, lambda call: call | {"id": f"call{next(number):05}"})
        named.append(turn | id_of)
    return named


def _answers(turns: list[Turn]) -> list[int | None]:
    """Which call each turn is the result of; calls are numbered through the conversation."""
    waiting: dict[int, Any] = {}
    number = count()
    answers: list[int | None] = []
    for turn in turns:
        answer = None
        if turn["role"] == "tool" and waiting:
            asked = (i for i, call_id in waiting.items() if call_id == turn.get("tool_call_id"))
            answer = next(asked, next(iter(waiting)))
            del waiting[answer]
        answers.append(answer)
        waiting |= {next(number): call.get("id") for call in turn.get("tool_calls") or ()}
    return answers


def _arguments_as(form: Callable[[Any], Any]) -> _Step:
    def step(turns: list[Turn]) -> list[Turn]:
        return [_with_calls(turn, lambda call: _with_arguments(call, form)) for turn in turns]

    return step


def _as_data(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        data = json.loads(arguments)
    except ValueError:
        return arguments
    return data if isinstance(data, dict) else arguments


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _with_calls(turn: Turn, change: Callable[[Turn], Turn]) -> Turn:
    calls = turn.get("tool_calls")
    return turn | {"tool_calls": [change(call) for call in calls]} if calls else turn


def _with_arguments(call: Turn, form: Callable[[Any], Any]) -> Turn:
    function = call.get("function", call)
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    changed = {**function, "arguments": form(function["arguments"])}
    return call | ({"function": changed} if "function" in call else changed)


def _both(first: str, second: str) -> str:
    return "\n\n".join(text for text in (first, second) if text)


_CHOICES: Final[tuple[tuple[tuple[_Step, ...], ...], ...]] = (
    ((), (_numbered,)),
    ((_arguments_as(_as_data),), (_arguments_as(_as_text),)),
    ((), (_text_before_calls,), (_one_call_a_turn,), (_text_before_calls, _one_call_a_turn)),
    (
        (),
        (_joined,),
        (_late_system_by_user, _user_first, _joined),
        (_system_by_user, _user_first, _joined),
    ),
)
"""What can be done to a conversation. The last line changes fastest."""


def _shape(choice: Sequence[tuple[_Step, ...]]) -> _Step:
    def put(turns: list[Turn]) -> list[Turn]:
        return reduce(lambda shape, step: step(shape), chain.from_iterable(choice), turns)

    return put


SHAPES: Final = tuple(map(_shape, product(*_CHOICES)))
"""Ways to put a conversation: the next where a template refuses one, or leaves some of it out."""
