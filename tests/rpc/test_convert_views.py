"""Every field of logs and explanations reaches its message, and every name its enum."""

from taskforge.v1 import run_pb2

from taskforged.control.explain import Explanation, Reason, ReasonKind
from taskforged.control.logs import LogEntry, LogPortion
from taskforged.engine.states import RunState
from taskforged.rpc.convert_views import explanation_to_proto, log_portion_to_proto


def test_explanations():
    reason = Reason(ReasonKind.QUEUE, "m", "a", 1_500_000, "queue q", 3, 2, ("run_2/b",), "run_3", "taskforgectl up")
    message = explanation_to_proto(Explanation("run_1", RunState.RUNNING, "s", [reason], 2_000_001))
    assert (message.run_id, message.state, message.summary) == ("run_1", run_pb2.Run.STATE_RUNNING, "s")
    assert message.checked_time.ToMicroseconds() == 2_000_001
    (found,) = message.reasons
    assert found.ListFields()[0][0].name == "kind"
    assert {field.name for field, _ in found.ListFields()} == {field.name for field in run_pb2.Reason.DESCRIPTOR.fields}
    assert found.until.ToMicroseconds() == 1_500_000
    assert list(found.holders) == ["run_2/b"]


def test_what_has_no_end_has_no_time():
    message = explanation_to_proto(Explanation("r", RunState.PAUSED, "s", [Reason(ReasonKind.PAUSED, "m")], 1))
    assert not message.reasons[0].HasField("until")


def test_the_kinds_are_those_of_the_contract():
    known = {value.name.removeprefix("KIND_") for value in run_pb2.Reason.Kind.DESCRIPTOR.values if value.number}
    assert known == {kind.name for kind in ReasonKind}


def test_logs():
    entry = LogEntry("h1.l2", 1_000_001, "a", 2, "stdout", "hello")
    message = log_portion_to_proto(LogPortion([entry], "RUNNING"))
    assert message.run_state == run_pb2.Run.STATE_RUNNING
    (found,) = message.entries
    assert (found.cursor, found.step, found.attempt, found.stream, found.text) == ("h1.l2", "a", 2, "stdout", "hello")
    assert found.time.ToMicroseconds() == 1_000_001
    assert not log_portion_to_proto(LogPortion((), "DEAD")).entries
