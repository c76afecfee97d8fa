"""The coordinator's page in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import PATIENCE_SECONDS, CoordinatorProcess
from test_elastic_status import await_run, count_in, join_two, reduce_together

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no browser: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root has none; the page is our own
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE_SECONDS)
    yield driver
    driver.quit()


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def wait_for(browser: Any, is_wanted: Callable[[str], bool]) -> str:
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        WebDriverWait(browser, PATIENCE_SECONDS).until(lambda found: is_wanted(text_of(found)))
    except TimeoutException:
        raise AssertionError(f"not as wanted:\n{text_of(browser)}") from None
    return text_of(browser)


def emulate(browser: Any, scheme: str, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )


def test_the_page_follows_members_and_a_coordinator_that_dies(tmp_path: Path, browser: Any) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        first, second = join_two(str(coordinator.address))
        with first, second:
            await_run(coordinator, lambda run: count_in(run) == 2)
            browser.get(coordinator.page)
            text = wait_for(browser, lambda text: "2 in quorum" in text)
            for comm in (first, second):
                assert comm.member_id in text
            reduce_together(first, second, times=20)
            wait_for(browser, lambda text: "Wider: more bytes a second" in text)
            drawn = browser.find_elements("css selector", ".map .member circle")
            assert len(drawn) == 2
            named = [found.text for found in browser.find_elements("css selector", ".map .name")]
            assert sorted(named) == sorted([first.member_id, second.member_id])
            arrows = browser.find_elements("css selector", ".map > path.link")
            assert len(arrows) == 2
            assert all(arrow.rect["width"] + arrow.rect["height"] > 50 for arrow in arrows)
            # It changes by itself, and says who left and why.
            second.leave()
            wait_for(browser, lambda text: "1 in quorum" in text)
            wait_for(browser, lambda text: f"({second.member_id}) is out: it" in text)
            # Nothing was refused by the page's own policy, nothing failed.
            problems = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
            assert problems == []
            coordinator.end(signal.SIGKILL)
            wait_for(browser, lambda text: "does not answer" in text)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_the_scheme(
    tmp_path: Path, browser: Any, scheme: str, width: int
) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        first, second = join_two(str(coordinator.address))
        with first, second:
            emulate(browser, scheme, width)
            browser.get(coordinator.page)
            wait_for(browser, lambda text: "2 in quorum" in text)
            browser.save_screenshot(str(tmp_path / "page.png"))
            wide, room, color, ground = browser.execute_script(
                "const style = getComputedStyle(document.documentElement);"
                "return [document.documentElement.scrollWidth, innerWidth,"
                " getComputedStyle(document.body).color, style.backgroundColor]"
            )
            assert wide <= room, f"the page is {wide} wide on a screen of {room}"
            assert brightness(color) > brightness(ground) + 300 or scheme == "light"
            assert brightness(ground) > brightness(color) + 300 or scheme == "dark"


def brightness(color: str) -> float:
    """Of "rgb(1, 2, 3)": 0 to 765."""
    numbers = color.partition("(")[2].rstrip(")").split(",")
    return sum(float(number) for number in numbers[:3])
