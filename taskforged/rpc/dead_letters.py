"""DeadLetterService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from typing import Any

from taskforge.v1 import dead_letter_pb2
from taskforge.v1 import dead_letter_service_pb2 as pb
from taskforge.v1 import dead_letter_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.checks import invalid
from taskforged.control.dead_letters import STATES, DeadLetters, LetterFilter, Selection
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.views import RunViews
from taskforged.rpc import convert
from taskforged.rpc.guard import caller

__all__ = ["DeadLetterServicer"]


class DeadLetterServicer(grpc_base.DeadLetterServiceServicer):
    """Check, call control, convert."""

    def __init__(self, dead_letters: DeadLetters, views: RunViews, access: Access) -> None:
        self._dead_letters = dead_letters
        self._views = views
        self._access = access

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, _: Any) -> pb.ListDeadLettersResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        wanted = LetterFilter(namespace_no, request.workflow, request.step, request.error_code, _states(request.states))
        size, filters = page_size(request.page_size), ["dead letters", *astuple(wanted)]
        before = decode_token(request.page_token, filters, 0)
        found = await self._dead_letters.page(replace(wanted, before=before), size + 1)
        page = found[:size]
        more = encode_token(page[-1].run_no, filters) if len(found) > size else ""
        letters = [convert.dead_letter_to_proto(one, self._access) for one in page]
        return pb.ListDeadLettersResponse(dead_letters=letters, next_page_token=more)

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, _: Any) -> pb.GetDeadLetterResponse:
        letter = await self._dead_letters.get(caller(), request.run_id)
        view = await self._views.get(caller(), request.run_id)
        return pb.GetDeadLetterResponse(
            dead_letter=convert.dead_letter_to_proto(letter, self._access), run=convert.run_to_proto(view)
        )

    async def RetryDeadLetters(self, request: pb.RetryDeadLettersRequest, _: Any) -> pb.RetryDeadLettersResponse:
        verdicts, more = await self._dead_letters.retry(caller(), self._selection(request))
        results = [
            pb.RetryDeadLettersResponse.Result(run_id=one.run_id, new_run_id=one.new_run_id, error=one.error)
            for one in verdicts
        ]
        return pb.RetryDeadLettersResponse(results=results, more=more)

    async def DiscardDeadLetters(self, request: pb.DiscardDeadLettersRequest, _: Any) -> pb.DiscardDeadLettersResponse:
        verdicts, more = await self._dead_letters.discard(caller(), self._selection(request), request.reason)
        results = [pb.DiscardDeadLettersResponse.Result(run_id=one.run_id, error=one.error) for one in verdicts]
        return pb.DiscardDeadLettersResponse(results=results, more=more)

    def _selection(self, request: pb.RetryDeadLettersRequest | pb.DiscardDeadLettersRequest) -> Selection:
        wanted = None
        if request.HasField("filter"):
            by = request.filter
            namespace_no = self._access.enter(caller(), by.namespace)
            before = convert.micros(by.before) if by.HasField("before") else None
            wanted = LetterFilter(namespace_no, by.workflow, by.step, by.error_code, died_before=before)
        return Selection(tuple(request.run_ids), wanted, request.max_count, request.dry_run)


def _states(values: Iterable[int]) -> Sequence[str]:
    """Answer the names of states: of none only OPEN, with the unspecified one all."""
    numbers = set(values)
    known = dead_letter_pb2.DeadLetter.State.DESCRIPTOR.values_by_number
    if not numbers <= set(known):
        raise invalid("states", "must be known states")
    if 0 in numbers:
        return STATES
    return sorted(known[number].name.removeprefix("STATE_") for number in numbers) or ["OPEN"]
