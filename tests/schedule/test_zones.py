import io
import itertools
import struct
from zoneinfo import ZoneInfo

import pytest
from schedule.zone_data import DAY_S, NAMES, changes, offset, shapes, stored_changes, utc

from taskforged.schedule import ZoneError, is_transition_day, load_zone, local_text, zones
from taskforged.schedule.zones import Kind, pieces


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT-14", "EST5EDT"])
def test_load(name):
    assert load_zone(name) == ZoneInfo(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("europe/berlin", "did you mean Europe/Berlin?"), ("Berlin", "did you mean Europe/Berlin?"),
        ("Europe/Berln", "did you mean Europe/Berlin?"), ("New York", "did you mean America/New_York?"),
        ("UTC+2", "an offset does not know when clocks change: write for example Europe/Berlin, or UTC"),
        ("+02:00", "an offset does not know when clocks change: write for example Europe/Berlin, or UTC"),
        ("", "write for example Europe/Berlin, or UTC"), ("localtime", "write for example Europe/Berlin, or UTC"),
        ("../etc/passwd", "write for example Europe/Berlin, or UTC"), ("/etc/localtime", "write for example Europe/Berlin, or UTC"),
        ("Europe", "write for example Europe/Berlin, or UTC"), ("x" * 5000, "write for example Europe/Berlin, or UTC"),
        ("posix/Europe/Berlin", "did you mean Europe/Berlin?"), ("Europe/Berlin\0", "did you mean Europe/Berlin?"),
    ],
)  # fmt: skip
def test_refused(name, hint):
    with pytest.raises(ZoneError) as caught:
        load_zone(name)
    assert caught.value.message == f"{name[:64]!r} is no IANA time zone; {hint}"


def test_no_zone_changes_twice_in_six_days_since_1970():
    """`zones` looks once a day, `zone_data` each three days."""
    for name in NAMES:
        instants = [change.at for change in stored_changes(name) if change.at > 0]
        assert all(b - a > 6 * DAY_S for a, b in itertools.pairwise(instants)), name


def test_every_stored_change_since_1970_is_found():
    for change, name in {
        change: name
        for name in NAMES
        for change in stored_changes(name)
        if 0 < change.at < utc("2036-01-01T00:00:00+00:00")
    }.items():
        assert changed(name, change.at), name


def changed(name, at):
    """Whether a piece begins or ends there."""
    for year in {1970 + (at - 30 * 3600) // (365 * DAY_S) + more for more in (-1, 0, 1)}:
        if any(at in {piece.high - piece.offset, piece.low - piece.offset} for piece in pieces(name, year)):
            return True
    return False


PLACES = [
    "UTC",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Pacific/Apia",
    "Africa/Monrovia",
    "America/Nuuk",
    "Africa/Casablanca",
    "Africa/Sao_Tome",
]


@pytest.mark.parametrize("name", PLACES)
def test_pieces_cover_each_instant_once(name):
    assert_covered(name, ZoneInfo(name), 1970, 2040)


@pytest.mark.parametrize("width", [-7200, -1800, 3600])
@pytest.mark.parametrize("hours", [-3, -2, -1, 0, 1, 2, 3])
def test_changes_at_the_turn_of_the_year(monkeypatch, width, hours):
    """No real zone has a fold across New Year in UTC; a made one has."""
    name = f"Made/{width}/{hours}"
    zone = made_zone(utc("2027-01-01T00:00:00+00:00") + hours * 3600, 7200, 7200 + width)
    monkeypatch.setattr(zones, "load_zone", {name: zone}.get)
    assert_covered(name, zone, 2025, 2030)
    folds = [piece for year in (2026, 2027) for piece in pieces(name, year) if piece.kind in {Kind.FIRST, Kind.SECOND}]
    assert sum(piece.high - piece.low for piece in folds) == 2 * max(-width, 0)


def made_zone(at, before, after):
    """A zone with one change."""
    header = b"TZif\0" + bytes(15) + struct.pack(">6l", 0, 0, 0, 2, 2, 4)
    times = struct.pack(">2l2B", 0, at, 0, 1)
    types = struct.pack(">lBBlBB", before, 0, 0, after, 0, 0)
    return ZoneInfo.from_file(io.BytesIO(header + times + types + b"TST\0"))


def assert_covered(name, zone, first, end):
    """Without the gaps the pieces are the time line, and their offsets are the zone's."""
    at = utc(f"{first}-01-01T00:00:00+00:00")
    for piece in (piece for year in range(first, end) for piece in pieces(name, year)):
        if piece.kind is Kind.GAP:
            assert piece.high - piece.offset == at
            assert offset(zone, at - 1) == piece.offset - (piece.high - piece.low)
            assert offset(zone, at) == piece.offset
        else:
            assert piece.low - piece.offset == at
            at = piece.high - piece.offset
            assert {offset(zone, piece.low - piece.offset), offset(zone, at - 1)} == {piece.offset}
        assert piece.low < piece.high
    assert at == utc(f"{end}-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("instant", "zone", "text", "transition"),
    [
        ("2026-11-22T02:00:00+00:00", "Europe/Berlin", "2026-11-22T03:00:00+01:00", False),
        ("2026-03-29T12:00:00+00:00", "Europe/Berlin", "2026-03-29T14:00:00+02:00", True),
        ("2026-03-28T22:59:59+00:00", "Europe/Berlin", "2026-03-28T23:59:59+01:00", False),
        ("2026-03-28T23:00:00+00:00", "Europe/Berlin", "2026-03-29T00:00:00+01:00", True),
        ("2026-10-25T22:59:59+00:00", "Europe/Berlin", "2026-10-25T23:59:59+01:00", True),
        ("2026-10-25T23:00:00+00:00", "Europe/Berlin", "2026-10-26T00:00:00+01:00", False),
        ("2018-11-04T03:00:00+00:00", "America/Sao_Paulo", "2018-11-04T01:00:00-02:00", True),
        ("2018-11-04T02:59:59+00:00", "America/Sao_Paulo", "2018-11-03T23:59:59-03:00", False),
        ("2018-02-18T02:30:00+00:00", "America/Sao_Paulo", "2018-02-17T23:30:00-03:00", True),
        ("2018-02-18T03:00:00+00:00", "America/Sao_Paulo", "2018-02-18T00:00:00-03:00", False),
        ("2011-12-30T10:00:00+00:00", "Pacific/Apia", "2011-12-31T00:00:00+14:00", True),
        ("1971-06-01T00:00:00+00:00", "Africa/Monrovia", "1971-05-31T23:15:30-00:44:30", False),
        ("2026-03-29T12:00:00+00:00", "UTC", "2026-03-29T12:00:00+00:00", False),
    ],
)  # fmt: skip
def test_local_text(instant, zone, text, transition):
    due_at = utc(instant) * 1_000_000
    assert local_text(due_at, zone) == text
    assert is_transition_day(due_at, zone) is transition


def test_every_day_with_a_change_is_one():
    for change, name in shapes():
        assert is_transition_day(change.at * 1_000_000, name) or change.local == 0
        assert not is_transition_day((change.at + 3 * DAY_S) * 1_000_000, name)
        assert changes(name, change.at - 4 * DAY_S, change.at + 4 * DAY_S) == [change]
