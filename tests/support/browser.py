"""A page in headless Chromium, over its DevTools protocol: what it loads, what it complains of, what keys do."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.waiting import PATIENCE

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Page:
    """One tab. requests: every URL that was asked for; complaints: what the console says, and exceptions."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._count = socket, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE)
            if message.get("id") == self._count:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.complaints.append(str(said["args"]))
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "char", "keyUp") if key == "Enter" else ("rawKeyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    async def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.run(condition):
                await asyncio.sleep(0.1)

    async def picture(self, width: int, path: Path) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        whole = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(whole["data"]))


async def port_in(log: Path, browser: subprocess.Popen[bytes]) -> str:
    """Where the browser listens, once it has said so."""
    async with asyncio.timeout(PATIENCE):
        while not (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace"))):
            assert browser.poll() is None, log.read_text(errors="replace")
            await asyncio.sleep(0.1)
    return found[1]


async def address_of_the_tab(session: aiohttp.ClientSession, port: str) -> str:
    """The browser listens before it has one."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                for tab in await answer.json():
                    if tab["type"] == "page":
                        return str(tab["webSocketDebuggerUrl"])
            await asyncio.sleep(0.1)


@asynccontextmanager
async def opened(file: Path, profile: Path) -> AsyncIterator[Page]:
    """The file in a fresh browser, loaded."""
    assert PROGRAM is not None, "needs Chromium (Debian: apt-get install chromium)"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    options.append("--disable-dev-shm-usage")  # of which containers have little
    command = [PROGRAM, *options, f"--user-data-dir={profile}", "about:blank"]
    log = profile.with_suffix(".log")
    with log.open("w") as stderr:
        browser = subprocess.Popen(command, stderr=stderr)
    try:
        port = await port_in(log, browser)
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(await address_of_the_tab(session, port), max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=file.as_uri())
                await page.wait(f"document.readyState === 'complete' && location.href.startsWith({file.as_uri()!r})")
                yield page
    finally:
        browser.terminate()
        browser.wait(timeout=PATIENCE)


async def troubles(file: Path, profile: Path) -> list[str]:
    """What is wrong with a page that is to need nothing else: images, width, what it asks for, what it complains of."""
    async with opened(file, profile) as page:
        blank = await page.run("[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)")
        spare = await page.run("document.documentElement.clientWidth - document.documentElement.scrollWidth")
        wide = [] if spare >= 0 else [f"{-spare} pixels wider than the window"]
        outside = [url for url in page.requests if not url.startswith(("file:", "data:"))]
        return [*blank, *wide, *outside, *page.complaints]
