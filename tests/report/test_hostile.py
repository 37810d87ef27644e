"""Model output is hostile: it is shown, and never run."""

from __future__ import annotations

from report_rows import credit, row

from tokencredit.report import figures

SHOWN = {
    "</script><script>window.pwned=1</script>": "</script><script>window.pwned=1</script>",
    "<!--<script>": "<!--<script>",
    "<img src=x onerror=window.pwned=1>": "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>": "<svg/onload=window.pwned=1>",
    '" onmouseover="window.pwned=1': '" onmouseover="window.pwned=1',
    "<iframe srcdoc='<script>top.pwned=1</script>'>": "<iframe srcdoc='<script>top.pwned=1</script>'>",
    '<meta http-equiv="refresh" content="0;url=https://example.org">': (
        '<meta http-equiv="refresh" content="0;url=https://example.org">'
    ),
    "<link rel=stylesheet href=https://example.org/x.css>": "<link rel=stylesheet href=https://example.org/x.css>",
    "</style><style>*{display:none}</style>": "</style><style>*{display:none}</style>",
    "javascript:window.pwned=1": "javascript:window.pwned=1",
    "{{ 7 * 7 }}": "{{ 7 * 7 }}",
    "${7*7}": "${7*7}",
    "&lt;b&gt;": "&lt;b&gt;",
    "\u202egnp.exe": "⟨U+202E⟩gnp.exe",
    "\u2066x\u2069": "⟨U+2066⟩x⟨U+2069⟩",
    "\u200b": "⟨U+200B⟩",
    "\ufeff": "⟨U+FEFF⟩",
    "\u3164": "⟨U+3164⟩",
    "\u2800": "⟨U+2800⟩",
    "\u034f": "⟨U+034F⟩",
    "❤\ufe0f": "❤⟨U+FE0F⟩",
    "\u0301": "◌\u0301",
    "\u2028": "⟨U+2028⟩",
    "\u00a0": "⟨U+00A0⟩",
    "\ud83d": "⟨U+D83D⟩",
    "\udc00x": "⟨U+DC00⟩x",
    "\x00\x1b[31m": "⟨U+0000⟩⟨U+001B⟩[31m",
    "\r\n": "⟨U+000D⟩⏎\n",
    "\t": "⇥",
    "Ġthe": "Ġthe",
    "🙂": "🙂",
    "": "∅",
    "__proto__": "__proto__",
    "שלום": "שלום",
}


def of_each_token(tab, asked):
    return tab.locator("#panes .pane").first.locator(".t").evaluate_all(f"all => all.map(t => t.{asked})")


def attacked(tab):
    return tab.evaluate("window.pwned !== undefined || document.querySelectorAll('img, iframe, script').length !== 2")


def test_hostile_tokens_are_shown_and_nothing_runs(visit):
    tokens = list(SHOWN)
    n = len(tokens)
    hostile = row(
        tokens=tokens,
        prompt="".join(tokens),
        source=tokens[0],
        credit={tokens[1]: credit([1.0] * n, [1.0] * n), tokens[2]: credit([0.5] * n)},
    )
    charts = [
        figures.lines(
            tokens[0], tokens[1], tokens[2], {tokens[3]: [[0, 1], [1, 2]], tokens[4]: [[0, 1]]}, note=tokens[5]
        ),
        figures.intervals(tokens[2], tokens[2], [figures.interval(tokens[2], 0.5, 0.4, 0.6)]),
        figures.matrix(tokens[2], tokens, tokens, [[0.5] * n] * n, names=True),
        figures.table(tokens[2], tokens, [tokens]),
    ]
    tab = visit(
        title=tokens[0],
        facts=[(tokens[1], tokens[2])],
        traces=[hostile, row()],
        fragment="#trace=0",
        groups=[figures.group("g", tokens[0], charts)],
    )
    assert tab.locator("#panes .pane").first.locator(".t").evaluate_all("all => all.map(t => t.textContent)") == list(
        SHOWN.values()
    )
    assert not attacked(tab)
    for span in range(n):
        tab.locator("#panes .t").nth(span).dispatch_event("pointerover")
    for summary in tab.locator("summary").all():
        summary.click()
    tab.get_by_role("button", name=tokens[2], exact=True).click()
    tab.get_by_label("search").fill(tokens[0].lower())
    with tab.expect_download():
        tab.get_by_role("button", name="Trace as SVG").click()
    with tab.expect_download():
        tab.get_by_role("button", name="as PNG").click()
    tab.reload()
    tab.wait_for_selector("body[data-ready]")
    assert {tokens[1], tokens[2]} < set(tab.locator("#panes figcaption strong").all_text_contents())
    assert not attacked(tab)
    assert tab.locator("h1").text_content() == tokens[0]


def test_a_prompt_is_shown_whole(visit):
    tab = visit(traces=[row(prompt="word " * 2000)])
    assert tab.locator("#prompt").text_content() == "word " * 2000


def test_right_to_left_letters_stay_in_their_token(visit):
    tab = visit(traces=[row(tokens=["abc", "שלום", "def", "عربي", "ghi"])])
    lefts = (
        tab.locator("#panes .pane")
        .first.locator(".t")
        .evaluate_all("all => all.map(t => t.getBoundingClientRect().left)")
    )
    assert lefts == sorted(lefts)


def test_a_megabyte_in_one_token_is_cut_on_the_page_and_whole_in_the_data(visit):
    tab = visit(
        traces=[row(tokens=["x" * 1_000_000, "=7", "x" * 299 + "🙂🙂", "🙂" * 200, "🙂" * 301])],
        fragment="#methods=atpo",
    )
    shown = of_each_token(tab, "textContent")
    assert shown[0] == "x" * 300 + "… (1,000,000 characters)"
    assert shown[2] == "x" * 299 + "🙂… (303 characters)"
    assert shown[3] == "🙂" * 200
    assert shown[4] == "🙂" * 300 + "… (602 characters)"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_policy_of_the_page_lets_nothing_else_run(visit):
    tab = visit(traces=[row()])
    tab.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.pwned = 1';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.pwned=1">');
            document.body.insertAdjacentHTML('beforeend', '<img src="https://example.org/a.png">');
        }"""
    )
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.pwned") is None
    assert len(visit.trouble) >= 3
    assert all("Content Security Policy" in said for said in visit.trouble if not said.startswith("https:"))
    visit.trouble.clear()
