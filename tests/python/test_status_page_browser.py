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

from pccl.status_page import StatusServer

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


def made_up(count: int) -> dict[str, Any]:
    """The status of a run in which everybody sends to everybody, and rank 1 is slow."""
    ids = [f"{rank:08x}" for rank in range(count)]
    run = {
        "name": "main", "term": "1", "quorum_id": 1, "first_operation": 0, "revision": 0,
        "members": [
            {
                "member_id": ids[rank], "address": f"10.0.0.{rank}:4000", "rank": rank,
                "joined_at": 0, "started": 9, "completed": 9, "operations_per_second": 1.0,
                "seconds_since_heard": 0.1, "round_trip_seconds": None, "is_connected": True,
                "is_slow": rank == 1, "slow_reason": "its links carry 1 MB/s",
                "link_bytes_per_second": 1e6, "waited_for": 0.0, "recovered_operations": 0,
            }
            for rank in range(count)
        ],
        "links": [
            {
                "from": ids[source], "to": ids[target], "bytes_sent": 1,
                "bytes_per_second": 5e5, "round_trip_seconds": 0.02, "replaced_sockets": 0,
                "busy_bytes_per_second": 1e6 if 1 in (source, target) else 9e6,
            }
            for source in range(count)
            for target in range(count)
            if source != target
        ],
        "events": [],
    }  # fmt: skip
    counters = ("messages", "malformed_messages", "refused_members", "refused_connections")
    rest = {"address": "10.0.0.1:29400", "database": "some.db", "failure": "", "writes": 0}
    return {**rest, **dict.fromkeys(counters, 0), "write_seconds_max": 0.0, "runs": [run]}


@pytest.mark.parametrize("count", [2, 4, 20, 64])
def test_the_map_is_readable_for_few_and_for_many(browser: Any, count: int) -> None:
    emulate(browser, "light", 1200)
    status = made_up(count)
    page = StatusServer(lambda: status, "127.0.0.1", 0, ())
    try:
        browser.get(f"http://127.0.0.1:{page.port}/")
        wait_for(browser, lambda text: "Wider: more bytes a second, 500 kB/s" in text)
        box, *circles = browser.execute_script(
            "const box = (found) => { const r = found.getBoundingClientRect();"
            " return [r.x, r.y, r.right, r.bottom]; };"
            "return [document.querySelector('.map'),"
            " ...document.querySelectorAll('.map .member circle')].map(box)"
        )
        arrows = browser.find_elements("css selector", ".map > path.link")
        slow = browser.find_elements("css selector", ".map > path.link.slow")
        marked = browser.find_elements("css selector", ".map .member.slow")
    finally:
        page.close()
    assert len(circles) == count
    for index, (x, y, right, bottom) in enumerate(circles):
        assert box[0] <= x < right <= box[2]
        assert box[1] <= y < bottom <= box[3]
        near = circles[index - 1]
        middle = (
            (x + right) / 2 - (near[0] + near[2]) / 2,
            (y + bottom) / 2 - (near[1] + near[3]) / 2,
        )
        assert (middle[0] ** 2 + middle[1] ** 2) ** 0.5 > 0.9 * (right - x), "they cover each other"
    # Of too many arrows those of the slow one are shown.
    assert len(arrows) == min(count * (count - 1), 300)
    assert len(slow) == (0 if count == 2 else 2 * (count - 1))
    assert len(marked) == 1


def click(browser: Any, selector: str) -> None:
    """At once: the page may be drawn again between finding something and clicking it."""
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def test_the_trees_of_the_plan_are_drawn_when_asked_for(tmp_path: Path, browser: Any) -> None:
    emulate(browser, "light", 1200)
    status = made_up(5)
    page = StatusServer(lambda: status, "127.0.0.1", 0, ())
    try:
        browser.get(f"http://127.0.0.1:{page.port}/")
        wait_for(browser, lambda text: "Wider: more bytes a second" in text)
        browser.get_log("browser")  # what pages said that are gone
        assert browser.find_elements("css selector", ".map .tree") == []
        click(browser, "label.plan input:not(:checked)")
        text = wait_for(browser, lambda text: "which is full all the time" in text)
        browser.save_screenshot(str(tmp_path / "page.png"))
        first = browser.find_elements("css selector", ".map .tree.tree-0")
        full = browser.find_elements("css selector", ".map > .full")
        problems = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        # The box stays ticked although the page is drawn again, and goes off by a click.
        click(browser, "label.plan input:checked")
        wait_for(browser, lambda text: "Wider: more bytes a second" in text)
    finally:
        page.close()
    assert "all_reduce of 64 MiB" in text
    assert len(first) == 4, "a tree over 5 members"
    assert len(full) == 1
    assert problems == []


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
