"""diloco/schedule.py: the run's step decides, on a newcomer as well."""

from __future__ import annotations

import math

import pytest
import torch

from diloco.schedule import RunSchedule, constant, cosine, wsd


def test_cosine_is_that_of_torch_behind_the_warm_up() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=90, eta_min=0.1)
    curve = cosine(100, warmup=10, floor=0.1)
    assert [curve(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    for step in range(10, 101):
        assert curve(step) == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()
    assert curve(1000) == pytest.approx(0.1)


def test_constant_and_wsd() -> None:
    assert [constant(4)(step) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    assert constant()(0) == 1.0
    curve = wsd(100, warmup=10, decay=20, floor=0.1)
    assert [curve(step) for step in (0, 9, 10, 79, 80)] == [0.1, 1.0, 1.0, 1.0, 1.0]
    assert curve(90) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)))
    assert curve(100) == curve(500) == pytest.approx(0.1)
    assert wsd(10)(500) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: cosine(0),
        lambda: cosine(10, warmup=11),
        lambda: cosine(10, floor=2),
        lambda: wsd(10, warmup=6, decay=5),
        lambda: constant(-1),
    ],
)
def test_nonsense_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected steps"):
        call()


def test_the_rate_of_each_step_is_that_of_the_run() -> None:
    """A newcomer's first step is not the run's first."""
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1], "lr": 2.0}, {"params": parameters[1:]}], lr=1.0
    )
    clock = 500
    schedule = RunSchedule(optimizer, cosine(1000), lambda: clock)
    rates = []
    optimizer.register_step_post_hook(lambda *_: rates.append(schedule.get_last_lr()))
    for clock in (500, 501, 999, 3):  # noqa: B007  # the schedule looks at it
        for parameter in parameters:
            parameter.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    curve = cosine(1000)
    assert rates == [[2 * curve(step), curve(step)] for step in (500, 501, 999, 3)]
    assert float(parameters[1].detach()) == pytest.approx(1 - sum(rate[1] for rate in rates))


def test_the_peak_survives_a_checkpoint() -> None:
    def make() -> tuple[torch.optim.Optimizer, RunSchedule]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
        return optimizer, RunSchedule(optimizer, cosine(10), lambda: 9)

    optimizer, schedule = make()
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    again, other = make()
    again.load_state_dict(optimizer.state_dict())
    other.load_state_dict(schedule.state_dict())
    assert other.get_last_lr() == schedule.get_last_lr() == [2.0 * cosine(10)(9)]
