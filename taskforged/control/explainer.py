"""Why a run is where it is, for whoever asks."""

from __future__ import annotations

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal
from taskforged.control.explain import Explanation, explain
from taskforged.control.explain_facts import collect
from taskforged.control.views import RunViews
from taskforged.control.workflows import Workflows
from taskforged.host.limits import Limits
from taskforged.host.runner import Runner
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

__all__ = ["Explainer"]


class Explainer:
    """Collects what is known of a run and its surroundings, and explains it."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        runner: Runner,
        limits: Limits,
        views: RunViews,
    ) -> None:
        self._runs = RunStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._runner = runner
        self._limits = limits
        self._views = views

    async def explain(self, principal: Principal, run_id: str) -> Explanation:
        """Explain a run.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        loaded = await self._views.load(principal, run_id)
        model = await self._workflows.model(loaded.row.workflow_no, loaded.row.version)
        facts = await collect(
            self._runs,
            loaded,
            namespace=self._access.namespace_name(loaded.row.namespace_no),
            admission=self._runner.admission,
            dispatcher=self._runner.dispatcher,
            limits=self._limits,
        )
        return explain(loaded.run, model, facts, self._clock.now())
