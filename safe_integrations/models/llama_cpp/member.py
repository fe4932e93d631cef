"""A GGUF file that llama.cpp computes, as a member of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from safe_integrations.calls.form import Form
from safe_integrations.engine.model import Work, never
from safe_integrations.engine.tokens import TokenTable, common_prefix
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.admission import Memory
from safe_integrations.models.folding import Fold, FoldedDistribution
from safe_integrations.models.fork import check_process
from safe_integrations.models.llama_cpp.batch import Held, Ids
from safe_integrations.models.llama_cpp.context import Context
from safe_integrations.models.member import BaseMember
from safe_integrations.models.memory import available_memory
from safe_integrations.models.passes import ROWS_ALONE
from safe_integrations.models.rendering import Render


class LlamaMember(BaseMember[Fold]):
    """One causal language model with its tokenizer.

    What finished generations have read is kept, newest first, and a new prompt takes over what it
    shares the longest beginning with. Sessions of several threads that ask at the same time share
    a forward pass.

    Args:
        context: Where the model computes.
        tokens: Its tokens as bytes.
        render: Turns messages into prompt ids.
        name: How errors and statistics call it.
        context_window: Tokens it can hold.
        cache_bytes: Memory for caches of answers in flight, in bytes; see `ModelSpec`.
        teaches: The form of a call that its chat template teaches; None where it is none we know.
        in_form: `tokens` and `render` where calls have a form. None where none changes them.
    """

    def __init__(
        self,
        context: Context,
        tokens: TokenTable,
        render: Render,
        *,
        name: str,
        context_window: int,
        cache_bytes: int | None = None,
        teaches: Form | None = None,
        in_form: Callable[[Form], tuple[TokenTable, Render]] | None = None,
    ) -> None:
        super().__init__(
            tokens,
            render,
            Fold,
            name=name,
            context_window=context_window,
            teaches=teaches,
            in_form=in_form,
        )
        self.context: Final = context
        self.memory: Final = Memory(
            cache_bytes, available_memory, lambda tokens: tokens, context.cell_bytes
        )

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> LlamaSession:
        """Opens a session on a prompt.

        `cancel` is asked before every forward pass, and again and again while one runs or others
        are in front; where it says yes, `score` raises `GenerationCancelled`.
        """
        check_process(self.name)
        return LlamaSession(self, list(prompt), cancel)

    def forget(self) -> None:
        """Drops the caches of finished prompts, as `benchmarks` needs; sessions keep theirs."""
        self.context.forget()

    @property
    def cache_bytes(self) -> int:
        """Memory that caches of finished prompts take, in bytes."""
        return self.context.idle_bytes()


class LlamaSession:
    """A model at work on one prompt. It computes only tokens that its sequence does not hold."""

    def __init__(self, member: LlamaMember, prompt: list[int], cancel: Callable[[], bool]) -> None:
        self.work = Work()
        self._prompt = prompt
        self._cancel = cancel
        self._context = member.context
        self._fold = member.fold
        self._held: Held | None = None  # taken when it is needed
        self._closed = False
        self._known: list[int] = []
        self._rows: list[FoldedDistribution] = []  # after the last of the known ids, in order

    def score(self, ids: Sequence[int], since: int) -> Sequence[FoldedDistribution]:
        """What the model expects after `ids[:since]`, ..., after `ids`; see `Session`.

        Raises:
            GenerationCancelled: What was read until then is kept, for this session and for others.
        """
        assert not self._closed, "the session is closed"
        wanted = self._prompt + list(ids)
        held = self._held or self._take()
        first = len(self._prompt) + since - 1  # the token whose row answers first
        same = common_prefix(self._known, wanted)
        begin = len(self._known) - len(self._rows)
        # Rows that are there need not be computed. A row that is gone must be, with all behind it.
        needed = same if begin <= first < same else first
        self._rows = self._rows[first - begin : same - begin] if needed == same else []
        self._known = wanted[:needed]
        if needed < len(wanted):
            self._read(held, wanted, needed)
        return tuple(self._rows)

    def _take(self) -> Held:
        """Takes a sequence; where it has read this prompt before, the row behind it is there."""
        held = self._held = self._context.take(self._prompt)
        if (row := held.row_behind(len(self._prompt))) is not None:
            self._known, self._rows = self._prompt, [FoldedDistribution(row, self._fold)]
            self.work.reused = len(self._prompt)
        return held

    def _read(self, held: Held, wanted: list[int], needed: int) -> None:
        """Computes what the sequence does not hold; takes the rows from the needed token on."""
        at = min(common_prefix(held.ids, wanted), needed)
        if self.work.tokens == 0:
            self.work.reused = min(at, len(self._prompt))
        while at < len(wanted):
            if self._cancel():
                raise GenerationCancelled
            # a prompt ends a part: so what stands behind it is computed in few rows, always alike
            ends = (at + ROWS_ALONE, len(self._prompt), len(wanted))
            end = min(end for end in ends if end > at)
            rows = max(0, end - max(at, needed))
            part = Ids(self._context, held, at, wanted[at:end], rows, self._cancel)
            try:
                self._context.passes.run(part)
            except BaseException:
                self._let_go()  # another thread may still compute it
                raise
            at += part.taken
            if at == len(self._prompt) and part.result:
                held.end = (at, part.result[-1].copy())
            self._rows += [FoldedDistribution(row, self._fold) for row in part.result]
            self._known = wanted[:at]
            self.work.tokens += part.taken
            self.work.seconds += part.seconds
            self.work.row_seconds = self._context.price.row
        self.work.passes += 1

    def close(self) -> None:
        """Gives the sequence back for other prompts to start from."""
        self._closed = True
        self._let_go()
        self._context.passes.leave()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        self._known, self._rows = [], []
        if held is not None:
            self._context.give_back(held)
