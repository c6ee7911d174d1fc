"""What a file's tokens look like: lengths of all its rows, never of a sample, and how much of them is trained."""

from collections.abc import Iterable, Sequence
from itertools import groupby, islice

import numpy as np

from stokehold.core.errors import InputError
from stokehold.core.records import Sample, TokenReport, WindowTokens
from stokehold.data.tokenizer import ChatTokenizer, Document

LENGTH_STEP = 64
"""Suggested lengths are multiples of this."""

OUTLIER = 2.0
"""Where the longest row is this many times the 99th percentile, the suggestion gives up the longest 1 %."""

LEAST_MASKED, MOST_MASKED = 0.15, 0.95
"""Conversations outside these shares are usually masked wrongly: prompts trained, or answers all but empty."""

EXAMPLES = 3
"""Rows shown with a warning."""

CHUNK_ROWS = 256
"""Rows tokenised at a time where nothing but their counts is wanted."""

TRAINED_MARKS = ("⟦", "⟧")


def token_report(lengths: Sequence[int], trained_counts: Sequence[int], max_length: int) -> TokenReport:
    """The report over rows of `lengths` tokens, of which `trained_counts` carry loss. Percentiles are row lengths.

    InputError where there is no row, or none with a trained token: such a file would train nothing.
    """
    if not lengths or not sum(trained_counts):
        raise InputError("no token of this file would be trained", fix="give every conversation an assistant turn")
    sizes = np.asarray(lengths, dtype=np.int64)
    p50, p95, p99 = (int(p) for p in np.percentile(sizes, (50, 95, 99), method="inverted_cdf"))
    longest = int(sizes.max())
    wanted = longest if longest <= OUTLIER * p99 else p99
    return TokenReport(
        rows=len(lengths),
        max=longest,
        mean=float(sizes.mean()),
        p50=p50,
        p95=p95,
        p99=p99,
        max_length=max_length,
        truncated_share=float((sizes > max_length).mean()),
        suggested_max_length=-(-wanted // LENGTH_STEP) * LENGTH_STEP,
        masked_share=1.0 - sum(trained_counts) / int(sizes.sum()),
    )


def count_tokens(
    samples: Sequence[Sample], outcomes: Sequence[list[Document] | InputError], window_rows: int, window: int
) -> WindowTokens:
    """The counts of one window of rows and what `ChatTokenizer.encode_many` made of them."""
    usable = [documents for documents in outcomes if not isinstance(documents, InputError)]
    return WindowTokens(
        window_rows,
        window,
        tuple(max(len(document.ids) for document in documents) for documents in usable),
        sum(int(document.trained.sum()) for documents in usable for document in documents),
        sum(bool(s.messages) for s, found in zip(samples, outcomes, strict=True) if not isinstance(found, InputError)),
    )


def measure(samples: Iterable[Sample], tokenizer: ChatTokenizer, max_length: int) -> tuple[TokenReport, str | None]:
    """The report over all of `samples` and what is suspicious in their mask; memory for one integer a row.

    Rows that the chat template refuses are left out: training rejects them, with their number. InputError as for
    `token_report`.
    """
    rows = iter(samples)
    counted: list[WindowTokens] = []
    while chunk := list(islice(rows, CHUNK_ROWS)):
        counted.append(count_tokens(chunk, tokenizer.encode_many(chunk), CHUNK_ROWS, len(counted)))
    return summarise(counted, max_length)


def summarise(counted: Sequence[WindowTokens], max_length: int) -> tuple[TokenReport, str | None]:
    """The report over all windows, and what is suspicious in the mask; InputError as for `token_report`."""
    lengths = [length for window in counted for length in window.lengths]
    report = token_report(lengths, [window.trained for window in counted], max_length)
    plain = not any(window.conversations for window in counted)
    return report, mask_warning(report.masked_share, plain_text=plain)


def mask_warning(masked_share: float, *, plain_text: bool = False) -> str | None:
    """What to tell the user when the share of tokens without loss is suspicious; never for plain text."""
    if plain_text or LEAST_MASKED <= masked_share <= MOST_MASKED:
        return None
    cause = "prompts seem to be trained" if masked_share < LEAST_MASKED else "answers are very short beside prompts"
    return f"{masked_share:.1%} of tokens carry no loss, outside 15-95 %: {cause}; look at the rendered examples"


def rendered_example(tokenizer: ChatTokenizer, sample: Sample) -> str:
    """The row as the model reads it, control tokens included, what is trained between ⟦ and ⟧."""
    opening, closing = TRAINED_MARKS
    shown = []
    for document in tokenizer.encode(sample):
        pieces = zip(document.ids.tolist(), document.trained.tolist(), strict=True)
        for trained, group in groupby(pieces, key=lambda piece: piece[1]):
            text = tokenizer.decode((token for token, _ in group), keep_special=True)
            shown.append(f"{opening}{text}{closing}" if trained else text)
    return "".join(shown)
