"""A real headless Chromium, driven over its own DevTools pipe: no driver, no further package."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One tab of a browser with an empty profile."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self.ours_out = os.pipe()
        self.ours_in, theirs_out = os.pipe()
        # Chromium reads 3 and writes 4; copies above 9 cannot be in the way of these two
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        start = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends, stderr=subprocess.DEVNULL)
        for fd in (*ends, theirs_in, theirs_out):
            os.close(fd)
        self.buffer, self.number, self.session, self.complaints = b"", 0, None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target,
                                 flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self.process.kill()
        self.process.wait()
        os.close(self.ours_in)
        os.close(self.ours_out)

    def send(self, method: str, **params) -> dict:
        """One command of the DevTools protocol, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.ours_out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]

    def _next(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.ours_in], [], [], 60)[0], "the browser says nothing"
            self.buffer += os.read(self.ours_in, 1 << 20)
        line, _, self.buffer = self.buffer.partition(b"\0")
        said = json.loads(line)
        if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(said["params"]))
        return said

    def open(self, url: str) -> None:
        """Go to a page, without waiting for it."""
        self.send("Page.navigate", url=url)

    def run(self, code: str):
        """The value of an expression of JavaScript."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True,
                          returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 30):
        """Wait until the expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, (code, self.run("document.body.innerText"))
            time.sleep(0.03)
        return value

    def key(self, name: str) -> None:
        """Press a key, as a person does."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name.removeprefix("Digit"),
                      code=name, windowsVirtualKeyCode=KEYS.get(name) or ord(name[-1]))

    def type(self, text: str) -> None:
        """Put text where the cursor is."""
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element."""
        x, y = self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Size of the window and colour scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
