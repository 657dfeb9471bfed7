"""Fallback rules at work: answers for a version that cannot give any."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.rule_expression import Activation, EvaluationError
from hedgerow_protos.rule_outputs import Row
from hedgerow_protos.rules import CompiledRules, Rule, RuleError, compile_rules

from hedgerow_server.engine.refusal import LoadRefused
from hedgerow_server.engine.signature import Signature
from hedgerow_server.engine.work import Part
from hedgerow_server.resilience.rule_rows import RuleRows

log = logging.getLogger(__name__)

#: Steps (`rule_cost`) that are taken before the event loop may do something else: about 1 ms.
TURN = 50_000
#: Steps that a row takes beside its expressions: its variables are handed over (measured: 4 µs).
_ROW = 200
#: Characters of the names of rules in a reply.
_LONGEST_NAMES = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """What rules answered.

    Attributes:
        outputs: As the model would have given them, in the order asked for.
        rules: Name of each rule that answered -> how many rows.
        failures: Name of each rule that failed -> for how many rows; a later one answered these.
    """

    outputs: list[np.ndarray]
    rules: Mapping[str, int]
    failures: Mapping[str, int]

    @property
    def rule(self) -> str:
        """The names of the rules that answered, those of most rows first."""
        names = sorted(self.rules, key=self.rules.__getitem__, reverse=True)
        joined = ",".join(names)
        return (
            joined if len(joined) <= _LONGEST_NAMES else f"{joined[:_LONGEST_NAMES].rpartition(',')[0]},..."
        )


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No rule could answer some row.

    Attributes:
        reason: Why the last rule could not.
        failures: As in `Answered`.
    """

    reason: str
    failures: Mapping[str, int]


class Rules:
    """The rules of one model version; see `compile`. It holds nothing of a request."""

    def __init__(self, compiled: CompiledRules, signature: Signature) -> None:
        self._compiled = compiled
        self._signature = signature
        self.names = tuple(rule.name for rule in compiled.rules)
        #: Rows that take one turn of the loop.
        self.turn_rows = max(1, TURN // (_ROW + compiled.steps))

    @classmethod
    def compile(cls, serving: ServingSpec, signature: Signature) -> Rules | None:
        """Compiles the rules of a version; blocks for milliseconds.

        Args:
            serving: The version's spec, whose features fit the model.
            signature: Of the model.

        Returns:
            None without rules.

        Raises:
            LoadRefused: They do not fit the model; says which rule, which expression, and why.
        """
        try:
            compiled = compile_rules(
                serving,
                signature.input_shapes,
                signature.output_shapes,
                batched=signature.max_batch_size > 0,
            )
        except RuleError as error:
            raise LoadRefused(str(error)) from error
        except ModuleNotFoundError as error:
            raise LoadRefused(
                f"fallback rules need the package {error.name}: pip install 'hedgerow[server]'"
            ) from error
        return None if compiled is None else cls(compiled, signature)

    def __repr__(self) -> str:
        return f"<Rules {', '.join(self.names)}: {self._compiled.steps} steps a row>"

    def answer(
        self, parts: Sequence[Part], shapes: Sequence[tuple[int, ...]], asked: tuple[int, ...] | None
    ) -> Answered | Unanswered:
        """Answers a request at once; for one of many rows see `answer_in_turns`.

        Args:
            parts: The model's inputs, in its order, as `engine.work.Work` has them.
            shapes: Of these.
            asked: Positions of the outputs to give; None: all.
        """
        job = _Job(self._compiled, self._signature, asked, self.turn_rows)
        for _ in job.turns(parts, shapes):
            pass
        return job.result

    async def answer_in_turns(
        self, parts: Sequence[Part], shapes: Sequence[tuple[int, ...]], asked: tuple[int, ...] | None
    ) -> Answered | Unanswered:
        """`answer`, with other work of the event loop let in after each millisecond or so."""
        job = _Job(self._compiled, self._signature, asked, self.turn_rows)
        for _ in job.turns(parts, shapes):
            await asyncio.sleep(0)
        return job.result


class _Job:
    """One request on its way through the rules. Holds the rows that are answered so far."""

    def __init__(
        self, compiled: CompiledRules, signature: Signature, asked: tuple[int, ...] | None, turn_rows: int
    ) -> None:
        self._compiled = compiled
        self._signature = signature
        self._turn_rows = turn_rows
        self._asked = range(len(compiled.outputs)) if asked is None else asked
        self._outputs: list[list[Row]] = [[] for _ in self._asked]
        self._rules: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self.result: Answered | Unanswered = Unanswered("the rules were not run to their end", {})

    def turns(self, parts: Sequence[Part], shapes: Sequence[tuple[int, ...]]) -> Iterator[None]:
        """Answers some rows with each step; `result` is there at the end."""
        try:
            rows = RuleRows(self._compiled.variables, self._signature, parts, shapes)
            if not self._compiled.variables:
                self._repeat(rows.count)
            else:
                for first in range(0, rows.count, self._turn_rows):
                    for values in rows.values(first, min(first + self._turn_rows, rows.count)):
                        self._answer_row(self._compiled.environment.activation(values))
                    yield
            self.result = self._answered()
        except EvaluationError as error:
            self.result = Unanswered(str(error), self._failures)
        except Exception:
            # Whatever it is, the failure that led here is the one that the caller should hear of.
            log.exception("fallback rules failed")
            self.result = Unanswered("the rules failed; the log says why", self._failures)

    def _repeat(self, count: int) -> None:
        """Answers rows that no rule looks at: all alike."""
        self._answer_row(self._compiled.environment.activation({}))
        self._outputs = [column * count for column in self._outputs]
        self._rules = Counter(dict.fromkeys(self._rules, count))
        self._failures = Counter(dict.fromkeys(self._failures, count))

    def _answer_row(self, activation: Activation) -> None:
        """Answers one row with the first rule that can."""
        for rule in self._compiled.rules:
            try:
                if rule.when is not None and not rule.when.evaluate(activation):
                    continue
                row = [self._cell(rule, position, activation) for position in self._asked]
            except EvaluationError as error:
                self._failures[rule.name] += 1
                failure = f"rule {rule.name!r}: {error}"
                continue
            for column, cell in zip(self._outputs, row, strict=True):
                column.append(cell)
            self._rules[rule.name] += 1
            return
        # The last rule always answers, or fails.
        raise EvaluationError(failure)

    def _cell(self, rule: Rule, position: int, activation: Activation) -> Row:
        constant = rule.constants[position]
        if constant is not None:
            return constant
        return self._compiled.outputs[position].row(rule.outputs[position].evaluate(activation))

    def _answered(self) -> Answered:
        outputs = [
            self._compiled.outputs[position].stack(rows)
            for position, rows in zip(self._asked, self._outputs, strict=True)
        ]
        return Answered(outputs, self._rules, self._failures)
