"""The explorer in a browser: every control is used, the console is silent, and nothing is asked of a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from experiments.explore.desk import ExploreConfig
from tests.experiments.browser import Browser, browser

WHY = (
    "the page needs the extra explore, which the test tools lack: gradio wants pillow < 13, constraints.txt has 13; "
    "pip install 'tdistill[explore]' runs these tests"
)
pytest.importorskip("gradio", reason=WHY)
pytestmark = pytest.mark.long
IDLE = "explore.doing === null && explore.waiting.length === 0"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def called() -> Iterator[list[str]]:
    """Hosts that this process, which serves the page, connects to."""
    found = list[str]()
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        found.append(str(address[0]) if isinstance(address, tuple) else "127.0.0.1")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield found


@pytest.fixture(scope="module")
def page(called: list[str]) -> Iterator[str]:
    """Where a table teacher with a random student is served."""
    from experiments.explore.app import serve

    config = ExploreConfig(teacher="table:toy", students=("tiny",), top_p=0.8, gamma=0.9, max_new_tokens=6, port=0)
    app, address = serve(config, wait=False)
    yield address
    app.close()


def opened(chromium: Browser, address: str, width: int = 1280, theme: str = "light") -> None:
    chromium.open(address, width, theme=theme)
    chromium.wait("document.querySelector('#x-board .board')", 300)


def click(chromium: Browser, what: str) -> None:
    chromium.run(f"document.querySelector({what!r}).click()")
    chromium.wait(IDLE)


def reply(chromium: Browser) -> str:
    return str(chromium.run("document.querySelector('.text .reply').innerText"))


def silent(chromium: Browser) -> None:
    """Nothing was complained about, and nothing asked of anyone but this machine."""
    assert chromium.console == []
    hosts = {urlsplit(url).hostname for url in chromium.asked if not url.startswith(("data:", "blob:"))}
    assert hosts <= {"127.0.0.1"}


def test_every_control_does_what_it_says(chromium: Browser, page: str) -> None:
    opened(chromium, f"{page}?prompt=1")
    click(chromium, '.cand[data-token="3"]')
    assert reply(chromium).strip() == "3"
    chromium.press("1")
    chromium.wait(IDLE)
    assert reply(chromium).split() == ["3", "3"], "the key 1 takes the first candidate"
    chromium.press("u")
    chromium.press("Backspace")
    chromium.wait(IDLE)
    assert reply(chromium).strip() == "" and chromium.run("document.querySelectorAll('.dot').length") == 3
    click(chromium, '[data-do="step"]')
    click(chromium, '[data-do="end"]')
    click(chromium, '[data-do="compare"]')
    assert chromium.run("document.querySelectorAll('.side').length") == 2
    click(chromium, '[data-do="enter"]')
    click(chromium, ".home")
    chromium.run("document.querySelector('.dot:last-of-type').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    chromium.wait(IDLE)
    click(chromium, ".home")
    click(chromium, '[data-do="play"]')
    chromium.wait("document.querySelector('.board').dataset.busy === 'false' && document.querySelector('.tok')")
    for name, value, shown in (("top_p", "0.5", "0.50"), ("alpha", "0.5", "0.50"), ("gamma", "0.8", "0.80")):
        slider = f"document.querySelector('#x-{name}')"
        chromium.run(f"{slider}.value = {value}; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
        chromium.run(f"{slider}.dispatchEvent(new Event('change', {{bubbles: true}}))")
        chromium.wait(f"{IDLE} && {slider}.nextElementSibling.value === '{shown}'")
    assert "alpha=0.5" in chromium.run("location.search")
    click(chromium, '[data-do="learn"]')
    click(chromium, '[data-do="pause"]')
    assert "updates" in chromium.run("document.querySelector('.board').innerText")
    click(chromium, '[data-do="forget"]')
    click(chromium, "#x-theme")
    silent(chromium)


def test_what_is_wrong_is_said_and_a_reload_goes_on(chromium: Browser, page: str) -> None:
    opened(chromium, f"{page}?prompt=2&reply={quote('2 3')}")
    assert reply(chromium).split() == ["2", "3"], "a report's reply is entered by its address"
    for prompt, says in (("", "The prompt is empty"), ("hello", "is no text of 'toy'")):
        chromium.run(f"document.querySelector('#x-prompt').value = {prompt!r}")
        chromium.run("document.querySelector('form.ask').requestSubmit()")
        chromium.wait(f"document.querySelector('.message')?.innerText.includes({says!r})")
    chromium.run("document.querySelector('.more').open = true; document.querySelector('#x-student').value = 'tinny'")
    chromium.run("document.querySelector('form.student').requestSubmit()")
    chromium.wait("document.querySelector('.message')?.innerText.includes('did you mean tiny')")
    assert reply(chromium).split() == ["2", "3"]
    opened(chromium, str(chromium.run("location.href")))
    assert reply(chromium).split() == ["2", "3"]
    silent(chromium)


def test_the_server_calls_nobody(page: str, called: list[str]) -> None:
    """No telemetry and no look for newer versions: not even the attempt."""
    assert called and set(called) <= {"127.0.0.1", "localhost", "::1"}


def test_the_guard_stands_before_the_page(page: str) -> None:
    """Nothing of this machine's files, no upload, no request of megabytes, no other site's name."""
    import httpx2

    with httpx2.Client(trust_env=False, base_url=page, timeout=30.0) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert client.post("/gradio_api/upload", files={"files": ("x", b"x")}).status_code == 403
        assert client.post("/gradio_api/queue/join", json={"data": ["x" * 2**21]}).status_code == 413
        for path in ("/etc/passwd", str(Path(__file__))):
            assert client.get(f"/gradio_api/file={path}").status_code == 403


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_telephone_is_wide_enough_and_text_is_readable(chromium: Browser, page: str, theme: str) -> None:
    """At 360 px nothing is wider than the window; ink on paper has a contrast of 7 : 1, the softest text 4.5 : 1."""
    opened(chromium, f"{page}?prompt=1", 360, theme)
    click(chromium, '[data-do="compare"]')
    assert chromium.run("document.documentElement.scrollWidth") <= 360
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    ink, soft, paper = (chromium.run(f"{style}('--{name}')") for name in ("ink", "soft", "panel"))
    assert contrast(ink, paper) >= 7 and contrast(soft, paper) >= 4.5
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 27)"
    )
    silent(chromium)


def contrast(one: str, other: str) -> float:
    """Contrast of two colours #rrggbb, by WCAG 2: (L₁ + .05) / (L₂ + .05).

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    lights = sorted((_luminance(one.strip()), _luminance(other.strip())), reverse=True)
    return (lights[0] + 0.05) / (lights[1] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
