"""One request of a load generator: what is sent, and whether the answer is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hedgerow import AsyncClient, HedgerowError

from hedgerow_bench.records import OK, WRONG, Answer

#: Start of the names of arrays with right answers in the inputs' file.
EXPECTED = "expected:"
#: Of features of which nothing better is known, or nothing young enough.
DEFAULT = "default"
#: A model in a batch of another size may round differently.
RELATIVE, ABSOLUTE = 1e-3, 1e-3


class Questions:
    """The rows to send, and what each version should answer. Read once, never changed."""

    def __init__(
        self, rows: Mapping[str, npt.NDArray[np.generic]], expected: Mapping[str, npt.NDArray[np.generic]]
    ) -> None:
        self.count = len(next(iter(rows.values())))
        # Cut once: slicing on the way would be the generator's own latency.
        self._inputs = [
            {name: array[row : row + 1] for name, array in rows.items()} for row in range(self.count)
        ]
        self._expected: dict[str, dict[str, npt.NDArray[np.generic]]] = {}
        for key, array in expected.items():
            version, output = key.removeprefix(EXPECTED).split(":", 1)
            self._expected.setdefault(version, {})[output] = array

    @classmethod
    def read(cls, path: Path) -> Questions:
        """Reads an .npz as `plan.Plan.inputs` describes it."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rows = {name: array for name, array in arrays.items() if not name.startswith(EXPECTED)}
        expected = {name: array for name, array in arrays.items() if name.startswith(EXPECTED)}
        return cls(rows, expected)

    def inputs(self, number: int) -> dict[str, npt.NDArray[np.generic]]:
        """The tensors of the n-th request."""
        return self._inputs[number % self.count]

    def right(self, number: int, version: str, outputs: Mapping[str, npt.NDArray[np.generic]]) -> bool:
        """Whether the answer to the n-th request is this version's; true where nothing is known."""
        row = number % self.count
        return all(
            np.allclose(outputs[name][0], array[row], rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
            for name, array in self._expected.get(version, {}).items()
        )


class Asker:
    """Sends the n-th question through a client, and says how it ended instead of raising."""

    def __init__(self, client: AsyncClient, model: str, questions: Questions, timeout: float) -> None:
        self._client = client
        self._model = model
        self._questions = questions
        self._timeout = timeout

    async def __call__(self, number: int) -> Answer:
        """Asks once.

        An answer made from defaults, which says so, is not the one expected; it must only be one.
        """
        try:
            result = await self._client.infer(
                self._model, self._questions.inputs(number), timeout=self._timeout
            )
        except HedgerowError as error:
            return Answer("", error.code.name)
        features = result.features or ""
        right = features == DEFAULT or self._questions.right(number, result.model_version, result.outputs)
        return Answer(result.model_version, OK if right else WRONG, features)
