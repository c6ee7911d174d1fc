"""How much of a run over a file is behind it."""

import pytest

from stokehold.data.batches import Cursor
from stokehold.training.progress import completed, share
from stokehold.training.state import Progress

ROWS, EPOCHS = 100, 3


def behind(examples: int, skipped: int = 0, unusable: int = 10) -> Progress:
    return Progress("d", Cursor.start(), examples, skipped=skipped, unusable=tuple(range(unusable)))


@pytest.mark.parametrize(("examples", "skipped"), [(270, 0), (262, 8)])
def test_what_is_complete_is_all_of_it(examples: int, skipped: int) -> None:
    done = behind(examples, skipped)
    assert completed(done, ROWS, EPOCHS, (), "d") == done
    assert share(done, ROWS, EPOCHS) == 1.0
    assert share(behind(examples - 27, skipped), ROWS, EPOCHS) == pytest.approx(0.9)


def test_it_stays_between_nothing_and_all() -> None:
    assert share(behind(0), ROWS, EPOCHS) == 0.0
    assert share(behind(0, unusable=ROWS), ROWS, EPOCHS) == 0.0
    assert share(behind(150), ROWS, 1) == 1.0, "more epochs were wanted when it began"
