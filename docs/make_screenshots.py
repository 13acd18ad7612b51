"""Makes the pictures of docs/people.md: `python docs/make_screenshots.py` with Chromium and Playwright installed.

Opens a place to work in a temporary folder, fills in each kind as a rater would, and writes docs/images/*.png with a
small palette, so that each stays below 80 KB.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from karat.feedback import documents
from karat.feedback.people import accounts
from karat.feedback.store import Store, open_store
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings
from karat.questions import Choice, Question
from karat.records import Prompt, Response, Task, Turn

IMAGES = Path(__file__).parent / "images"
MOST_BYTES = 80_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ASKED = "Explain why the sky is blue, for a ten-year-old."
SCATTER = """Sunlight looks white, but it is a **mix of all colours**. When it meets the air, the tiny molecules push the \
*blue* light around far more than the red.

1. Light enters the air.
2. Blue is scattered in all directions.
3. So blue reaches your eyes from everywhere.

```python
def scattering(wavelength_nm: float) -> float:
    return 1 / wavelength_nm ** 4  # Rayleigh
```"""
MIRROR = """The sky is blue because it reflects the ocean. The air works like a mirror, so that you see the colour of \
the water wherever you look.

At sunset the mirror shows the red of the earth instead."""
PHYSICS = "Because of physics.\n\nAir scatters short waves more strongly, so blue is left."
REFUSAL = "I am only a language model and cannot answer questions about the sky."
SUM = """We want the sum of the first 100 numbers.

Pair them: 1 + 100, 2 + 99, 3 + 98, and so on.

Each pair makes 101, and there are 55 pairs.

So the sum is 55 × 101 = 5,555."""
GUIDELINE = """## What we look for

A good response is **true**, *clear* and kind, in this order.

- A false statement outweighs everything else.
- Length is no virtue.
- If you cannot check a fact, say *Cannot judge*."""
EXAMPLES = "**“The sky mirrors the sea.”** False, however clear: choose the other one, *much better*."

SHOTS = {
    "comparison": (Question(principle="Prefer what a ten-year-old would understand and what is true."), (SCATTER, MIRROR), ["g", "2"]),
    "ranking": (Question(kind="ranking"), (SCATTER, MIRROR, PHYSICS, REFUSAL), ["1", "3", "2"]),
    "best_of": (Question(kind="best_of"), (SCATTER, MIRROR, PHYSICS), ["1"]),
    "rating": (
        Question(kind="rating", anchors=("not at all", "very"),
                 attributes=(Choice("true", "True", "Are the facts right?"), Choice("clear", "Clear", "Would the reader follow?"))),
        (SCATTER,), ["6"],
    ),
    "label": (Question(kind="label", flags=(Choice("unsafe", "Unsafe"), Choice("personal_data", "Personal data"))), (MIRROR,), ["2"]),
    "correction": (Question(kind="correction"), (MIRROR,), ["w"]),
    "demonstration": (Question(kind="demonstration"), (), ["w"]),
    "critique": (Question(kind="critique", aspects=(Choice("facts", "Facts"), Choice("tone", "Tone"))), (MIRROR,), ["1", "w"]),
    "span_marks": (
        Question(kind="span_marks", granularity="span", span_classes=(Choice("wrong", "Wrong or unsupported"), Choice("good", "Especially good"))),
        (MIRROR,), ["m", "ArrowRight", *["Shift+ArrowRight"] * 8, "1"],
    ),
    "step_marks": (Question(kind="step_marks", granularity="step"), (SUM,), ["3", "3", "1"]),
    "warning": (Question(content_warning="The conversation describes violence."), (PHYSICS, REFUSAL), []),
}  # fmt: skip


def main() -> None:
    """Make every picture."""
    IMAGES.mkdir(exist_ok=True)
    path = os.environ.get("KARAT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        with open_store(Path(folder) / "people.db") as store:
            url = serve(store)
            for name, (question, texts, keys) in SHOTS.items():
                account = queue(store, question, texts)
                take(browser, store, url, account, name, keys)
            account = queue(store, *SHOTS["comparison"][:2], again=True)
            take(browser, store, url, account, "phone", ["2"], viewport={"width": 360, "height": 740}, is_mobile=True)
            account = queue(store, *SHOTS["rating"][:2], again=True)
            take(browser, store, url, account, "keys", ["?"], color_scheme="dark")
        browser.close()


def serve(store: Store) -> str:
    """The address of a server of this store, which ends with the program."""
    settings = documents.ProjectSettings(
        title="Sky school", contact="Mail Mia: mia@example.org", gold_rate=0, repeat_rate=0
    )
    documents.put_settings(store, settings, now=time.time())
    documents.put_document(store, documents.GUIDELINE, "v1", {"text": GUIDELINE}, now=time.time())
    documents.put_document(store, documents.EXAMPLES, "1", {"text": EXAMPLES}, now=time.time())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(store, ServerSettings(port=port)), port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    return f"http://127.0.0.1:{port}"


def queue(store: Store, question: Question, texts: tuple[str, ...], *, again: bool = False) -> accounts.Account:
    """A new rater with one task of her own."""
    account = accounts.make_account(store, "annotator", now=time.time())
    asked = "What is 1 + 2 + … + 100?" if texts == (SUM,) else ASKED
    prompt = Prompt((Turn("user", asked),))
    responses = [Response(prompt.id, text, "policy") for text in texts]
    store.add_prompts([prompt])
    store.add_responses(responses)
    documents.add_questions(store, [question])
    task = Task(prompt.id, tuple(each.id for each in responses), kind=question.kind, question=question.id,
                reserved_for=account.annotator, batch=f"docs-{again}")  # fmt: skip
    store.add_tasks([task])
    return account


def take(
    browser: Browser, store: Store, url: str, account: accounts.Account, name: str, keys: list[str], **options
) -> None:
    """One picture of one task, with some keys pressed."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, "reduced_motion": "reduce", **options})
    page = context.new_page()
    page.goto(f"{url}/invite/{accounts.invite(store, account.id, now=time.time())}")
    page.click("main button")
    page.goto(f"{url}/work")
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_timeout(2500)  # until what was entered is saved, which the page says
    image = small_png(pixels(context.new_page(), page.screenshot()))
    assert len(image) <= MOST_BYTES, f"{name}: {len(image)} bytes"
    (IMAGES / f"{name}.png").write_bytes(image)
    print(f"{name}.png {len(image)} bytes")
    context.close()


def pixels(page: Page, png: bytes) -> np.ndarray:
    """Red, green and blue of a picture, [H, W, 3], read by the browser."""
    raw = page.evaluate(
        """async (data) => {
          const image = new Image(); image.src = data; await image.decode();
          const canvas = document.createElement("canvas"); canvas.width = image.width; canvas.height = image.height;
          const drawing = canvas.getContext("2d"); drawing.drawImage(image, 0, 0);
          const bytes = drawing.getImageData(0, 0, image.width, image.height).data; let text = "";
          for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
          return [image.width, image.height, btoa(text)];
        }""",
        "data:image/png;base64," + base64.b64encode(png).decode(),
    )
    width, height, text = raw
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(height, width, 4)[:, :, :3]


def small_png(image: np.ndarray, n_colours: int = 64) -> bytes:
    """A PNG with a palette of the most frequent colours; every other pixel takes the nearest of them."""
    height, width, _ = image.shape
    codes = (image.astype(np.uint32) * np.array([65536, 256, 1], dtype=np.uint32)).sum(2)
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, (found >> 8) & 255, found & 255], 1).astype(np.int64)
    palette = colours[np.argsort(-counts)[:n_colours]]
    nearest = ((colours[:, None] - palette[None]) ** 2).sum(2).argmin(1).astype(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), nearest[inverse].reshape(height, width)], 1)

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    body = part(b"PLTE", palette.astype(np.uint8).tobytes()) + part(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + body + part(b"IEND", b"")


if __name__ == "__main__":
    main()
