"""The generation penalty of the profile `emoji_think`: after the stop marks that were asked for, only the end of turn.

A row is closed when its answer ends with a line that is so many stop marks, or more where one token holds several. It
is judged by text, because a mark is one to four tokens, or a part of one, by the tokenizer; a mark inside the answer
closes nothing. Every verdict is a function of the row's own tokens: nothing is kept between steps, rows or calls.
"""

from collections.abc import Sequence

import torch

from stokehold.data.profile import STOP
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.streaming import UNFINISHED

MARK_TOKENS = len(STOP.encode())
"""No tokenizer writes a mark in more tokens than it has bytes."""

MARGIN = 4
"""Tokens looked at before the marks: the line end among them, and a first one that decoding may strip."""

FLOOR = -1e4
"""The end of turn is not left below this in a closed row: within fp16, and far above what is suppressed there."""


class StopMarkPenalty:
    """For one batch: `limits` are the stop marks asked for, per prompt; None leaves a row alone."""

    def __init__(self, tokenizer: ChatTokenizer, limits: Sequence[int | None]) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._ends_mark: dict[int, bool] = {}

    def __call__(self, logits: torch.Tensor, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """`logits` [rows, vocabulary], those of closed rows suppressed but for the end of turn.

        `rows` are the prompts' numbers and `answers` the tokens each has so far. Suppressed is the lowest finite
        number of the type, so that a softmax in half precision has no NaN; other rows are handed back bit for bit.
        """
        pairs = zip(rows, answers, strict=True)
        closed = [slot for slot, (row, ids) in enumerate(pairs) if self.closed(ids, self._limits[row])]
        if not closed:
            return logits
        at = torch.tensor(closed, device=logits.device)[:, None]
        stops = torch.tensor(sorted(self._tokenizer.stop_ids), device=logits.device)
        kept = logits[at, stops].clamp(min=FLOOR)
        penalised = logits.clone()
        penalised[at.squeeze(-1)] = torch.finfo(logits.dtype).min
        penalised[at, stops] = kept
        return penalised

    def places(self, row: int, answer: Sequence[int]) -> list[int]:
        """After how many of `answer`'s tokens, itself left out, the row of prompt `row` is closed."""
        limit = self._limits[row]
        if limit is None:
            return []
        ends = (end for end in range(1, len(answer)) if self._may_end_mark(answer[end - 1]))
        return [end for end in ends if self.closed(answer, limit, end)]

    def closed(self, ids: Sequence[int], limit: int | None, end: int | None = None) -> bool:
        """Whether the last line of the answer's first `end` tokens is `limit` stop marks or more, and nothing else."""
        end = len(ids) if end is None else end
        if limit is None or not end or not self._may_end_mark(ids[end - 1]):
            return False
        start = max(0, end - MARK_TOKENS * limit - MARGIN)
        _, newline, line = self._tokenizer.decode(ids[start:end]).rpartition("\n")
        whole = newline or start == 0
        return bool(whole) and len(line) >= limit and set(line) == {STOP}

    def _may_end_mark(self, token: int) -> bool:
        """Whether a mark can end with this token; most tokens cannot, and cost one look."""
        if token not in self._ends_mark:
            self._ends_mark[token] = self._tokenizer.decode([token]).endswith((STOP, UNFINISHED))
        return self._ends_mark[token]
