"""The log book on a real store: nothing lost that is within bounds, nothing beyond them, and nobody is held up."""

import asyncio
import gc

import pytest
from structlog.testing import capture_logs

from taskforged.clock import Clock
from taskforged.errors import ResourceExhaustedError, UnavailableError
from taskforged.host import logbook as logbook_module
from taskforged.host.feed import Feed
from taskforged.host.logbook import BookBounds, LogBook
from taskforged.store.store import Store


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
def no_timer(monkeypatch):
    monkeypatch.setattr(logbook_module, "_FLUSH_S", 1000.0)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(logbook_module, "_PAUSES_S", (0.0, 0.0, 0.0))


def book_on(store, **bounds):
    return LogBook(store, Clock(), Feed(), bounds=BookBounds(**bounds))


async def texts(store, run_no=1):
    return [row[5] for row in await store.rows("logs_after", run_no, 0, 100_000)]


async def test_lines_are_on_disk_after_a_flush(store, no_timer):
    book = book_on(store)
    log = book.logger(1, "a", 2)
    log("stdout", "one")
    log("stderr", "two\n")
    log("system", "three\r\n")
    assert book.has_lines(1, "a", 2)
    assert book.has_waiting(1)
    assert not book.has_lines(1, "a", 1)
    assert not book.has_lines(1, "b", 2)
    assert not book.has_waiting(2)
    await book.flush(1)
    assert not book.has_lines(1, "a", 2)
    assert not book.has_waiting(1)
    rows = await store.rows("logs_after", 1, 0, 10)
    assert [(no, *rest[:2], *rest[3:]) for no, *rest in rows] == [
        (1, "a", 2, "stdout", "one"),
        (2, "a", 2, "stderr", "two"),
        (3, "a", 2, "system", "three"),
    ]
    await book.flush()
    await book.flush(7)
    await book.stop()


async def test_lines_reach_the_disk_by_themselves_and_followers_wake(store):
    feed = Feed()
    book = LogBook(store, Clock(), feed)
    with feed.watch(1) as watch, feed.watch(2) as other:
        book.logger(1, "a", 1)("stdout", "hello")
        assert await watch.wait_news(5.0)
        assert not other.news.is_set()
    assert await texts(store) == ["hello"]
    await book.stop()


async def test_many_lines_are_few_writes(store, no_timer):
    book = book_on(store)
    before = store.journal.stats.writes
    logs = [book.logger(1 + number % 3, f"s{number}", 1) for number in range(30)]
    for number in range(1500):
        logs[number % 30]("stdout", str(number))
    await asyncio.gather(*(book.flush(1 + number % 3) for number in range(30)))
    assert store.journal.stats.writes == before + 1
    assert await texts(store, 2) == [str(number) for number in range(1500) if number % 30 % 3 == 1]
    await book.stop()


async def test_a_flush_waits_for_what_is_being_written(store, no_timer):
    book = book_on(store)
    log = book.logger(1, "a", 1)
    log("stdout", "x")
    first = asyncio.create_task(book.flush())
    await asyncio.sleep(0)  # it has taken the line
    assert book.has_lines(1, "a", 1)
    await book.flush(1)
    assert await texts(store) == ["x"]
    await first
    await book.stop()


@pytest.mark.timeout(20)
async def test_a_flush_that_comes_just_when_a_write_has_ended(store, no_timer):
    """Its task is done, and the loop has not told anybody yet."""
    flushes = []

    class Hasty(Feed):
        def publish(self, run_no):
            if not flushes:
                log("stdout", "two")
                flushes.append(asyncio.get_running_loop().create_task(book.flush(run_no)))

    book = LogBook(store, Clock(), Hasty(), bounds=BookBounds())
    log = book.logger(1, "a", 1)
    log("stdout", "one")
    await book.flush(1)
    await flushes[0]
    assert await texts(store) == ["one", "two"]


async def test_a_cancelled_flush_takes_nobodys_lines_with_it(store, no_timer):
    book = book_on(store)
    book.logger(1, "a", 1)("stdout", "x")
    flush = asyncio.create_task(book.flush(1))
    await asyncio.sleep(0)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    await book.flush(1)
    assert await texts(store) == ["x"]
    await book.stop()


async def test_an_attempt_has_bounds_and_its_end_says_what_is_missing(store, no_timer):
    book = book_on(store, attempt_lines=3)
    log, other = book.logger(1, "a", 1), book.logger(1, "a", 2)
    for number in range(10):
        log("stdout", str(number))
    other("stdout", "another attempt")
    await book.flush(1)
    assert book.has_lines(1, "a", 1)
    assert not book.has_lines(1, "a", 2)
    await book.flush(1)
    assert not book.has_lines(1, "a", 1)
    assert await texts(store) == ["0", "1", "2", "another attempt", "… 7 more lines dropped"]
    rows = await store.rows("logs_after", 1, 4, 10)
    assert rows[0][1:3] == ("a", 1)
    assert rows[0][4] == "system"
    assert book.dropped == 7
    await book.stop()


async def test_bytes_count_and_no_short_line_slips_in_behind(store, no_timer):
    book = book_on(store, attempt_bytes=10)
    log = book.logger(1, "a", 1)
    for text in ("äöü", "12345", "x"):  # 6 bytes, 5 bytes, 1 byte
        log("stdout", text)
    book.end(1, "a", 1)
    book.end(1, "a", 1)
    await book.flush()
    assert await texts(store) == ["äöü", "… 2 more lines dropped"]
    await book.stop()


async def test_a_run_has_bounds(store, no_timer):
    book = book_on(store, run_lines=4)
    for attempt in range(5):
        for number in range(2):
            book.logger(1, "a", attempt)("stdout", f"{attempt}.{number}")
        book.end(1, "a", attempt)
    book.logger(2, "a", 1)("stdout", "another run")
    await book.flush()
    found = await texts(store)
    assert found[:4] == ["0.0", "0.1", "1.0", "1.1"]
    assert found[4].startswith("… the log of this run has reached 4 lines")
    assert len(found) == 5
    assert await texts(store, 2) == ["another run"]
    await book.stop()


async def test_the_whole_book_is_bounded_and_goes_on_when_there_is_room(store, no_timer):
    book = book_on(store, waiting_bytes=1000)
    log = book.logger(1, "a", 1)
    for number in range(50):
        log("stdout", str(number))
    await book.flush()
    log("stdout", "later")
    await book.flush()
    found = await texts(store)
    kept = len(found) - 2
    assert 1 <= kept < 10
    assert found == [*map(str, range(kept)), f"… {50 - kept} more lines dropped", "later"]
    await book.stop()


async def test_texts_that_no_database_takes(store, no_timer):
    book = book_on(store, line_bytes=10)
    log = book.logger(1, "a", 1)
    for text in ("\ud800", "a\0b", "\ud83d\ude00", "one\ntwo\r\nthree", "x" * 25, "ä" * 11, "", "€" * 4):
        log("stdout", text)
    log("no such stream", "x")
    await book.flush()
    assert await texts(store) == [
        "\ufffd",
        "a\ufffdb",
        "😀",
        *("one", "two", "three"),
        *("x" * 10, "x" * 10, "x" * 5),
        *("ä" * 5, "ä" * 5, "ä"),
        "",
        *("€€€", "€"),
        "x",
    ]
    await book.stop()


async def test_a_write_that_fails_is_tried_again(store, no_timer, no_pauses, monkeypatch):
    book = book_on(store)
    submit, faults = store.journal.submit, [ResourceExhaustedError("the disk is full")] * 2

    def failing(write):
        if not faults:
            return submit(write)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(faults.pop())
        return future

    monkeypatch.setattr(store.journal, "submit", failing)
    log = book.logger(1, "a", 1)
    log("stdout", "x")
    with capture_logs() as said:
        await book.flush()
    assert [one["dropped"] for one in said] == [False, False]
    assert await texts(store) == ["x"]
    faults.extend([ResourceExhaustedError("the disk is full")] * 4)
    log("stdout", "lost")
    with capture_logs() as said:
        await book.flush()
    assert [one["dropped"] for one in said] == [False, False, False, True]
    log("stdout", "y")
    await book.flush()
    assert await texts(store) == ["x", "… 1 more line dropped", "y"]
    assert book.dropped == 1
    await book.stop()


async def test_what_a_stopped_journal_refuses_is_given_up_at_once(store, no_timer, monkeypatch):
    book = book_on(store)

    def refusing(_):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(UnavailableError("stopping"))
        return future

    monkeypatch.setattr(store.journal, "submit", refusing)
    book.logger(1, "a", 1)("stdout", "x")
    with capture_logs() as said:
        await asyncio.wait_for(book.flush(), 5.0)
    assert [one["dropped"] for one in said] == [True]
    assert not book.has_waiting(1)
    await book.stop()


async def test_a_bug_in_a_write_does_not_reach_the_attempt(store, no_timer, monkeypatch):
    book = book_on(store)
    monkeypatch.setattr(logbook_module, "_insert", lambda connection, rows: 1 / 0)
    book.logger(1, "a", 1)("stdout", "x")
    with capture_logs():
        await asyncio.wait_for(book.flush(), 5.0)
    assert not book.has_waiting(1)
    await book.stop()


async def test_stop_writes_what_waits_and_says_what_is_missing(store, no_timer):
    book = book_on(store, attempt_lines=1)
    log = book.logger(1, "a", 1)
    log("stdout", "x")
    log("stdout", "y")
    await book.stop()
    await book.stop()
    log("stdout", "too late")
    await book.flush()
    assert await texts(store) == ["x", "… 1 more line dropped"]


async def test_nothing_is_held_of_attempts_that_are_over(store, no_timer):
    book = book_on(store, attempt_lines=1)
    for attempt in range(100):
        log = book.logger(1, "a", attempt)
        log("stdout", "x")
        log("stdout", "dropped, and nobody ends the attempt")
    del log
    await book.flush()
    gc.collect()
    assert len(book._attempts) == 0
    assert book._waiting_bytes == 0
    assert not book._open
    await book.stop()


async def test_numbers_go_on_after_a_restart(store, no_timer, tmp_path):
    book = book_on(store)
    book.logger(1, "a", 1)("stdout", "x")
    await book.stop()
    await store.stop()
    again = Store(tmp_path / "t.db")
    await again.start()
    book = book_on(again)
    book.logger(1, "a", 2)("stdout", "y")
    await book.stop()
    assert [row[0] for row in await again.rows("logs_after", 1, 0, 10)] == [1, 2]
    await again.stop()


async def test_more_lines_than_one_write_takes_keep_their_order(store, no_timer, monkeypatch):
    monkeypatch.setattr(logbook_module, "_ROWS_MAX", 7)
    book = book_on(store)
    log = book.logger(1, "a", 1)
    for number in range(100):
        log("stdout", str(number))
    await book.flush(1)
    assert await texts(store) == [str(number) for number in range(100)]
    await book.stop()
