"""A person at Open WebUI, in a headless browser: looks which models there are, chats, looks on.

Runs in the environment of `bench.open_webui`. Told on the command line (JSON): ``url``, ``browser``
(the program), ``picture`` (a file to write), ``question``, ``model`` (a part of its name). Prints
one line of JSON: ``models`` (texts of the list), ``page_s``, ``first_s`` and ``whole_s`` (from the
question on), ``steps`` (how often the answer was seen to have grown), ``text``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

from playwright.sync_api import Page, sync_playwright

#: A page of some megabytes of script, on a slow machine.
PAGE_MS: Final = 60_000
#: Until an answer has begun, and until it is whole.
ANSWER_S: Final = 60.0
#: Its answer is looked at so often.
LOOK_MS: Final = 30
#: The page moves what it shows for so long.
SETTLE_MS: Final = 700
#: What a stand-in says begins so; the question stands on the page too.
BEGINS: Final = "w0"
ANSWER: Final = "[id^=message-] .markdown-prose"


def main() -> None:
    """Do all that, and tell of it."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=told["browser"], args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        begun = time.monotonic()
        page.goto(told["url"], wait_until="load", timeout=PAGE_MS)
        page.wait_for_selector("#chat-input", timeout=PAGE_MS)
        seen: dict[str, Any] = {"page_s": time.monotonic() - begun}
        page.wait_for_timeout(SETTLE_MS)
        page.keyboard.press("Escape")  # what is new in this version
        seen["models"] = _models(page, told["model"])
        seen |= _chat(page, told["question"])
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=told["picture"])
        browser.close()
    print(json.dumps(seen))


def _models(page: Page, wanted: str) -> list[str]:
    """Return the list of models as it is shown; choose one."""
    page.locator("[id^=model-selector]").first.click()
    page.wait_for_timeout(SETTLE_MS)
    options = page.get_by_role("option")
    shown = [text.splitlines()[0] for text in options.all_inner_texts() if text]
    options.filter(has_text=wanted).first.click()
    page.wait_for_timeout(SETTLE_MS)
    return shown


def _chat(page: Page, question: str) -> dict[str, Any]:
    page.locator("#chat-input").click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    begun, first_s, text, steps = time.monotonic(), 0.0, "", 0
    while time.monotonic() - begun < ANSWER_S:
        texts = [text.strip() for text in page.locator(ANSWER).all_inner_texts()]
        shown = next((text for text in reversed(texts) if text.startswith(BEGINS)), "")
        if shown and shown != text:
            first_s = first_s or time.monotonic() - begun
            text, steps = shown, steps + 1
        is_over = page.locator("button[aria-label='Regenerate']").count() > 0
        if is_over and shown == text and text:
            break
        page.wait_for_timeout(LOOK_MS)
    return {"first_s": first_s, "whole_s": time.monotonic() - begun, "steps": steps, "text": text}


if __name__ == "__main__":
    main()
