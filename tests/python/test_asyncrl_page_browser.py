"""The run's live page in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from test_asyncrl_coordinator import CHEAT, HONEST, TRAINER, A, B, Run, verdict
from test_status_page_browser import (  # noqa: F401  # a fixture, and the mark that skips
    brightness,
    browser,
    emulate,
    pytestmark,
    text_of,
    wait_for,
)


def with_content(folder: Path) -> Run:
    """A run with a reward curve, a cheater that was caught, and a version that came."""
    run = Run(folder)
    honest, cheat, trainer = run.client(HONEST), run.client(CHEAT), run.client(TRAINER)
    for worker in (honest, cheat):
        worker.register(100)
    trainer.announce_weights(3, "ab" * 32)
    honest.report_broadcast(3, 1.25)
    for step in range(1, 9):
        trainer.advance(
            step, {"reward": 0.1 * step, "held_out": 0.05 * step, "staleness": step % 3}
        )
    good = honest.upload(b"good", 8, 0)["sha256"]
    bad = cheat.upload(b"<script>document.title = 'owned'</script>", 8, 0)["sha256"]
    for key in (A, B):
        run.client(key).send_verdict(verdict(good, key))
        run.client(key).send_verdict(verdict(bad, key, "sampling"))
    return run


@pytest.mark.parametrize(("scheme", "width"), [("dark", 360), ("light", 1200)])
def test_the_page_shows_the_run_and_follows_it(
    tmp_path: Path,
    browser: Any,  # noqa: F811
    scheme: str,
    width: int,
) -> None:
    run = with_content(tmp_path / "run")
    try:
        emulate(browser, scheme, width)
        browser.get(run.url + "/")
        text = wait_for(browser, lambda text: "step 8" in text)
        for part in (
            "running",
            "files are taken for steps 8, 9, 10",
            "weights of version 3",
            "reward 0.800",
            "held_out 0.400",
            "1 files accepted, 0 pending, 1 refused, 0 undecided (sampling 1)",
            "sampling found by a test",
            HONEST.address[:12],
            "banned",
            "1.25 s",
            "present",
            "60 coins burnt",
        ):
            assert part in text, f"{part!r} is not in\n{text}"
        line = browser.find_element("css selector", "#reward polyline.first")
        points = [p.split(",") for p in line.get_attribute("points").split()]
        heights = [float(y) for _, y in points]
        assert len(points) == 8
        assert heights == sorted(heights, reverse=True)  # the reward rises
        wide, room, color, ground = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth,"
            " getComputedStyle(document.body).color,"
            " getComputedStyle(document.documentElement).backgroundColor]"
        )
        assert wide <= room, f"the page is {wide} wide on a screen of {room}"
        assert (brightness(color) > brightness(ground) + 300) == (scheme == "dark")
        run.client(TRAINER).advance(9, {"reward": 0.9})
        wait_for(browser, lambda text: "step 9; files" in text)
        # Another run's page polled on after its coordinator had been killed.
        log = [line for line in browser.get_log("browser") if run.url in line["message"]]
        assert [line for line in log if line["level"] == "SEVERE"] == []
        browser.save_screenshot(str(tmp_path / "page.png"))
        run.process.end(signal.SIGKILL)
        wait_for(browser, lambda text: "does not answer" in text)
        assert "owned" not in browser.title
    finally:
        run.close()


def test_the_page_of_a_run_in_which_nothing_has_happened(
    tmp_path: Path,
    browser: Any,  # noqa: F811
) -> None:
    run = Run(tmp_path / "run")
    try:
        browser.get(run.url + "/")
        text = wait_for(browser, lambda text: "no weights yet" in text)
        assert "nothing yet" in text
        assert "0 files accepted" in text_of(browser)
    finally:
        run.close()
