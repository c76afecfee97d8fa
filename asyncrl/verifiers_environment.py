"""Tasks of `verifiers` (Prime Intellect, 0.4) as an environment: one prompt, one answer, no tools.

verifiers and its 98 packages are not installed with asyncrl: `pip install verifiers`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from typing import Any

__all__ = ["VerifiersEnvironment"]


class VerifiersEnvironment:
    """The tasks of a taskset, scored by their own reward functions, without a runtime.

    Rewards that need a runtime (a container in which something is run) are not counted; verifiers
    logs which. Every role has to load the same taskset from the same data.
    """

    def __init__(self, taskset: Any, name: str, *, task_count_max: int = 16384) -> None:
        """Reads the tasks.

        Args:
            taskset: a `verifiers.v1.Taskset`.
            name: with everything that tells its tasks from others': version, split, seed.
            task_count_max: of a taskset without an end.

        Raises:
            ImportError: verifiers is not installed.
            ValueError: the taskset has no task, or one without a prompt.
        """
        if importlib.util.find_spec("verifiers") is None:
            raise ImportError("VerifiersEnvironment: verifiers is not installed")
        self._verifiers: Any = importlib.import_module("verifiers.v1")
        self._trace: Any = importlib.import_module("verifiers.v1.trace")
        self._graph: Any = importlib.import_module("verifiers.v1.graph")
        self.name = name
        self._tasks = [task for task, _ in zip(taskset, range(task_count_max), strict=False)]
        if not self._tasks:
            raise ValueError(f"{name}: no task")
        for index, task in enumerate(self._tasks):
            if not task.data.prompt_text:
                raise ValueError(f"{name}: task {index} has no prompt")

    @property
    def count(self) -> int:
        return len(self._tasks)

    def prompt(self, index: int) -> str:
        data = self._tasks[index].data
        before = f"{data.system_prompt}\n\n" if data.system_prompt else ""
        return f"{before}{data.prompt_text}"

    def score(self, index: int, text: str) -> float:
        """The sum of the task's weighted rewards for this answer, kept within 0 and 1."""
        task, types = self._tasks[index], importlib.import_module("verifiers.v1.types")
        asked = self._graph.MessageNode(message=types.UserMessage(content=self.prompt(index)))
        said = self._graph.MessageNode(
            parent=0, message=types.AssistantMessage(content=text), sampled=True
        )
        trace = self._trace.Trace(
            task=self._trace.TraceTask(type=type(task).__name__, data=task.data),
            agent=self._trace.AgentInfo(config=self._verifiers.AgentConfig()),
            nodes=[asked, said],
        )
        asyncio.run(task.score(trace))
        return min(1.0, max(0.0, float(trace.reward)))
