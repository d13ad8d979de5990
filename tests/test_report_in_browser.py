"""The report and the page of the data in a real browser; skipped where there is none."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from siftune import config, report
from siftune.proof import page as proof_page
from siftune.sections import SECTIONS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)


class Browser:
    """Headless Chromium, spoken to by the DevTools protocol over two pipes."""

    def __init__(self, profile: Path) -> None:
        their_input, self._to_browser = os.pipe()
        self._from_browser, their_output = os.pipe()
        # Chromium reads file descriptor 3 and writes 4: bash sets them from numbers further up.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_input, their_output)]
        redirected = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stderr=subprocess.DEVNULL,
        )
        for end in (their_input, their_output, *ends):
            os.close(end)
        self._unread = b""
        self._num_calls = 0
        self._session: dict[str, str] = {}
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        self._num_calls += 1
        message = {"id": self._num_calls, "method": method, "params": params, **self._session}
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._num_calls:
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, *, width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> object:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"]["value"]

    def named(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def console(self) -> list[dict]:
        return self.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self.named("Network.requestWillBeSent")]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._to_browser)
        os.close(self._from_browser)

    def _read(self) -> dict:
        while b"\0" not in self._unread:
            assert select.select([self._from_browser], [], [], 60)[0], "Chromium does not answer"
            received = os.read(self._from_browser, 1 << 16)
            assert received, "Chromium has ended"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@pytest.fixture
def page(finished_run: Path) -> Path:
    written = finished_run / "index.html"
    written.write_text(report.render(config.raw_sections(*SECTIONS)), encoding="utf-8")
    return written


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_a_browser_opens_it_without_an_error(browser: Browser, page: Path) -> None:
    for width, scheme in ((1180, "light"), (1180, "dark"), (360, "light"), (360, "dark")):
        browser.open(page, width=width, scheme=scheme)
        assert browser.console() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.evaluate("document.querySelectorAll('.sample').length") == 5
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_several_decodings_stand_beside_their_reference(browser: Browser, page: Path) -> None:
    row = json.loads(Path("data/samples.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row["answers"] |= {"warm": {"base": "long " * 80, "tuned": "x" * 200}}
    Path("data/samples.jsonl").write_text(json.dumps(row), encoding="utf-8")
    page.write_text(report.render(config.raw_sections(*SECTIONS)), encoding="utf-8")
    place = "document.querySelectorAll('.answers > div')[{}].getBoundingClientRect().{}"
    for width, columns in ((1180, [0, 1, 2, 1, 2]), (360, [0, 0, 0, 0, 0])):
        browser.open(page, width=width, scheme="light")
        assert browser.console() == []
        left = [browser.evaluate(place.format(number, "left")) for number in range(5)]
        top = [browser.evaluate(place.format(number, "top")) for number in range(5)]
        assert [sorted(set(left)).index(one) for one in left] == columns
        rows = [0, 0, 0, 1, 1] if width == 1180 else [0, 1, 2, 3, 4]
        assert [sorted(set(top)).index(one) for one in top] == rows
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_text_is_readable_in_both_colour_schemes(browser: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        browser.open(page, width=1180, scheme=scheme)
        for colour in ("ink", "muted", "base-ink", "tuned", "wrong"):
            for ground in ("paper", "surface"):
                assert contrast(browser, colour, ground) >= 4.5, (scheme, colour, ground)
        for colour in ("base", "tuned"):
            assert contrast(browser, colour, "paper") >= 3, (scheme, colour)


def contrast(browser: Browser, *names: str) -> float:
    """The contrast ratio of WCAG 2 between two colours of the page."""
    light = []
    for name in names:
        style = "getComputedStyle(document.documentElement)"
        colour = str(browser.evaluate(f"{style}.getPropertyValue('--{name}')"))
        shares = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_browser_opens_the_page_of_the_data_without_an_error(
    browser: Browser, encoded_data: Path
) -> None:
    page = encoded_data / "data.html"
    page.write_text(proof_page.render(), encoding="utf-8")
    for width, scheme in ((1180, "light"), (360, "dark")):
        browser.open(page, width=width, scheme=scheme)
        browser.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert browser.console() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.evaluate("document.querySelectorAll('.row').length") == 5
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        for colour, ground in (("ink", "fill"), ("muted", "fill"), ("tuned", "tuned-soft")):
            assert contrast(browser, colour, ground) >= 4.5, (scheme, colour, ground)
        assert contrast(browser, "line", "surface") >= 2.5


def test_what_is_trained_is_seen_without_colours(browser: Browser, encoded_data: Path) -> None:
    page = encoded_data / "data.html"
    page.write_text(proof_page.render(), encoding="utf-8")
    browser.open(page, width=1180, scheme="light")
    lines = {
        selector: browser.evaluate(
            f"getComputedStyle(document.querySelector('.tokens {selector}')).borderBottomStyle"
        )
        for selector in ("mark.run i", "span.run i:not([class])")
    }
    assert lines == {"mark.run i": "solid", "span.run i:not([class])": "dotted"}
    beside = "getComputedStyle(document.querySelector('mark.run'), '::before').content"
    assert browser.evaluate(beside) == '" [trained] "'


def test_the_browser_would_see_an_error_and_a_request(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('seeded')</script><img src=http://127.0.0.1:9/x.png>")
    browser.open(page, width=1180, scheme="light")
    assert browser.console()
    assert browser.requests()[1:] == ["http://127.0.0.1:9/x.png"]
