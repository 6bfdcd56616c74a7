from __future__ import annotations

import datetime as dt

import pytest

from taskforgectl.errors import CliError
from taskforgectl.times import parse_span, parse_time

NOW = dt.datetime(2030, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("90m", 5400), ("1h30m", 5400), ("2d", 172_800), ("4w", 2_419_200), ("0s", 0)],
)
def test_spans(text, seconds):
    assert parse_span(text, "--x").total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "1.5h", "5M", "1h30", "9999999w", "٣s"])
def test_what_is_no_span(text):
    with pytest.raises(CliError, match=r"^--x .* is not a span"):
        parse_span(text, "--x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+90m", "2030-01-31T13:30:00Z"),
        ("-2d", "2030-01-29T12:00:00Z"),
        ("2030-02-01T00:00:00.25+02:00", "2030-01-31T22:00:00.250Z"),
        ("2030-02-01T00:00Z", "2030-02-01T00:00:00Z"),
    ],
)
def test_times(text, expected):
    assert parse_time(text, "--at", NOW).ToJsonString() == expected


def test_a_time_without_a_zone_is_local():
    local = dt.datetime(2030, 7, 1, 18).astimezone()
    assert parse_time("2030-07-01T18:00", "--at", NOW).ToDatetime(dt.UTC) == local


@pytest.mark.parametrize("text", ["", "soon", "18:00", "2030-13-01", "0001-01-01", "+soon", "tomorrow"])
def test_what_is_no_time(text):
    with pytest.raises(CliError, match="^--at ") as caught:
        parse_time(text, "--at", NOW)
    assert caught.value.code == 2
