"""asyncrl/environment.py: the same prompts everywhere, and words that nothing was trained on."""

import importlib.util
import subprocess
import sys

import pytest

from asyncrl.environment import ReasoningGym
from asyncrl.tokenizer import encode
from asyncrl.verifiers_environment import VerifiersEnvironment

DRAWS = 2048


def words(split: str, seed: int) -> list[str]:
    environment = ReasoningGym(split=split, seed=seed, draw_count=DRAWS)
    return [environment.prompt(index) for index in range(environment.count)]


def test_no_word_is_in_two_splits_whatever_the_seed() -> None:
    found = {split: words(split, 1) for split in ("train", "validation", "held_out")}
    other = {split: words(split, 2) for split in found}
    for split, prompts in found.items():
        assert len(set(prompts)) == len(prompts) > 50
        for elsewhere in set(found) - {split}:
            assert not set(prompts) & set(other[elsewhere])
        assert set(prompts) & set(other[split])  # the lexicon is one


def test_answers_score_one_and_other_texts_less() -> None:
    environment = ReasoningGym(draw_count=DRAWS, has_partial_credit=True)
    strict = ReasoningGym(draw_count=DRAWS)
    assert strict.name != environment.name
    for index in range(50):
        answer = environment.answer(index)
        assert environment.prompt(index) == str(answer)[::-1] + ">"
        assert environment.score(index, str(answer)) == 1.0
        half = str(answer)[:-1] + "?"
        assert environment.score(index, "") == 0 < environment.score(index, half) < 1
        assert (strict.score(index, str(answer)), strict.score(index, half)) == (1, 0)
        encode(environment.prompt(index))


def test_another_process_has_the_same_prompts() -> None:
    program = (
        "from asyncrl.environment import ReasoningGym as G; import sys\n"
        "for task in sys.argv[1:]:\n"
        "    e = G(task, draw_count=40, seed=9)\n"
        "    print(e.name, [e.prompt(i) for i in range(e.count)], e.score(0, e.answer(0)))"
    )
    tasks = ["spell_backward", "chain_sum"]
    said = subprocess.run(
        ["env", "PYTHONHASHSEED=0", sys.executable, "-c", program, *tasks],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    own = []
    for task in tasks:
        found = ReasoningGym(task, draw_count=40, seed=9)
        prompts = [found.prompt(index) for index in range(found.count)]
        own.append(f"{found.name} {prompts} {found.score(0, str(found.answer(0)))}")
    assert said.splitlines() == own


def test_tasks_that_differ_between_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="two reads"):
        ReasoningGym("list_functions")
    if sys.flags.hash_randomization:
        with pytest.raises(ValueError, match="PYTHONHASHSEED"):
            ReasoningGym("knight_swap", draw_count=20)
    with pytest.raises(ValueError, match="split"):
        ReasoningGym(split="test")
    with pytest.raises(ValueError, match="no_such_task"):
        ReasoningGym("no_such_task")


@pytest.mark.skipif(importlib.util.find_spec("verifiers") is not None, reason="it is installed")
def test_verifiers_are_refused_where_they_are_not_installed() -> None:
    with pytest.raises(ImportError, match="verifiers is not installed"):
        VerifiersEnvironment([], "words")


def test_tasks_of_verifiers_are_scored_by_their_own_rewards() -> None:
    vf = pytest.importorskip("verifiers.v1", reason="pip install verifiers: 98 packages")

    class Data(vf.TaskData):  # type: ignore[misc, name-defined]
        answer: str

    class Spell(vf.Task[Data]):  # type: ignore[misc, name-defined]
        @vf.reward  # type: ignore[untyped-decorator]
        async def is_right(self, trace: object) -> float:
            return float(trace.last_reply == self.data.answer)  # type: ignore[attr-defined]

    class Words(vf.Taskset[Spell, vf.TasksetConfig]):  # type: ignore[misc, name-defined]
        def load(self) -> list[Spell]:
            return [Spell(Data(prompt=f"{word}>", answer=word[::-1])) for word in ("sun", "moon")]

    environment = VerifiersEnvironment(Words(vf.TasksetConfig()), "words 1")
    assert (environment.count, environment.prompt(1)) == (2, "moon>")
    assert [environment.score(1, text) for text in ("noom", "moon", "")] == [1, 0, 0]
    with pytest.raises(ValueError, match="words 2: no task"):
        VerifiersEnvironment([], "words 2")
