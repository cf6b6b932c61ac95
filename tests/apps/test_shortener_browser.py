"""The web page in a real browser, with and without JavaScript. Skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

import kvstore
from kvstore.apps.shortener.app import create_app
from kvstore.apps.shortener.options import ShortenerOptions

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("shortener"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]
UNLABELLED = """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]
    .filter(each => !each.labels.length).map(each => each.outerHTML)"""
CONTRAST = """() => {
    const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const back = each => { for (; each; each = each.parentElement) {
        const colour = getComputedStyle(each).backgroundColor;
        if (!colour.endsWith(', 0)')) return colour; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('h1, h2, p, a, label, small, button, strong')]
        .filter(each => each.checkVisibility() && !each.classList.contains('skip')).map(each => {
            const [a, b] = [light(getComputedStyle(each).color), light(back(each))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML]; })
        .filter(([ratio]) => ratio < 4.5); }"""


@pytest.fixture
async def base(free_port: Callable[[], int]) -> AsyncIterator[str]:
    """A service, by its address."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    async with kvstore.local_cluster(nodes=3, partitions=16) as kv:
        app = create_app(kv, ShortenerOptions(base_url=base, flush_s=0.05), keys={})
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            yield base
            server.should_exit = True


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as tools:
        browser = await tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


async def shortened(page: Page, base: str, alias: str) -> None:
    await page.goto(base)
    await page.get_by_label("Address to shorten").fill("https://example.com/a/long/path")
    await page.get_by_label("Alias").fill(alias)
    await page.get_by_role("button", name="Shorten").click()
    await page.wait_for_url(f"{base}/links/{alias}")


async def clicked(context: BrowserContext, address: str, times: int) -> None:
    for _ in range(times):
        answer = await context.request.get(address, max_redirects=0)
        assert answer.status == 302


async def test_the_main_flow_works_without_javascript(browser: Browser, base: str) -> None:
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await shortened(page, base, "no-script")
    assert await page.get_by_label("Short link").input_value() == f"{base}/no-script"
    assert await page.get_by_role("button", name="Copy").count() == 0
    await page.get_by_role("img", name="QR code of").wait_for()
    await clicked(context, f"{base}/no-script", 3)
    async with asyncio.timeout(5):
        while await page.locator("#total").inner_text() != "3":
            await page.reload()
    assert await page.get_by_role("img", name="Last 30 days: 3 clicks").count() == 1
    await page.get_by_role("link", name="Preview page").click()
    assert await page.locator("#target").inner_text() == "https://example.com/a/long/path"
    await page.goto(base)
    await page.get_by_role("link", name=f"{base}/no-script").click()
    await page.get_by_role("button", name="Delete this link").click()
    await page.get_by_text("None yet.").wait_for()
    await page.get_by_label("Address to shorten").fill("http://localhost/")
    await page.get_by_role("button", name="Shorten").click()
    assert "not allowed" in await page.get_by_role("alert").inner_text()
    assert await page.get_by_label("Address to shorten").input_value() == "http://localhost/"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_are_labelled_readable_and_load_nothing_foreign(
    browser: Browser, base: str, scheme: str
) -> None:
    context = await browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(base) else complaints.append(asked.url))
    await shortened(page, base, "readable")
    await page.get_by_role("button", name="Copy").click()
    await page.get_by_text("Copied.").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == f"{base}/readable"
    for path in ("/", "/links/readable", "/readable+"):
        await page.goto(base + path)
        assert await page.evaluate(UNLABELLED) == []
        assert await page.evaluate(CONTRAST) == []
        assert await page.locator("h1").count() == 1
        assert await page.locator("html").get_attribute("lang") == "en"
    await page.goto(base)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert complaints == []


async def test_the_charts_are_live(browser: Browser, base: str) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    await shortened(page, base, "lively")
    assert await page.locator("#total").inner_text() == "0"
    assert await page.locator("svg").count() == 0
    await clicked(context, f"{base}/lively", 4)
    await page.get_by_role("img", name="Last 48 hours: 4 clicks").wait_for()
    await page.get_by_text("Last 48 hours as a table").click()
    await page.get_by_label("Short link").focus()
    await clicked(context, f"{base}/lively", 1)
    await page.get_by_role("img", name="Last 48 hours: 5 clicks").wait_for()
    assert await page.locator("details[open]").count() == 1, "what was opened stays open"
    assert await page.get_by_role("row", name="direct").count() == 1


async def test_a_narrow_screen_needs_no_scrolling_sideways(browser: Browser, base: str) -> None:
    context = await browser.new_context(viewport={"width": 320, "height": 640})
    page = await context.new_page()
    await shortened(page, base, "an-alias-that-is-as-long-as-aliases-may-be-0123456789-0123456789"[:64])
    address = page.url
    await clicked(context, address.replace("/links/", "/"), 1)
    await page.get_by_role("img", name="Last 48 hours: 1 click").wait_for()
    for path in (address, base, f"{address.replace('/links/', '/')}+"):
        await page.goto(path)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, path


async def test_the_checks_of_the_page_would_notice(browser: Browser) -> None:
    page = await browser.new_page()
    await page.set_content('<p style="color: #aaa; background: #fff">pale</p><input name="nameless">')
    assert len(await page.evaluate(CONTRAST)) == 1
    assert len(await page.evaluate(UNLABELLED)) == 1
