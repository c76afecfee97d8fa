"""How much of the held-out words a version of the policy gets right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from asyncrl.broadcast.client import WeightsClient
from asyncrl.broadcast.download import Trust
from asyncrl.demo.roles import Crew
from asyncrl.generator import CachedGenerator, GeneratorOptions
from asyncrl.model import load_policy
from asyncrl.run_task import RunTask
from asyncrl.tokenizer import EOS, decode, encode

__all__ = ["Evaluator"]

# Nearly the arg max; and the same code.
_GREEDY = 1e-6


class Evaluator:
    """Held-out prompts, which are in no training split and choose nothing."""

    def __init__(self, task: RunTask, draw_count: int) -> None:
        self._environment = replace(task, draw_count=draw_count).environment("held_out")
        self._options = GeneratorOptions(token_count_max=task.token_count_max)

    async def fetch(self, crew: Crew, version: int) -> Path:
        """A published version's file, from the relays like everybody's."""
        trainers = frozenset(crew.key(name).address for name in ("trainer 1", "trainer 2"))
        trust = Trust(trainers, crew.run)
        urls = [p.told["serving"] for p in crew.processes if p.name.startswith(("relay", "origin"))]
        async with WeightsClient(crew.folder / "evaluator", urls, trust, keep=12) as client:
            return (await client.fetch(version)).path

    def measure(self, weights: Path) -> dict[str, float]:
        """Share of right answers, greedy and sampled at temperature 1."""
        policy = CachedGenerator(load_policy(weights))
        count = self._environment.count
        prompts = [encode(self._environment.prompt(index)) for index in range(count)]
        seeds = [index.to_bytes(8, "big") for index in range(count)]
        found = {}
        for name, temperature in (("greedy", _GREEDY), ("sampled", 1.0)):
            options = replace(self._options, temperature=temperature)
            made = policy.generate(prompts, seeds, options)
            right = sum(
                one.tokens[-1] == EOS and self._environment.score(index, decode(one.tokens)) == 1
                for index, one in enumerate(made)
            )
            found[name] = right / count
        return found
