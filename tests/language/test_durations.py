import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.language.durations import DURATION_MAX_S, DURATION_PATTERN, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5), ("30s", 30), ("1.5s", 1.5), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("0s", 0),
        ("1d2h3m4s5ms", 93_784.005), ("1m500ms", 60.5), ("PT1H30M", 5400), ("P1D", 86_400), ("P1DT2H", 93_600),
        ("PT0.5S", 0.5), ("366d", DURATION_MAX_S), ("001s", 1),
    ],
)  # fmt: skip
def test_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "P", "PT", "P1DT", "-1s", "+1s", "1m1h", "1s1s", "1 s", "1M", "1w", "٣s", "1.s", ".5s", "1.5m", "1s\n", "1e3s", "inf", "P1Y", "pt1h", "9999999999s"],
)  # fmt: skip
def test_refused(text):
    with pytest.raises(ValueError, match="write for example 500ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["367d", "8785h", "366d1ms", "999999999d"])
def test_too_long(text):
    with pytest.raises(ValueError, match="longer than 366d"):
        parse_duration(text)


@given(st.text("0123456789.msdhPTHMSD ", max_size=12))
def test_the_pattern_for_editors_agrees(text):
    try:
        parse_duration(text)
    except ValueError as error:
        assert ("longer" in str(error)) == bool(re.search(DURATION_PATTERN, text))
    else:
        assert re.search(DURATION_PATTERN, text)
