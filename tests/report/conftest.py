"""A real browser, and pages to open in it from disk."""

from __future__ import annotations

import os
import shutil
from urllib.parse import quote

import pytest
from playwright.sync_api import sync_playwright

from tokencredit.report.page import Page, write_page

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def chromium():
    found = (os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    path = next(filter(None, found), None)
    if path is None:
        missing = "no Chromium: install Debian's package chromium, or name one in the variable CHROMIUM"
        pytest.fail(missing) if "CI" in os.environ else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a file, or a page made of what it is given. Behind the test: nothing was asked of the network, nothing
    failed, no dialog opened."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    trouble = []

    def visit(path=None, fragment="", *, ready=True, **parts):
        if path is None:
            made = {"title": "a page", "facts": [("task", "gather")], "traces": [], "groups": [], **parts}
            path = write_page(Page(**made), tmp_path)
        tab = context.new_page()
        tab.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on(
            "request", lambda r: trouble.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
        )
        tab.goto(f"file://{quote(str(path))}{fragment}")
        if ready:
            tab.wait_for_selector("body[data-ready]")
        return tab

    visit.trouble = trouble
    visit.context = context
    yield visit
    context.close()
    assert trouble == []
