"""Expressions without a language: the smallest things that fulfil the `Expression` protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskforged.engine.model import ExpressionError, Json, Scope
from taskforged.engine.states import StepState

__all__ = ["Constant", "Failing", "IndexBelow", "Lambda", "Path", "StateIs", "Status"]


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same value."""

    value: Json

    def evaluate(self, _: Scope, /) -> Json:
        """Answer the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Path:
    """A value found by name, `input.user.name` or `steps.build.output.version`."""

    text: str

    def evaluate(self, scope: Scope) -> Json:
        """Answer what is there; a name that is not there raises `ExpressionError`."""
        parts = self.text.split(".")
        depth = 3 if parts[0] == "steps" else 1
        try:
            value = scope.resolve(".".join(parts[:depth]))
            for part in parts[depth:]:
                value = value[part]
        except (KeyError, TypeError):
            raise ExpressionError(self.text, "path", "there is no such value") from None
        return value


@dataclass(frozen=True, slots=True)
class StateIs:
    """Whether a step is in a state."""

    step: str
    state: StepState

    def evaluate(self, scope: Scope) -> Json:
        """Answer true or false."""
        return scope.resolve(f"steps.{self.step}.state") == self.state.value


@dataclass(frozen=True, slots=True)
class Lambda:
    """Whatever a function makes of the scope."""

    function: Callable[[Scope], Json]

    def evaluate(self, scope: Scope) -> Json:
        """Answer what the function answers."""
        return self.function(scope)


@dataclass(frozen=True, slots=True)
class Failing:
    """Never has a value."""

    reason: str = "division by zero"

    def evaluate(self, _: Scope, /) -> Json:
        """Raise `ExpressionError`."""
        raise ExpressionError("1 / 0", "fake", self.reason)


@dataclass(frozen=True, slots=True)
class Status:
    """What `always()`, `success()` or `failure()` answers in the condition of a step; `name` is one of these words."""

    name: str

    def evaluate(self, scope: Scope) -> Json:
        """Answer true or false."""
        return scope.resolve(f"{self.name}__")


@dataclass(frozen=True, slots=True)
class IndexBelow:
    """Whether the item at hand is one of the first ones of its fan-out."""

    limit: int

    def evaluate(self, scope: Scope) -> Json:
        """Answer true or false."""
        return scope.resolve("index") < self.limit
