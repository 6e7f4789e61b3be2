"""A headless Chromium that tests drive through its DevTools protocol, with real clicks and keys."""

import asyncio
import base64
import itertools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE_S = 60.0
READY = "document.documentElement.dataset.ready === '1'"  # of a report or comparison
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """One tab: what it is told to do, and what it said and asked for meanwhile."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            told = await self._socket.receive_json(timeout=PATIENCE_S)
            if told.get("id") == number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told["method"], told["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    async def open(
        self, path: Path | str, width: int = 1100, height: int = 900, *, dark: bool = False
    ) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.size(width, height)
        await self.scheme("dark" if dark else "light")
        await self.call("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        await self.until("document.readyState === 'complete'")

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    async def scheme(self, value: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": value}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def value(self, expression: str) -> Any:
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await self.value(expression):
            assert time.monotonic() < deadline, (expression, self.complaints)
            await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        """Click on an element, wherever it has moved to while plots are drawn around it."""
        found = f"document.querySelector({selector!r})"
        await self.value(
            "window.isHit = false;"
            f"{found}.addEventListener('click', () => {{ window.isHit = true }}, {{once: true}})"
        )
        deadline = time.monotonic() + PATIENCE_S
        while not await self.value("window.isHit"):
            assert time.monotonic() < deadline, (selector, self.complaints)
            x, y = await self._resting_place(found)
            for kind in ("mousePressed", "mouseReleased"):
                await self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
                )

    async def _resting_place(self, found: str) -> tuple[float, float]:
        """The middle of an element in view, once it stays where it is."""
        before: tuple[float, float] | None = None
        while True:
            await self.value(f"{found}.scrollIntoView({{block: 'center', inline: 'center'}})")
            x, y = await self.value(
                f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())"
            )
            if (x, y) == before:
                return x, y
            before = (x, y)
            await asyncio.sleep(0.1)  # several frames

    async def write(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int, text: str = "") -> None:
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            sent = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            await self.call(
                "Input.dispatchKeyEvent", type=kind, **sent, **(more if kind == "keyDown" else {})
            )

    async def picture(self, path: Path) -> None:
        told = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A browser with a profile of its own, ended with all its processes.

    Args:
        profile: folder that it may write to.
    """
    assert BROWSER is not None
    log = (profile.with_suffix(".log")).open("wb")
    process = await asyncio.create_subprocess_exec(
        BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            address = tabs[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        log.close()


async def _port(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline, "chromium did not start"
        await asyncio.sleep(0.05)
    return int(path.read_text().split()[0])


def seen(folder: Path, look: Callable[[Page], Awaitable[None]]) -> None:
    async def go() -> None:
        async with browser(folder / "profile") as page:
            await look(page)

    asyncio.run(go())


async def drawn(page: Page) -> None:
    """Scroll through the page as a reader does, until each plot has been in view."""
    await page.until(READY)
    for place in range(await page.value("document.querySelectorAll('figure').length")):
        figure = f"document.querySelectorAll('figure')[{place}]"
        await page.value(f"{figure}.scrollIntoView({{block: 'center'}})")
        await page.until(f"{figure}.classList.contains('drawn')")
