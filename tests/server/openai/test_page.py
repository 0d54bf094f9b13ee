"""The page at / in headless Chromium; skipped where there is none (Debian: apt install chromium chromium-driver)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import SCALES, Server

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium with chromedriver; on Debian: apt install chromium-driver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser: WebDriver, start: Callable[..., Server], models: dict[str, Path]) -> Iterator[WebDriver]:
    server = start(models["scaled"], "--api-key", "secret").wait_until_ready()
    browser.get(server.url)
    yield browser
    assert server.stop() == 0


def wait(browser: WebDriver, condition: Callable[[WebDriver], object]) -> None:
    WebDriverWait(browser, 60).until(condition)


def text(browser: WebDriver, id: str) -> str:
    return browser.find_element(By.ID, id).text


def test_the_page_asks_for_the_key(page: WebDriver) -> None:
    wait(page, lambda b: "No API key" in text(b, "model"))
    key = page.find_element(By.ID, "key")
    key.send_keys("secret\t")
    wait(page, lambda b: text(b, "model").startswith("tiny-scaled, context 1024 tokens (trained at 256)"))


def test_the_curve_has_a_point_for_each_layer(page: WebDriver) -> None:
    circles = page.find_elements(By.CSS_SELECTOR, "#curve circle title")
    assert [c.get_attribute("textContent") for c in circles] == [f"layer {i}: {s:g}" for i, s in enumerate(SCALES)]


def test_answers_are_streamed_side_by_side(page: WebDriver) -> None:
    page.find_element(By.ID, "compare").click()
    for id, value in (("temperature", "0"), ("max_tokens", "40")):
        field = page.find_element(By.ID, id)
        field.clear()
        field.send_keys(value)
    page.find_element(By.ID, "text").send_keys("the happy dog and the little sun on the big tree\n")
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".assistant[data-done]")) == 2)
    answers = page.find_elements(By.CSS_SELECTOR, ".assistant")
    names = [a.find_element(By.CLASS_NAME, "who").text for a in answers]
    assert names == ["tiny-scaled", "tiny-scaled:base"]
    texts = [a.text.split("\n", 1)[1] for a in answers]
    assert all(texts)
    assert texts[0] != texts[1]


def test_slots_and_cache_are_shown(page: WebDriver) -> None:
    wait(page, lambda b: "of 1024 cells" in text(b, "kv_text") and not text(b, "kv_text").startswith("0 "))
    assert "of 16 busy" in text(page, "slots_text")


def test_an_answer_can_be_stopped_and_the_chat_goes_on(page: WebDriver) -> None:
    page.find_element(By.ID, "new").click()
    assert page.find_elements(By.CLASS_NAME, "message") == []
    page.find_element(By.ID, "compare").click()  # one answer is enough
    field = page.find_element(By.ID, "max_tokens")
    field.clear()
    field.send_keys("900")
    # let the answer be long, and stop it from within the page, at its first word
    page.execute_script(
        "new MutationObserver(() => document.querySelector('.assistant span:nth-child(2)')?.textContent"
        " && document.getElementById('stop').click())"
        ".observe(document.getElementById('chat'), {subtree: true, childList: true})"
    )
    page.find_element(By.ID, "text").send_keys("a dog\n")
    wait(page, lambda b: any("(stopped)" in a.text for a in b.find_elements(By.CLASS_NAME, "assistant")))
    wait(page, lambda b: b.find_element(By.ID, "send").is_enabled())
    (answer,) = page.find_elements(By.CLASS_NAME, "assistant")
    _, said, stopped = answer.find_elements(By.TAG_NAME, "span")
    assert said.text
    assert stopped.text.strip() == "(stopped)"
    assert answer.get_attribute("data-done") is None
    cancelled = "fetch('props', {headers: headers()}).then(r => r.json()).then(p => p.requests.cancelled)"
    wait(page, lambda b: b.execute_async_script(f"{cancelled}.then(arguments[0])") == 1)


def test_what_was_asked_without_comparing_is_part_of_both_chats(page: WebDriver) -> None:
    """The page's requests are recorded, and the observer that stops answers is gone with the reload."""
    page.refresh()
    wait(page, lambda b: b.find_element(By.ID, "compare").is_enabled())
    page.execute_script(
        "window.asked = []; const send = window.fetch; window.fetch = (path, options) => {"
        " if (options.body) window.asked.push(JSON.parse(options.body)); return send(path, options); }"
    )
    field = page.find_element(By.ID, "max_tokens")
    field.clear()
    field.send_keys("3")
    for n, text in enumerate(("one", "two", "three"), 1):
        if n == 2:
            page.find_element(By.ID, "compare").click()
        page.find_element(By.ID, "text").send_keys(f"{text}\n")
        wait(page, lambda b, n=n: len(b.find_elements(By.CSS_SELECTOR, ".assistant[data-done]")) == 2 * n - 1)
        wait(page, lambda b: b.find_element(By.ID, "send").is_enabled())
    asked = page.execute_script("return window.asked")
    for variant in ("tiny-scaled", "tiny-scaled:base"):
        messages = [a["messages"] for a in asked if a["model"] == variant][-1]
        assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant", "user"]
        assert [m["content"] for m in messages[::2]] == ["one", "two", "three"]
    firsts = [a["messages"][1]["content"] for a in asked if len(a["messages"]) > 1]
    assert len(set(firsts)) == 1  # the answer that both go on from


def test_the_browser_had_nothing_to_complain_about(page: WebDriver) -> None:
    severe = [e["message"] for e in page.get_log("browser") if e["level"] == "SEVERE"]
    assert [m for m in severe if "401" not in m] == []
