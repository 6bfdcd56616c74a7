"""What a body means is what it declares, or it stays bytes; and CloudEvents are read as their specification says."""

import base64
import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged import jsonvalue
from taskforged.errors import InvalidArgumentError
from taskforged.payload import CloudEvent, cloud_event_json, decode, is_json, parse_cloud_events

parse_json = functools.partial(jsonvalue.parse_json, where="body", size_max=1 << 20)


def b64(raw):
    return base64.b64encode(raw).decode()


def meaning(content_type, body):
    return decode(content_type, body, parse_json)


@pytest.mark.parametrize(
    ("content_type", "wanted"),
    [
        ("application/json", True),
        ("APPLICATION/JSON; charset=utf-8", True),
        (" application/vnd.github+json ", True),
        ("application/cloudevents+json", True),
        ("text/json", False),
        ("application/json-seq", False),
        ("application/x; a=+json", False),
        ("", False),
    ],
)
def test_what_says_that_it_is_json(content_type, wanted):
    assert is_json(content_type) is wanted


@pytest.mark.parametrize(
    ("content_type", "body", "wanted"),
    [
        ("application/json", b"", (None, "empty")),
        ("image/png", b"", (None, "empty")),
        ("application/json", b'{"a": [1, "\xc3\xbc"]}', ({"a": [1, "ü"]}, "json")),
        ("application/json", b"null", (None, "json")),
        ("application/x-www-form-urlencoded", b"a=1&b=&a=2&c+d=%C3%BC&e", ({"a": "2", "b": "", "c d": "ü", "e": ""}, "form")),
        ("application/x-www-form-urlencoded", b"a=%ED%A0%80%ff", ({"a": "\ufffd" * 4}, "form")),
        ("application/x-www-form-urlencoded", b"a=\xff", (b64(b"a=\xff"), "base64")),
        ("text/plain", "grüß\u0085".encode(), ("grüß\u0085", "text")),
        ("text/plain; charset=UTF-8", "ü".encode(), ("ü", "text")),
        ('Text/HTML ;Charset="iso-8859-1"', b"\xfc\x80", ("ü\x80", "text")),
        ("text/plain; charset=us-ascii", b"abc", ("abc", "text")),
        ("text/plain; charset=us-ascii", "ü".encode(), (b64("ü".encode()), "base64")),
        ("text/plain; charset=utf-16", "ü".encode("utf-16"), (b64("ü".encode("utf-16")), "base64")),
        ("text/plain; charset=utf-7", b"+2AA-", (b64(b"+2AA-"), "base64")),
        ("text/plain; charset", b"a", (b64(b"a") if False else "a", "text")),
        ("text/plain", b"\xff", ("/w==", "base64")),
        ("text/plain", b"a\0b", (b64(b"a\0b"), "base64")),
        ("text/plain", b"\xed\xa0\x80", (b64(b"\xed\xa0\x80"), "base64")),
        ("application/xml", b"<a/>", ("<a/>", "text")),
        ("image/svg+xml", b"<a/>", ("<a/>", "text")),
        ("text/xml;charset=latin1", b"\xfc", ("ü", "text")),
        ("application/javascript", b"1", ("1", "text")),
        ("", b"plain", ("plain", "text")),
        ("; charset=utf-8", b"plain", ("plain", "text")),
        ("", b"\x89PNG\r\n\x1a\n\0", (b64(b"\x89PNG\r\n\x1a\n\0"), "base64")),
        ("application/octet-stream", b"plain", (b64(b"plain"), "base64")),
        ("image/png", b"plain", (b64(b"plain"), "base64")),
        ("multipart/form-data; boundary=x", b"--x", (b64(b"--x"), "base64")),
        ("nonsense", b"plain", (b64(b"plain"), "base64")),
    ],
)  # fmt: skip
def test_meanings(content_type, body, wanted):
    assert meaning(content_type, body) == wanted


def test_a_file_that_json_claims_to_hold_stays_data():
    """CVE-2026-21858: the shape of an upload, as JSON."""
    body = b'{"files": [{"filepath": "/etc/passwd"}]}'
    assert meaning("application/json", body) == ({"files": [{"filepath": "/etc/passwd"}]}, "json")


@pytest.mark.parametrize("body", [b"{", b'{"a":1,"a":2}', b'"\\ud800"', b"NaN", b"\xff"])
def test_what_the_parser_refuses_is_refused(body):
    with pytest.raises(InvalidArgumentError):
        meaning("application/json", body)


def test_a_form_has_a_limit():
    form = "application/x-www-form-urlencoded"
    assert len(meaning(form, b"&".join(b"a%d=1" % i for i in range(1000)))[0]) == 1000
    for body in (b"&".join(b"a%d=1" % i for i in range(1001)), b"&" * 500_000):
        with pytest.raises(InvalidArgumentError, match="more than 1,000 fields"):
            meaning(form, body)


MEDIA = st.sampled_from(
    ["", "text/plain", "application/json", "application/x-www-form-urlencoded", "application/xml", "image/png", "x"]
)
PARAMETERS = st.one_of(
    st.sampled_from(["", "; charset=utf-8", "; charset=latin1", ";charset='x'", "; charset*=utf-8''x", ";=;;"]),
    st.text(st.characters(exclude_categories=()), max_size=20),
)


@given(MEDIA, PARAMETERS, st.one_of(st.binary(max_size=60), st.text(max_size=30).map(str.encode), st.sampled_from([b'"\\ud800"', b"%ED%A0%80=%ED", b"[1]"])))  # fmt: skip
def test_whatever_arrives_means_unicode_and_bytes_are_not_lost(media, parameters, body):
    try:
        value, encoding = meaning(media + parameters, body)
    except InvalidArgumentError:
        assert is_json(media + parameters)
        return
    assert jsonvalue.load_stored(jsonvalue.canonical(value)) == value
    assert encoding in {"empty", "json", "form", "text", "base64"}
    if encoding == "base64":
        assert base64.b64decode(value, validate=True) == body
    if encoding == "text":
        assert body in {value.encode(), value.encode("latin-1", "replace")}


# --- CloudEvents -----------------------------------------------------------------------------------------------------

STRUCTURED = "application/cloudevents+json; charset=UTF-8"
BATCH = "application/cloudevents-batch+json"
BARE = {"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "C234-1234-1234"}
EXTENDED = BARE | {"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5}
EXTENSIONS = {"comexampleextension1": "value", "comexampleothervalue": 5}


def structured(event, content_type=STRUCTURED):
    return parse_cloud_events(content_type, {}, json.dumps(event).encode(), parse_json)


def one(event):
    [found] = structured(event)
    return found


def binary(headers, body=b"", content_type=""):
    [found] = parse_cloud_events(content_type, headers, body, parse_json)
    return found


def refusal(event):
    with pytest.raises(ValueError) as caught:
        structured(event)
    return str(caught.value)


CE = {"ce-specversion": "1.0", "ce-type": "com.example.someevent", "ce-source": "/mycontext", "ce-id": "C234-1234-1234"}


@pytest.mark.parametrize(
    ("given", "data", "datacontenttype"),
    [
        ({"subject": None, "datacontenttype": "application/json", "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True}}, {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True}, "application/json"),
        ({"datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "AAEC"}, "AAEC", "application/vnd.apache.thrift.binary"),
        ({"unsetextension": None, "datacontenttype": "application/xml", "data": '<much wow="xml"/>'}, b64(b'<much wow="xml"/>'), "application/xml"),
        ({"subject": None, "data": "I'm just a string"}, "I'm just a string", ""),
    ],
)  # fmt: skip
def test_the_examples_of_the_json_format(given, data, datacontenttype):
    found = one(EXTENDED | given)
    wanted = CloudEvent(
        "C234-1234-1234", "/mycontext", "com.example.someevent", "", "2018-04-05T17:31:00Z", data, datacontenttype, "", EXTENSIONS
    )  # fmt: skip
    assert found == wanted
    assert one(cloud_event_json(found)) == found


def test_the_example_of_a_batch():
    first = EXTENDED | {"datacontenttype": "application/x", "data_base64": "AAEC"}
    second = EXTENDED | {
        "id": "2",
        "time": "2018-04-05T17:31:05Z",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }
    found = structured([first, second], BATCH)
    assert [(event.id, event.data) for event in found] == [("C234-1234-1234", "AAEC"), ("2", {"a": 1})]
    assert structured([], BATCH) == []


def test_the_example_of_the_http_binding():
    headers = CE | {"ce-time": "2018-04-05T03:56:24Z", "host": "webhook.example.com", "ce-comexampleothervalue": "5"}
    found = binary(headers, b'{"a": 1}', "application/json; charset=utf-8")
    assert found.data == {"a": 1}
    assert (found.time, found.datacontenttype) == ("2018-04-05T03:56:24Z", "application/json; charset=utf-8")
    assert found.extensions == {"comexampleothervalue": "5"}
    assert one(cloud_event_json(found)) == found


@pytest.mark.parametrize(
    ("body", "content_type", "wanted"),
    [
        (b"", "", (None, "")),
        (b"", "application/json", (None, "application/json")),
        (b"1", " application/json\t", (1, "application/json")),
        (b"<a/>", "application/xml", ("PGEvPg==", "application/xml")),
        (b"\x00\x01", "", ("AAE=", "application/octet-stream")),
        (b'"a"', "text/json", ("a", "text/json")),
        (b"null", "application/json", (None, "application/json")),
    ],
)
def test_data_of_binary_mode(body, content_type, wanted):
    found = binary(CE, body, content_type)
    assert (found.data, found.datacontenttype) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac", "Euro €"),
        ('"a \\"b\\" c"', 'a "b" c'),
        ('"a%20b"', "a b"),
        ("100%2525", "100%25"),
        ("a b", "a b"),
        ("50%", "50%"),
        ('"a', '"a'),
        ("grün", "grün"),
        ("%41%2fb", "A/b"),
    ],
)
def test_values_of_headers_are_decoded_once(written, wanted):
    assert binary(CE | {"ce-subject": written}).subject == wanted


@pytest.mark.parametrize("written", ["%C0%A0", "%ff", "%ED%A0%80", "\udcff"])
def test_values_of_headers_are_utf_8(written):
    with pytest.raises(ValueError, match="ce-subject is not percent-encoded UTF-8"):
        binary(CE | {"ce-subject": written})


def test_what_binary_data_means_is_looked_at():
    assert one(BARE | {"data_base64": b64(b'{"a":1}'), "datacontenttype": "application/json"}).data == {"a": 1}
    assert one(BARE | {"data_base64": "AAE="}).datacontenttype == "application/octet-stream"
    latin = one(BARE | {"data": "ü", "datacontenttype": "text/plain; charset=iso-8859-1"})
    assert latin.data == b64(b"\xfc")


def test_null_is_not_set():
    assert one(
        BARE | dict.fromkeys(["subject", "time", "datacontenttype", "dataschema", "data", "data_base64", "ext"])
    ) == one(BARE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specversion": None}, "the event: attribute 'specversion' is missing; is this a CloudEvent?"),
        ({"specversion": "0.3"}, "attribute 'specversion' must be '1.0'"),
        ({"specversion": 1.0}, "attribute 'specversion' must be '1.0'"),
        ({"id": None}, "attribute 'id' is missing"),
        ({"id": ""}, "attribute 'id' must not be empty"),
        ({"id": 7}, "attribute 'id' must be a text"),
        ({"source": None}, "attribute 'source' is missing"),
        ({"source": "a" * 1025}, "attribute 'source' has 1,025 characters; the limit is 1,024"),
        ({"type": ""}, "attribute 'type' must not be empty"),
        ({"type": "a" * 201}, "attribute 'type' has 201 characters; the limit is 200"),
        ({"type": "a\nb"}, "attribute 'type' contains a control character"),
        ({"subject": ""}, "attribute 'subject' must not be empty"),
        ({"subject": "\x7f"}, "attribute 'subject' contains a control character"),
        ({"time": "yesterday"}, "attribute 'time' must be a time such as"),
        ({"time": "2018-04-05T17:31:00"}, "attribute 'time' must be a time such as"),
        ({"time": "2018-02-30T17:31:00Z"}, "attribute 'time' must be a time such as"),
        ({"time": "2018-04-05T24:00:00Z"}, "attribute 'time' must be a time such as"),
        ({"datacontenttype": "json"}, "attribute 'datacontenttype' must be a media type"),
        ({"dataschema": ["a"]}, "attribute 'dataschema' must be a text"),
        ({"Ext": "a"}, "'Ext' is no name of an attribute"),
        ({"my_ext": "a"}, "'my_ext' is no name of an attribute"),
        ({"a" * 21: "a"}, "is no name of an attribute"),
        ({"": "a"}, "'' is no name of an attribute"),
        ({"ext": 1.5}, "attribute 'ext' must be a text, a whole number of 32 bits, true or false"),
        ({"ext": 2**31}, "a whole number of 32 bits"),
        ({"ext": {"a": 1}}, "attribute 'ext' must be a text"),
        ({"ext": "a" * 1025}, "attribute 'ext' has 1,025 characters"),
        ({"ext": "\u0085"}, "attribute 'ext' contains a control character"),
        ({"data": 1, "data_base64": "AA=="}, "'data' and 'data_base64' exclude each other"),
        ({"data_base64": "A"}, "'data_base64' is not base64"),
        ({"data_base64": "A A="}, "'data_base64' is not base64"),
        ({"data_base64": 7}, "'data_base64' is not base64"),
        ({"data_base64": "AA==", "datacontenttype": "application/json"}, "the event: 'data' is not acceptable JSON"),
        ({"data": {"a": 1}, "datacontenttype": "application/xml"}, "'data' must be a text, as datacontenttype 'application/xml' is no JSON"),
        ({"data": "€", "datacontenttype": "text/plain;charset=latin1"}, "'data' cannot be written as"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change, message):
    assert message in refusal(BARE | change)


@pytest.mark.parametrize("change", [{"ext": -(2**31)}, {"ext": 2**31 - 1}, {"ext": True}, {"ext": ""}, {"type": "a" * 200}, {"time": "2016-12-31t23:59:60.5+00:00"}, {"a" * 20: "x"}])  # fmt: skip
def test_what_is_just_possible_is_taken(change):
    found = one(BARE | change)
    assert one(cloud_event_json(found)) == found


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
def test_in_binary_mode_required_attributes_are_required_too(name):
    with pytest.raises(ValueError, match=f"attribute '{name}' is missing"):
        binary({key: value for key, value in CE.items() if key != f"ce-{name}"})
    joined = CE | {"ce-specversion": "1.0, 1.0"}
    with pytest.raises(ValueError, match=r"must be '1\.0'"):
        binary(joined)


@pytest.mark.parametrize("name", ["ce-datacontenttype", "ce-data", "ce-data_base64"])
def test_headers_that_may_not_be_there(name):
    with pytest.raises(ValueError, match=f"the header {name} is not possible"):
        binary(CE | {name: "application/json"}, b"{}", "application/json")


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        (STRUCTURED, b"{", "the body is not acceptable JSON"),
        (STRUCTURED, b"", "the body is not acceptable JSON"),
        (STRUCTURED, b'{"id": "\\ud800"}', "lone surrogate"),
        (STRUCTURED, b"[]", "the event must be a JSON object"),
        (BATCH, b"{}", "a batch must be a list of events"),
        (BATCH, b"[1]", "event 1 of the batch must be a JSON object"),
        (
            BATCH,
            json.dumps([BARE, BARE | {"id": ""}]).encode(),
            "event 2 of the batch: attribute 'id' must not be empty",
        ),
        (BATCH, json.dumps([BARE] * 101).encode(), "the batch has 101 events; the limit is 100"),
        (
            "application/cloudevents+xml",
            b"<a/>",
            "application/cloudevents.xml. is not supported; use application/cloudevents.json",
        ),
        ("application/cloudevents", b"{}", "is not supported"),
        ("application/json", b"{}", "attribute 'specversion' is missing"),
    ],
)
def test_what_is_no_cloud_event(content_type, body, message):
    with pytest.raises(ValueError, match=message):
        parse_cloud_events(content_type, {}, body, parse_json)


def test_a_batch_of_a_hundred_is_taken():
    assert len(structured([BARE] * 100, BATCH)) == 100


def test_half_of_a_character_is_refused_whatever_the_parser_lets_through():
    with pytest.raises(ValueError, match="half of a character"):
        parse_cloud_events(STRUCTURED, {}, json.dumps(BARE | {"subject": "\ud800"}).encode(), json.loads)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True)
EVENTS = st.builds(
    CloudEvent,
    id=WORDS,
    source=WORDS,
    type=WORDS,
    subject=st.just("") | WORDS,
    time=st.sampled_from(["", "2018-04-05T17:31:00Z"]),
    data=JSON,
    datacontenttype=st.sampled_from(["", "application/json", "application/vnd.x+json; a=b", "text/json"]),
    dataschema=st.just("") | WORDS,
    extensions=st.dictionaries(NAMES, WORDS | st.booleans() | st.integers(-(2**31), 2**31 - 1), max_size=3),
) | st.builds(
    CloudEvent,
    id=WORDS,
    source=WORDS,
    type=WORDS,
    data=st.none() | st.binary(max_size=20).map(b64),
    datacontenttype=st.sampled_from(["text/plain", "application/octet-stream", "image/png"]),
)


@given(EVENTS)
def test_written_and_read_again_an_event_is_the_same(event):
    written = jsonvalue.canonical(cloud_event_json(event))
    assert parse_cloud_events(STRUCTURED, {}, written, parse_json) == [event]
    assert parse_cloud_events(BATCH, {}, b"[" + written + b"]", parse_json) == [event]


@given(
    st.sampled_from(["", STRUCTURED, BATCH, "application/json", "text/plain", "x"]),
    st.dictionaries(
        st.sampled_from([*CE, "ce-time", "ce-x", "ce-", "x"]), st.text(st.characters(exclude_categories=())), max_size=5
    ),
    st.binary(max_size=30) | JSON.map(jsonvalue.canonical),
)
def test_whatever_arrives_is_an_event_or_a_value_error(content_type, headers, body):
    try:
        found = parse_cloud_events(content_type, CE | headers, body, parse_json)
    except ValueError:
        return
    for event in found:
        jsonvalue.canonical(cloud_event_json(event))
