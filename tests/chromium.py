"""A headless Chromium, driven over its debugging pipe (the DevTools protocol): clicks, typing, keys, and what a page shows."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import patience

PROGRAM = next((p for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(n))), None)
FLAGS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
CONTRAST = """(() => {
  const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (colours) => {
    for (const x of colours) { c.fillStyle = x; c.fillRect(0, 0, 1, 1); }
    return light(c.getImageData(0, 0, 1, 1).data);
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || e.matches(':disabled')) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const behind = [];
    for (let p = e; p; p = p.tagName === 'DIALOG' ? null : p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const a = over(behind), b = over([...behind, getComputedStyle(e).color]);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([e.tagName, e.className, e.textContent.slice(0, 20), ratio.toFixed(2)]);
  }
  return low;
})()"""
"JavaScript for every text that stands out too little from what is behind it: below 4.5, the AA of WCAG 2."
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Chromium:
    "One tab. `events` holds what the browser has reported of it: requests, exceptions, words on the console."

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write, self.number, self.rest, self.session = read, write, 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not (more := os.read(self.read, 1 << 20)):
                raise EOFError("the browser has ended")
            self.rest += more
        one, _, self.rest = self.rest.partition(b"\0")
        return json.loads(one)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        "Send a command and wait for its result."
        self.number += 1
        sent = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        data = json.dumps(sent).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data) :]
        while (got := self.message()).get("id") != self.number:
            self.events.append(got)
        assert "error" not in got, (method, got["error"])
        return got["result"]

    def js(self, expression: str) -> Any:
        "The value of an expression in the page."
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, expression: str) -> None:
        "Wait until an expression is true."
        end = time.monotonic() + patience(6)
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def visit(self, url: str) -> None:
        "Open a page anew and wait until its table is there."
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !document.querySelector('main[aria-busy]')")

    def look(self, width: int, height: int, dark: bool = False) -> None:
        "Choose the size of the window and the colours that the reader prefers."
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[colours])

    def click(self, selector: str) -> None:
        "Click into the middle of an element, which must be what is seen there."
        x, y, there = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(), x = b.x + b.width / 2, y = b.y + b.height / 2;"
            "const top = document.elementFromPoint(x, y);"
            "return [x, y, e === top || e.contains(top) || top.contains(e)] })()"
        )
        assert there, f"{selector} is covered"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write_text(self, selector: str, text: str) -> None:
        "Click into a field and write over what is there."
        self.click(selector)
        self.js(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, label: str) -> None:
        "Choose the option of a list whose text begins so."
        self.js(
            f"(() => {{ const s = document.querySelector({selector!r});"
            f"const o = [...s.options].find((o) => o.text.startsWith({label!r}));"
            "s.value = o.value; for (const k of ['input', 'change']) s.dispatchEvent(new Event(k, {bubbles: true})) })()"
        )

    def key(self, name: str) -> None:
        "Press a key."
        code = KEYS[name]
        pressed: dict[str, Any] = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": "\r"} if name == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, file: Path) -> None:
        "Store what the window shows."
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    "Start a browser with a profile in this folder, and end it."
    assert PROGRAM
    pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for _ in range(2) for end in os.pipe()]  # the child needs 3 and 4 free
    to_read, to_write, read, write = pipes
    with subprocess.Popen(
        [PROGRAM, *FLAGS, f"--user-data-dir={folder}"], stderr=subprocess.DEVNULL, close_fds=False,
        preexec_fn=lambda: (os.dup2(to_read, 3), os.dup2(write, 4)),
    ) as process:  # fmt: skip
        os.close(to_read)
        os.close(write)
        tab = Chromium(read, to_write)
        try:
            yield tab
        finally:
            with contextlib.suppress(Exception):
                tab.session = ""
                tab.call("Browser.close")
            try:
                process.wait(patience(2))
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(read)
            os.close(to_write)
