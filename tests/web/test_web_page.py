"""The page in a real browser: it loads under its own policy, moves with the journal, and shows markup as text."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stokehold.core.records import Evaluation, Step
from stokehold.store.db import control, events, journal
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from waiting import free_ports

pytestmark = pytest.mark.browser
PATIENCE_MS = 240_000
Make = Callable[..., Step]
MARKUP = '<img src=x onerror="document.title=1"><script>document.title=1</script><b>bold</b>'


@pytest.fixture
def tab(browser: Any, page: Any) -> Iterator[Any]:
    """The page, signed in; whatever the console complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"{page.url}/?token={page.token}")
    yield opened
    assert complaints == []
    context.close()


def points(tab: Any, chart: str, count: int) -> None:
    """Waits until a chart says that it drew so many points."""
    tab.wait_for_selector(f'#{chart}[data-points="{count}"]', state="attached")


def test_the_page_moves_with_the_journal(tab: Any, db: Database, make_step: Make) -> None:
    points(tab, "loss-chart", 0)
    assert tab.url.endswith("/"), "the token is gone from the address"
    for number in range(1, 31):
        journal.append(db, make_step(number, loss=3.0 / number))
    points(tab, "loss-chart", 30)
    before = tab.locator("#loss-chart .scatterlayer path.js-line").last.get_attribute("d")
    journal.append(db, make_step(31, loss=2.0))
    points(tab, "loss-chart", 31)
    assert tab.locator("#loss-chart .scatterlayer path.js-line").last.get_attribute("d") != before
    tab.wait_for_selector("#tile-loss .value:text-is('2.00')")
    assert tab.locator("#progress-step").inner_text() == "step 31"
    tab.locator("#loss-chart").hover()  # the hover label must keep to the policy too
    tab.wait_for_selector("#loss-chart .hoverlayer text", state="attached")


def test_held_out_results_are_drawn_with_their_interval(tab: Any, judge: Callable[..., Evaluation]) -> None:
    judge(None, 0.1)
    judge(10, 0.5)
    points(tab, "exact-chart", 2)
    assert tab.locator("#tile-exact .value").inner_text() == "50.0 %"
    assert "40–60" in tab.locator("#tile-exact .note").inner_text()
    judge(20, 0.9996)
    points(tab, "exact-chart", 3)
    assert tab.locator("#tile-exact .value").inner_text() == "99.9 %", "not every one was right"
    judge(30, 0.0004)
    points(tab, "exact-chart", 4)
    assert tab.locator("#tile-exact .value").inner_text() == "<0.1 %"


def test_the_readings_of_the_newest_evaluation_have_a_line_each(tab: Any, judge: Callable[..., Evaluation]) -> None:
    tab.wait_for_selector("#readings-empty:visible")
    judge(None, 0.1)
    tab.wait_for_selector("#readings li")
    assert tab.locator("#readings li").count() == 8
    assert not tab.locator("#readings-empty").is_visible()
    assert tab.locator("#readings-note").inner_text().startswith("of base")
    unknown = tab.locator("#readings li[data-reading='mining'] span")
    assert unknown.all_inner_texts() == ["Mining", "–", "–"]
    tests = tab.locator("#readings li[data-reading='fixed_tests'] span").all_inner_texts()
    assert tests == ["Fixed tests", "syllo 10.0 % of 50", "ok"]
    judge(10, 0.5, readings={"mining": {"state": "no_data", "reason": MARKUP}})
    tab.wait_for_selector("#readings-note:has-text('of step:10')")
    assert unknown.all_inner_texts() == ["Mining", MARKUP, "no data"]
    assert tab.locator("main img, main script, main b").count() == 0


def test_markup_in_data_is_text(tab: Any, client: JobsClient) -> None:
    journal.add_sample(client.db, 1, MARKUP, MARKUP, MARKUP, match=False)
    events.record(client.db, "note", MARKUP)
    client.enqueue("train", {"file": MARKUP}, job_id="train-x")
    tab.wait_for_selector("#sample-prompt:visible")
    for field in ("#sample-prompt", "#sample-gold", "#sample-answer"):
        assert tab.locator(field).inner_text() == MARKUP
    tab.wait_for_selector("#queue li")
    tab.wait_for_selector("#events li")
    assert MARKUP in tab.locator("#events li").inner_text()
    assert MARKUP in tab.locator("#queue li").inner_text()
    assert tab.locator("main img, main script, main b").count() == 0
    assert tab.title() == "idle · Stokehold"


def test_pause_and_resume_reach_the_trainer(tab: Any, page: Any, db: Database) -> None:
    def say(state: str) -> None:
        text = f'{{"pid": {page.process.pid}, "state": "{state}", "updated": "2999-01-01T00:00:00Z"}}'
        (page.home.status / "trainer.json").write_text(text)

    say("training")
    tab.wait_for_selector('#status-pill[data-status="training"]')
    tab.locator("#pause").click()
    tab.wait_for_selector("#events li[data-kind='control']")
    assert control.current(db) == "pause"
    say("paused")
    tab.wait_for_selector('#status-pill[data-status="paused"]')
    tab.locator("#resume").click()
    tab.wait_for_selector("#events li[data-kind='control'] >> nth=1")
    assert control.current(db) == "resume"


def test_it_comes_back_by_itself_when_the_server_was_away(
    browser: Any, home: Home, serving: Callable[..., Any], db: Database, make_step: Make
) -> None:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    tab, (port,) = context.new_page(), free_ports(1)
    with serving(home, "--port", str(port)) as page:
        tab.goto(f"{page.url}/?token={page.token}")
        tab.wait_for_selector('#connection[data-state="live"]', state="attached")
    tab.wait_for_selector('#connection[data-state="broken"]', state="attached")
    journal.append(db, make_step(1))
    with serving(home, "--port", str(port)):
        points(tab, "loss-chart", 1)
        tab.wait_for_selector('#connection[data-state="live"]', state="attached")
    context.close()


def test_it_fits_a_phone(browser: Any, page: Any, db: Database, make_step: Make) -> None:
    journal.append(db, make_step(1))
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    context.set_default_timeout(PATIENCE_MS)
    tab = context.new_page()
    tab.goto(f"{page.url}/?token={page.token}")
    points(tab, "loss-chart", 1)
    wide = tab.locator("body").evaluate("(body) => body.scrollWidth")
    assert wide <= 390
    context.close()


def test_a_stranger_sees_only_that_a_token_is_needed(browser: Any, page: Any) -> None:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    tab = context.new_page()
    assert tab.goto(f"{page.url}/").status == 401
    assert "needs its token" in tab.locator("p").inner_text()
    context.close()
