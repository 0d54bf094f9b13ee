"""The page at / in headless Chromium; skipped where there is none (Debian: apt install chromium chromium-driver)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ropebend.scaling import LayerScaling, ShorterPlan

from ..conftest import EXACT, SCALES, Server, ask, write_model

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium with chromedriver; on Debian: apt install chromium-driver"
)
HEADERS = {"Authorization": "Bearer secret"}

#: Keeps the bodies of the page's requests in window.asked.
RECORD = (
    "window.asked = []; const send = window.fetch; window.fetch = (path, options) => {"
    " if (options?.body && !path.startsWith('tokenize')) window.asked.push(JSON.parse(options.body));"
    " return send(path, options); }"
)
#: Answers chats with `deltas` instead of the server, which has no model that writes them.
PRETEND = (
    "const deltas = arguments[0], send = window.fetch;"
    "window.fetch = (path, options) => path !== 'v1/chat/completions' ? send(path, options) : Promise.resolve("
    " new Response(deltas.map(delta => 'data: ' + JSON.stringify({"
    "choices: [{index: 0, delta, finish_reason: null}]}) + '\\n\\n').join('') + 'data: [DONE]\\n\\n'))"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server")
    for flag in (*flags, "--window-size=1300,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server_with_key(start: Callable[..., Server], models: dict[str, Path]) -> Iterator[Server]:
    server = start(models["scaled"], "--api-key", "secret").wait_until_ready()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def asked_for_key(browser: WebDriver, server_with_key: Server) -> WebDriver:
    browser.get(server_with_key.url)
    return browser


@pytest.fixture(scope="module")
def connected(asked_for_key: WebDriver) -> WebDriver:
    """The page with the key; its settings are those of a first visit."""
    b = asked_for_key
    wait(b, lambda b: b.find_element(By.ID, "key").is_displayed())
    assert "No API key" in text(b, "key-text")
    b.find_element(By.ID, "key").send_keys("secret\n")
    wait(b, lambda b: text(b, "model") == "tiny-scaled")
    return b


@pytest.fixture
def page(connected: WebDriver) -> WebDriver:
    """A page just opened: no chat, no settings."""
    connected.execute_script("localStorage.clear()")
    return reopened(connected)


def reopened(b: WebDriver) -> WebDriver:
    b.refresh()
    wait(b, lambda b: text(b, "model") == "tiny-scaled")
    return b


def wait(browser: WebDriver, condition: Callable[[WebDriver], object]) -> None:
    WebDriverWait(browser, 60, poll_frequency=0.05).until(condition)


def text(browser: WebDriver, id: str) -> str:
    return browser.find_element(By.ID, id).text


def set_to(browser: WebDriver, **settings: str) -> None:
    for name, value in settings.items():
        field = browser.find_element(By.CSS_SELECTOR, f"[data-setting={name}]")
        field.clear()
        field.send_keys(value)


def choose(browser: WebDriver, mode: str) -> None:
    browser.execute_script(f"document.querySelector('[name=mode][value={mode}]').click()")


def answers(browser: WebDriver) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, ".answer")


def idle(browser: WebDriver) -> bool:
    return not browser.find_element(By.ID, "stop").is_displayed()


def say(browser: WebDriver, message: str) -> list[WebElement]:
    """Send a message; the answers to it."""
    before = len(answers(browser))
    browser.find_element(By.ID, "text").send_keys(f"{message}\n")
    wait(browser, lambda b: len(answers(b)) > before and idle(b))
    return answers(browser)[before:]


def said(answer: WebElement) -> str:
    return answer.find_element(By.CLASS_NAME, "markdown").text


def asked(browser: WebDriver) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = browser.execute_script("return window.asked")
    return found


def n_tokens(server: Server, **body: Any) -> int:
    count: int = httpx.post(f"{server.url}/tokenize", json=body, headers=HEADERS).json()["count"]
    return count


def drop(browser: WebDriver, name: str, javascript: str) -> None:
    """Drop a file on the page.  javascript: what it holds."""
    browser.execute_script(
        f"const data = new DataTransfer(); data.items.add(new File([{javascript}], arguments[0]));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))",
        name,
    )


# ---- without a browser


def test_the_page_and_all_it_loads_are_there_before_the_model_and_without_a_key() -> None:
    answer = ask("GET", "/", api_keys=["secret"])
    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    for path, kind in (("main.js", "text/javascript"), ("page.css", "text/css"), ("vendor/marked.esm.js", "text/j")):
        answer = ask("GET", f"/page/{path}", api_keys=["secret"])
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("path", ["/page/none.js", "/page/index.html", "/page/vendor", "/page/../pages.py"])
def test_there_is_nothing_else_beside_it(path: str) -> None:
    assert ask("GET", path, api_keys=["secret"]).status_code == 401
    assert ask("GET", path).status_code == 404


# ---- in the browser


@needs_chromium
def test_the_page_asks_for_the_key_only_while_it_is_missing(connected: WebDriver) -> None:
    assert not connected.find_element(By.ID, "key").is_displayed()
    reopened(connected)
    assert not connected.find_element(By.ID, "key").is_displayed()


@needs_chromium
def test_the_panel_has_a_point_for_each_layer(page: WebDriver) -> None:
    circles = page.find_elements(By.CSS_SELECTOR, ".curve circle title")
    assert [c.get_attribute("textContent") for c in circles] == [f"layer {i}: {s:g}" for i, s in enumerate(SCALES)]
    assert "1,024 tokens" in text(page, "model-facts")


@needs_chromium
def test_answers_are_side_by_side_from_one_seed_with_what_they_took(page: WebDriver, server_with_key: Server) -> None:
    page.execute_script(RECORD)
    set_to(page, max_tokens="40")
    question = "the happy dog and the little sun on the big tree"
    found = say(page, question)
    assert [a.get_attribute("data-variant") for a in found] == ["scaled", "base"]
    assert [a.find_element(By.TAG_NAME, "h2").text for a in found] == [
        "tiny-scaled scaled",
        "tiny-scaled :base, unscaled",
    ]
    assert all(said(a) for a in found)
    assert said(found[0]) != said(found[1])
    n = n_tokens(server_with_key, messages=[{"role": "user", "content": question}])
    for answer in found:
        facts = [f.text for f in answer.find_elements(By.CSS_SELECTOR, ".facts span")]
        assert facts[0].endswith("to the first token")
        assert facts[1].endswith("tokens/s")
        assert facts[2:] == [f"{n + 40} of 1,024 tokens of context", "stopped at max tokens (40)"]
    scaled, base = sorted(asked(page), key=lambda body: len(body["model"]))
    assert (scaled["model"], base["model"]) == ("tiny-scaled", "tiny-scaled:base")
    assert scaled["seed"] == base["seed"]
    wait(page, lambda b: "of 1,024 cells" in text(b, "kv-text") and not text(b, "kv-text").startswith("0 "))


@needs_chromium
def test_the_chat_scrolls_along_and_the_box_stays_in_view(page: WebDriver) -> None:
    set_to(page, max_tokens="200")
    for message in ("one", "two", "three"):
        say(page, message)
    where = "const b = document.getElementById('text').getBoundingClientRect(), log = document.getElementById('log');"
    bottom, height, below, hidden = page.execute_script(
        f"{where} return [b.bottom, innerHeight, log.scrollHeight - log.scrollTop - log.clientHeight, log.scrollTop]"
    )
    assert bottom <= height
    assert below < 60
    assert hidden > 0
    page.execute_script("document.getElementById('log').scrollTop = 0")
    wait(page, lambda b: b.find_element(By.ID, "to-end").is_displayed())
    page.find_element(By.ID, "to-end").click()
    wait(page, lambda b: not b.find_element(By.ID, "to-end").is_displayed())


@needs_chromium
def test_shift_and_enter_begin_a_new_line(page: WebDriver) -> None:
    box = page.find_element(By.ID, "text")
    box.send_keys("one", Keys.SHIFT + Keys.ENTER + Keys.NULL, "two")
    assert box.get_property("value") == "one\ntwo"
    assert answers(page) == []


@needs_chromium
@pytest.mark.parametrize("by", ["document.getElementById('stop').click()", "ESCAPE"])
def test_an_answer_can_be_stopped_and_the_chat_goes_on(page: WebDriver, server_with_key: Server, by: str) -> None:
    def cancelled() -> int:
        props = httpx.get(f"{server_with_key.url}/props", headers=HEADERS).json()
        count: int = props["requests"]["cancelled"]
        return count

    before = cancelled()
    choose(page, "scaled")
    set_to(page, max_tokens="900")
    # let the answer be long, and stop it from within the page, at its first word
    stop = by.replace("ESCAPE", "dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    page.execute_script(
        f"const o = new MutationObserver(() => {{ if (document.querySelector('.markdown')?.textContent)"
        f" {{ o.disconnect(); {stop}; }} }});"
        "o.observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true})"
    )
    (answer,) = say(page, "a dog")
    assert answer.get_attribute("data-state") == "stopped"
    assert said(answer)
    assert "stopped by you" in answer.text
    wait(page, lambda b: cancelled() == before + 1)
    set_to(page, max_tokens="5")
    (answer,) = say(page, "and on")
    assert answer.get_attribute("data-state") == "done"


@needs_chromium
def test_what_was_asked_without_comparing_is_part_of_both_chats(page: WebDriver) -> None:
    page.execute_script(RECORD)
    set_to(page, max_tokens="3", system="be brief")
    choose(page, "scaled")
    for n, message in enumerate(("one", "two", "three"), 1):
        if n == 2:
            choose(page, "both")
        assert len(say(page, message)) == (1 if n == 1 else 2)
    for variant in ("tiny-scaled", "tiny-scaled:base"):
        messages = [a["messages"] for a in asked(page) if a["model"] == variant][-1]
        assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert [m["content"] for m in messages if m["role"] == "user"] == ["one", "two", "three"]
        assert messages[0]["content"] == "be brief"
    firsts = [a["messages"][2]["content"] for a in asked(page) if len(a["messages"]) > 2]
    assert len(set(firsts)) == 1  # the answer that both go on from


@needs_chromium
def test_the_last_message_can_be_asked_again_and_changed(page: WebDriver) -> None:
    page.execute_script(RECORD)
    choose(page, "base")
    set_to(page, max_tokens="3")
    say(page, "one")
    page.find_element(By.XPATH, "//button[.='Ask again']").click()
    wait(page, lambda b: len(asked(b)) == 2 and idle(b) and b.find_elements(By.XPATH, "//button[.='Edit']"))
    assert len(answers(page)) == 1
    assert asked(page)[0]["messages"] == asked(page)[1]["messages"]
    page.find_element(By.XPATH, "//button[.='Edit']").click()
    assert answers(page) == []
    assert page.find_element(By.ID, "text").get_property("value") == "one"
    say(page, " more")
    assert asked(page)[2]["messages"] == [{"role": "user", "content": "one more"}]


@needs_chromium
def test_settings_are_remembered(page: WebDriver) -> None:
    set_to(page, system="be brief", temperature="0", seed="7")
    choose(page, "base")
    reopened(page)
    page.execute_script(RECORD)
    set_to(page, max_tokens="2")
    (answer,) = say(page, "one")
    assert answer.get_attribute("data-variant") == "base"
    (body,) = asked(page)
    assert (body["temperature"], body["seed"], body["messages"][0]["content"]) == (0, 7, "be brief")


@needs_chromium
def test_the_meter_counts_what_is_in_the_box_and_marks_the_trained_length(
    page: WebDriver, server_with_key: Server
) -> None:
    page.find_element(By.ID, "text").send_keys("the little dog")
    n = n_tokens(server_with_key, messages=[{"role": "user", "content": "the little dog"}])
    wait(page, lambda b: text(b, "meter-text") == f"{n} of 1,024 tokens, trained at 256")
    meter = page.find_element(By.ID, "meter")
    assert meter.get_attribute("aria-valuenow") == str(n)
    assert page.execute_script("return arguments[0].style.getPropertyValue('--trained')", meter) == "25%"


@needs_chromium
def test_a_dropped_text_is_counted_before_it_is_sent_and_goes_before_the_question(
    page: WebDriver, server_with_key: Server
) -> None:
    page.execute_script(RECORD)
    choose(page, "scaled")
    set_to(page, max_tokens="3")
    story = "the dog and the sun. " * 20
    drop(page, "story.txt", json.dumps(story))
    wait(page, lambda b: f"{n_tokens(server_with_key, content=story)} tokens" in text(b, "texts"))
    say(page, "who?")
    assert asked(page)[0]["messages"] == [{"role": "user", "content": f"{story}\n\nwho?"}]
    assert text(page, "texts") == ""
    assert page.find_element(By.CSS_SELECTOR, ".user summary").text.startswith("story.txt")


@needs_chromium
def test_a_long_pasted_text_becomes_one_beside_the_message_and_a_short_one_does_not(page: WebDriver) -> None:
    paste = (
        "const data = new DataTransfer(); data.setData('text/plain', 'a dog '.repeat(arguments[0]));"
        "return document.getElementById('text').dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}))"
    )
    assert page.execute_script(paste, 5) is True  # left to the browser
    assert page.execute_script(paste, 600) is False
    wait(page, lambda b: "Pasted text" in text(b, "texts") and "tokens" in text(b, "texts"))
    page.find_element(By.CSS_SELECTOR, "[aria-label='Remove Pasted text']").click()
    assert text(page, "texts") == ""


@needs_chromium
def test_what_is_no_text_is_refused(page: WebDriver) -> None:
    drop(page, "image.png", "new Uint8Array([137, 80, 78, 71, 0, 255])")
    wait(page, lambda b: "image.png is not a text" in text(b, "texts"))


@needs_chromium
def test_a_text_of_30000_tokens_is_counted_and_nothing_of_it_is_lost_where_it_does_not_fit(page: WebDriver) -> None:
    drop(page, "long.txt", "' dog'.repeat(30000)")
    wait(page, lambda b: "30,000 tokens, more than the context of 1,024" in text(b, "texts"))
    for answer in say(page, "what?"):
        assert answer.get_attribute("data-state") == "failed"
        assert "maximum context length is 1024 tokens" in answer.text
    assert "30,000 tokens" in text(page, "texts")
    wait(page, lambda b: text(b, "meter-text").startswith("30,000 of 1,024 tokens"))
    assert page.find_element(By.ID, "text").get_property("value") == "what?"


@needs_chromium
def test_an_answer_ends_where_the_context_is_full(page: WebDriver) -> None:
    choose(page, "scaled")
    set_to(page, max_tokens="5000")
    drop(page, "story.txt", "' dog'.repeat(1000)")
    (answer,) = say(page, "x")
    assert "1,024 of 1,024 tokens of context" in answer.text
    assert "stopped: the context is full" in answer.text


def needle_test(browser: WebDriver, *, length: int, expected: str, everywhere: bool = False) -> list[list[str]]:
    """Run it; the table of what was found."""
    browser.find_element(By.ID, "needle-open").click()
    for id, value in (("length", str(length)), ("fact", "The code is 4711."), ("expected", expected)):
        field = browser.find_element(By.ID, f"needle-{id}")
        field.clear()
        field.send_keys(value)
    if everywhere:
        browser.find_element(By.ID, "needle-all").click()
    browser.find_element(By.CSS_SELECTOR, "#needle .main").click()
    wait(browser, lambda b: idle(b) and "…" not in b.find_elements(By.CLASS_NAME, "needle")[-1].text)
    rows = browser.find_elements(By.CLASS_NAME, "needle")[-1].find_elements(By.CSS_SELECTOR, "tbody tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


@needs_chromium
def test_the_needle_test_hides_a_fact_at_each_depth_and_asks_both(page: WebDriver, server_with_key: Server) -> None:
    page.execute_script(RECORD)
    drop(page, "story.txt", "'The dog was happy. And the sun! '.repeat(200)")
    wait(page, lambda b: "tokens" in text(b, "texts"))
    found = needle_test(page, length=200, expected="4711", everywhere=True)
    assert found == [["✗ missed"] * 5] * 2
    bodies = asked(page)[1:]  # the first cut the text
    assert len(bodies) == 10
    assert {b["temperature"] for b in bodies} == {0}
    places = []
    for body in bodies[::2]:
        (message,) = body["messages"]
        story = message["content"].split("\n", 1)[1].rsplit("\n", 1)[0]
        before, after = story.split("The code is 4711.")
        assert abs(n_tokens(server_with_key, content=before + after) - 200) < 3
        assert before.strip() == "" or before.strip().endswith((".", "!"))
        places.append(len(before) / len(before + after))
    assert places == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.05)


@needs_chromium
def test_the_needle_test_finds_what_is_in_the_answer(page: WebDriver) -> None:
    """Without a text, so in the filler, and outside of the chat."""
    choose(page, "scaled")
    assert needle_test(page, length=100, expected="4711") == [["✗ missed"]]
    answer = said(answers(page)[0])
    assert needle_test(page, length=100, expected=answer[5:12]) == [["✓ found"]]
    page.execute_script(RECORD)
    set_to(page, max_tokens="2")
    say(page, "one")
    assert asked(page)[0]["messages"] == [{"role": "user", "content": "one"}]


@needs_chromium
def test_markdown_is_shown_as_such_and_html_as_text(page: WebDriver) -> None:
    choose(page, "scaled")
    written = (
        "# Title\n\n**bold** and `code`\n\n```python\nprint('<b>')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "<img src=x onerror='window.broken = 1'><script>window.broken = 1</script>\n\n"
        "[good](https://example.org/) [bad](javascript:window.broken=1) ![pixel](https://example.org/p.png)"
    )
    page.execute_script(PRETEND, [{"content": c} for c in written])
    (answer,) = say(page, "x")
    html = answer.find_element(By.CLASS_NAME, "markdown")
    for css, content in (("h1", "Title"), ("strong", "bold"), ("pre code", "print('<b>')"), ("td", "1")):
        assert html.find_element(By.CSS_SELECTOR, css).text == content
    assert "<script>window.broken = 1</script>" in html.text
    assert html.find_elements(By.CSS_SELECTOR, "img, script") == []
    links = [a.get_attribute("href") for a in html.find_elements(By.CSS_SELECTOR, "a[href]")]
    assert links == ["https://example.org/"]
    assert page.execute_script("return window.broken") is None


@needs_chromium
def test_thinking_is_folded(page: WebDriver) -> None:
    choose(page, "scaled")
    page.execute_script(PRETEND, [{"reasoning_content": "hm, "}, {"reasoning_content": "well"}, {"content": "yes"}])
    (answer,) = say(page, "x")
    assert said(answer) == "yes"
    thoughts = answer.find_element(By.CLASS_NAME, "thinking")
    assert thoughts.get_attribute("open") is None
    assert thoughts.find_element(By.TAG_NAME, "div").get_attribute("textContent") == "hm, well"


@needs_chromium
def test_plans_by_length_can_be_seen_and_answers_tell_theirs(
    page: WebDriver, server_with_key: Server, start: Callable[..., Server], tmp_path: Path
) -> None:
    factors = tuple(1 + i / 10 for i in range(len(SCALES)))
    scaling = LayerScaling(SCALES, "llama", layer_attn_factor=factors, shorter=(ShorterPlan(96, None),))
    server = start(write_model(tmp_path / "by-length.gguf", scaling), *EXACT).wait_until_ready()
    page.get(server.url)
    try:
        wait(page, lambda b: text(b, "model") == "by-length")
        labels = [c.get_attribute("aria-label") or "" for c in page.find_elements(By.CSS_SELECTOR, ".curve")]
        assert [label.partition(" from ")[0] for label in labels] == ["Scale", "Attention factor"]
        select = Select(page.find_element(By.CSS_SELECTOR, "#curves select"))
        assert [o.text for o in select.options] == ["plan up to 96 tokens (unscaled)", "plan beyond 96 tokens"]
        select.select_by_index(0)
        assert page.find_elements(By.CSS_SELECTOR, ".curve") == []
        set_to(page, max_tokens="5", temperature="0")
        short, base = say(page, "x")
        assert "plan up to 96 tokens (unscaled)" in short.text
        assert said(short) == said(base)
        long, base = say(page, "the dog " * 60)
        assert "plan beyond 96 tokens" in long.text
        assert "plan" not in base.text
    finally:
        page.get(server_with_key.url)
    assert server.stop() == 0


@needs_chromium
def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: WebDriver) -> None:
    set_to(page, max_tokens="20")
    size = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        reopened(page)
        say(page, "the happy dog")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        first, second = answers(page)
        assert second.location["y"] >= first.location["y"] + first.size["height"]
        for id in ("send", "attach", "needle-open", "panel-open", "new"):
            box = page.find_element(By.ID, id).rect
            assert 0 <= box["x"] <= box["x"] + box["width"] <= 360, id
            assert 0 <= box["y"] <= box["y"] + box["height"] <= 700, id
        page.find_element(By.ID, "panel-open").click()
        assert page.find_element(By.ID, "panel").is_displayed()
        page.find_element(By.ID, "panel-close").click()
        assert not page.find_element(By.ID, "panel").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_chromium
def test_a_key_that_is_no_longer_right_is_asked_for_again(page: WebDriver) -> None:
    page.execute_script("sessionStorage.setItem('ropebend-key', 'wrong')")
    page.refresh()
    wait(page, lambda b: "Incorrect API key" in text(b, "key-text"))
    page.find_element(By.ID, "key").send_keys("secret\n")
    wait(page, lambda b: text(b, "model") == "tiny-scaled")
    assert not page.find_element(By.ID, "key").is_displayed()


@needs_chromium
def test_the_browser_had_nothing_to_complain_about(page: WebDriver) -> None:
    severe = [e["message"] for e in page.get_log("browser") if e["level"] == "SEVERE"]
    assert [m for m in severe if "Failed to load resource" not in m] == []  # what the tests above had refused
