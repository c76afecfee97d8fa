"""asyncrl on a GPU beside members on a CPU: the same bytes of weights, and proofs that hold."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from asyncrl_small_run import REQUEST, SmallRun
from coordinator_processes import CoordinatorProcess
from test_asyncrl_trainer import CONFIG, OPTIONS, groups_of, join
from thread_ranks import run_threads

from asyncrl.cheats import CHEATS
from asyncrl.engines import HuggingFaceGenerator, as_llama
from asyncrl.generator import CachedGenerator, GeneratorOptions
from asyncrl.model import Decoder
from asyncrl.trainer import StepReport, Trainer

if not torch.cuda.is_available():
    pytest.skip("no GPU that this torch can use", allow_module_level=True)

STEPS = 4


def test_trainers_on_a_gpu_and_on_a_cpu_end_with_the_same_bytes(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:

        def take_part(number: int) -> tuple[list[StepReport], numpy.ndarray]:
            with join(coordinator, "devices", 2) as comm:
                device = "cuda" if number else "cpu"
                trainer = Trainer(Decoder(CONFIG), OPTIONS, comm, device=device)
                assert trainer.model.device.type == device
                reports = []
                for step in range(STEPS):
                    trainer.sync()
                    reports.append(trainer.step(groups_of(step)))
                return reports, trainer.state()["weights"].copy()

        (first, weights), (second, _) = run_threads(2, take_part)
    assert [one.digest for one in first] == [one.digest for one in second]
    assert len({one.digest for one in first}) == STEPS
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    wanted = [trainer.step(groups_of(step)) for step in range(STEPS)]
    # Adam makes a step of the learning rate out of a gradient near 0, with either sign.
    assert numpy.abs(weights - trainer.state()["weights"]).mean() < 1e-5
    assert [one.token_count for one in first] == [one.token_count for one in wanted]


def test_a_trainer_on_a_gpu_publishes_the_weights_that_it_has() -> None:
    trainer = Trainer(Decoder(CONFIG), OPTIONS, device="cuda")
    trainer.step(groups_of(0))
    published = torch.cat([value.flatten() for value in trainer.model.parameters()])
    assert numpy.array_equal(published.detach().cpu().numpy(), trainer.state()["weights"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallRun]:
    return {
        device: SmallRun(tmp_path_factory.mktemp(f"weights-{device}"), device=device)
        for device in ("cpu", "cuda")
    }


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_who_is_honest_is_accepted_on_another_device_and_who_cheats_is_not(
    runs: dict[str, SmallRun], there: str, here: str
) -> None:
    for number in range(8):
        inputs = runs[there].inputs(submission_index=number)
        request = type(REQUEST)(submission_index=number, open_steps=REQUEST.open_steps)
        verdict = runs[here].validator().judge(inputs.sign(inputs.honest()), request)
        assert verdict.accepted, verdict
    for name in ("stale_by_1", "int8_weights", "bf16_weights", "bf16_arithmetic", "other_model",
                 "best_of_4", "greedy", "temperature_0.9", "edited_tokens"):  # fmt: skip
        data = CHEATS[name].make(runs[there].inputs())
        verdict = runs[here].validator().judge(data, REQUEST)
        assert not verdict.accepted, name
        assert verdict.reason in CHEATS[name].reasons, (name, verdict)


def test_generators_on_a_gpu_say_what_they_say_on_a_cpu(runs: dict[str, SmallRun]) -> None:
    prompts = [[2 + (row + place) % 14 for place in range(3 + row % 4)] for row in range(32)]
    seeds = [bytes([row]) * 8 for row in range(32)]
    options = GeneratorOptions(token_count_max=6)
    found = []
    for run in runs.values():
        decoder = next(iter(run.inputs().decoders.values()))
        found.append(CachedGenerator(decoder).generate(prompts, seeds, options))
        llama: Any = as_llama(decoder.cpu())
        llama.to(run.device)
        decoder.to(run.device)
        found.append(HuggingFaceGenerator(llama).generate(prompts, seeds, options))
    first, *others = found
    for other in others:
        for wanted, one in zip(first, other, strict=True):
            assert one.tokens == wanted.tokens
            for left, right in (
                (one.hidden, wanted.hidden),
                (one.log_probabilities, wanted.log_probabilities),
            ):
                assert numpy.linalg.norm(left - right) < 1e-4 * numpy.linalg.norm(right)
