"""The page does what a person asks of it, opened from disk in a real browser."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from random import Random

import pytest
from report_rows import credit, row, wrong

from tokencredit.report import figures
from tokencredit.report.page import MOST_TRACES, Page, write_page


def tokens(tab, pane):
    return tab.locator("#panes .pane").nth(pane).locator(".t")


def classes(tab, pane, token):
    return tokens(tab, pane).nth(token).get_attribute("class").split()


def method(tab, name):
    return tab.locator("#methods").get_by_role("button", name=name, exact=True)


def facts(tab):
    names, values = tab.locator("#token dt").all_text_contents(), tab.locator("#token dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def listed(tab):
    return [
        int(text) for text in tab.locator("#list b").evaluate_all("all => all.map(b => b.textContent.split(' ')[0])")
    ]


def captions(tab):
    return tab.locator("#panes figcaption strong").all_text_contents()


def test_tokens_are_shaded_by_their_credit_and_bear_what_is_known(visit):
    tab = visit(traces=[row()], fragment="#methods=p2t&marks=true")
    assert tokens(tab, 0).all_text_contents() == ["1+6", "=7", ";", "</think>", "7"]
    assert [classes(tab, 0, t)[1] for t in range(5)] == ["p2", "n4", "p6", "n8", "p10"]
    assert {"starts", "essential"} <= set(classes(tab, 0, 0))
    assert "starts" not in classes(tab, 0, 1)
    assert "essential" not in classes(tab, 0, 3)
    assert ["answer" in classes(tab, 0, t) for t in range(5)] == [False] * 4 + [True]
    assert "preplan" in classes(tab, 0, 1)
    assert "anchor" in classes(tab, 0, 2)


def test_a_token_tells_its_numbers_when_it_is_hovered_over(visit):
    tab = visit(traces=[row()], fragment="#methods=atpo")
    tokens(tab, 0).nth(2).hover()
    assert facts(tab) == {
        "position": "2",
        "token": ";",
        "atpo: weight": "0.6",
        "atpo: advantage": "+0.6",
        "log-prob": "-0.5",
        "entropy": "0.5",
        "WAAD": "2",
        "FAI": "0.125",
        "step": "0",
        "label": "essential, anchor",
    }


def test_a_character_of_several_tokens_is_shown_at_the_last_of_them(visit):
    broken = row(tokens=["a", "", "", "", "🙂", " ", "数"], partial=[1, 2, 3, 5])
    tab = visit(traces=[broken], fragment="#methods=atpo")
    assert tokens(tab, 0).all_text_contents() == ["a", "·", "·", "·", "🙂", " ·", "数"]
    titles = [tokens(tab, 0).nth(t).get_attribute("title") for t in range(5)]
    assert titles == [None, *["part of the next character"] * 3, None]
    tokens(tab, 0).nth(1).hover()
    assert facts(tab)["token"] == "·"
    assert "part of the next character" in facts(tab)["label"]
    cells = tab.locator("#behind .table tbody tr").evaluate_all("rows => rows.map(r => r.cells[1].textContent)")
    assert cells == ["a", "·", "·", "·", "🙂", " ·", "数"]


def test_arrow_keys_walk_over_the_tokens_and_say_so(visit):
    tab = visit(traces=[wrong()], fragment="#methods=atpo")
    tab.locator(".tokens").first.focus()
    tab.keyboard.press("ArrowRight")
    said = tab.locator("#status").text_content()
    assert "position 1" in said
    assert "first error" in said
    assert "current" in classes(tab, 0, 1)
    assert "current" in classes(tab, 1, 1)
    tab.keyboard.press("End")
    assert facts(tab)["position"] == "4"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert facts(tab)["position"] == "3"


def test_methods_switch_in_place_and_stand_side_by_side_beside_the_truth(visit):
    tab = visit(traces=[row()], fragment="#methods=atpo")
    assert captions(tab) == ["atpo", "ground truth"]
    assert [classes(tab, 1, t)[1] for t in range(5)] == ["p10", "p10", "p10", "p0", "p0"]
    method(tab, "p2t").click()
    method(tab, "arca").click()
    assert captions(tab) == ["atpo", "p2t", "arca", "ground truth"]
    method(tab, "uniform").click()
    assert captions(tab) == ["p2t", "arca", "uniform", "ground truth"]
    pressed = tab.locator("#methods button[aria-pressed=true]").all_text_contents()
    assert pressed == ["uniform", "p2t", "arca"]
    method(tab, "arca").click()
    assert captions(tab) == ["p2t", "uniform", "ground truth"]
    tab.keyboard.press("m")
    assert captions(tab) == ["arca", "ground truth"]


def test_the_truth_of_a_wrong_completion_is_its_error_and_without_labels_there_is_none(visit):
    unlabelled = row(essential=[None])
    tab = visit(traces=[wrong(), unlabelled, {k: v for k, v in row().items() if k not in ("essential", "first_error")}])
    assert [classes(tab, 1, t)[1] for t in range(5)] == ["p0", "n10", "p0", "p0", "p0"]
    assert "error" in classes(tab, 0, 1)
    for _ in range(2):
        tab.keyboard.press("j")
        assert captions(tab) == ["atpo"]


def test_a_weight_shades_from_the_least_to_the_most(visit):
    tab = visit(traces=[row()], fragment="#methods=atpo,p2t")
    tab.get_by_label("shade by").select_option("weight")
    assert [classes(tab, 0, t)[1] for t in range(5)] == ["w0", "w3", "w5", "w8", "w10"]
    assert "weight, 0.2 to 1" in tab.locator(".pane").first.text_content()
    assert classes(tab, 1, 1)[1] == "n4", "an additive method has no weight"


def test_a_chart_of_weights_has_only_methods_with_weights(visit):
    tab = visit(traces=[row()], fragment="#quantity=weights&methods=atpo,p2t")
    first = tab.locator("#behind .lines").first
    assert first.locator("strong").text_content() == "Weight over the trace"
    assert first.locator("path.series").count() == 1
    assert "No weight: p2t" in first.text_content()
    tab = visit(traces=[row()], fragment="#quantity=weights&methods=p2t")
    assert tab.locator("#behind strong").first.text_content() == "Advantage over the trace"


def without_advantage(**changed):
    """A trace whose group got one reward: weights, and no advantage."""
    weights = [0.2, 0.4, 0.6, 0.8, 1.0]
    return row(credit={"atpo": credit([0.0] * 5, weights), "added": credit([0.0] * 5)}, same_reward=8, **changed)


def test_the_page_opens_where_right_meets_wrong_and_methods_disagree(visit):
    even = {"atpo": credit([1.0] * 5, [1.0] * 5)}
    slight = {"atpo": credit([0.9, 1.0, 1.0, 1.0, 1.0])}
    strong = {"atpo": credit([0.0, 0.0, 0.0, 0.0, -1.0])}
    many = [
        without_advantage(group=0),
        row(group=1, credit=strong),  # all right: nothing to compare
        row(group=2, credit=even),
        row(group=2, credit=slight),
        wrong(group=2, credit=strong),
    ]
    tab = visit(traces=many)
    assert "trace 5" in tab.locator("#about").text_content()
    assert tab.locator("#list [aria-current]").get_attribute("data-trace") == "4"
    mates = tab.locator("#mates button")
    assert mates.all_text_contents() == ["3 ✓", "4 ✓", "5 ✗"]
    mates.first.click()
    assert "trace 3" in tab.locator("#about").text_content()
    tab.wait_for_timeout(200)
    again = visit(tab.url.removeprefix("file://").split("#")[0], f"#{tab.url.split('#')[1]}")
    assert "trace 3" in again.locator("#about").text_content()
    tab = visit(traces=many, fragment="#trace=0")
    assert "trace 1" in tab.locator("#about").text_content()


def test_a_trace_without_advantage_says_why_and_is_shaded_by_weight(visit):
    tab = visit(traces=[without_advantage(), row()], fragment="#trace=0&methods=atpo")
    why = tab.locator("#why")
    assert "All 8 completions of this problem got the same reward, 1, so GRPO" in why.text_content()
    assert "shaded by weight" in why.text_content()
    assert [classes(tab, 0, t)[1] for t in range(5)] == ["w0", "w3", "w5", "w8", "w10"]
    assert "weight, 0.2 to 1" in tab.locator(".pane").first.text_content()
    assert tab.locator("#key-weight").is_visible()
    assert tab.locator("#key-advantage").is_hidden()
    assert tab.locator("#behind strong").first.text_content() == "Weight over the trace"
    method(tab, "atpo").click()
    method(tab, "added").click()
    method(tab, "atpo").click()
    assert "advantage 0 on every token" in tab.locator(".pane").first.text_content()
    assert "shaded by weight" not in why.text_content()
    assert tab.locator("#key-advantage").is_visible()
    tab.keyboard.press("j")
    assert why.is_hidden()


def test_the_list_calls_a_trace_by_its_headline(visit):
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
    tab = visit(traces=[row(prompt=chat, headline="How many?", source=None)])
    assert tab.locator("#list span").text_content() == "How many?"
    assert tab.locator("#list b").text_content() == "1"


def test_the_start_of_the_answer_has_the_name_that_stands_there(visit):
    boxed = row(tokens=["so", " ", "\\boxed{", "7", "}"], answer_start=2)
    ended = row(tokens=["so", "</reason", "ing>", "7", "\\boxed{7}"], answer_start=3)
    neither = row(tokens=["so", "#### ", "7"], answer_start=2)
    tab = visit(traces=[boxed, ended, neither], delimiters=("</reasoning>", "\\boxed{"))
    for i, name in enumerate(("\\boxed{", "</reasoning>", "answer")):
        tab.evaluate(f"location.hash = 'trace={i}'")
        tab.locator("#about", has_text=f"trace {i + 1}").wait_for()
        assert f"First ten, around {name}, last ten" in tab.locator("#behind .table strong").text_content()
        assert name in tab.locator("#behind .lines").first.locator("text.marked").all_text_contents()
        assert "</think>" not in tab.locator("#behind").text_content()


def test_the_gini_of_uniform_credit_is_zero(visit):
    uniform = credit([1.0] * 5, [1.0] * 5)
    uniform["diagnostics"]["gini"] = 1.2e-17
    tab = visit(traces=[row(credit={"uniform": uniform})], fragment="#sort=gini")
    assert "advantage 1 on every token · Gini 0 · effective ratio 0.75" in tab.locator(".pane").first.text_content()
    assert tab.locator("#list small").text_content().endswith("Gini 0")


def test_small_numbers_are_not_called_nothing_and_what_is_not_known_not_zero(visit):
    signals = {"logprob": [-5e-7] * 5, "fai": [0.125, 0.25, None, None, None]}
    tab = visit(traces=[row(signals=signals, reward=None)])
    assert facts(tab)["log-prob"] == "-5.00e-7"
    tokens(tab, 0).nth(3).hover()
    assert facts(tab)["FAI"] == "\N{EN DASH}"
    drawn = tab.locator("#behind .lines").nth(2).locator("path.series").get_attribute("d")
    assert drawn.count("M") == 1
    assert drawn.count("L") == 1
    assert "NaN" not in drawn


def test_a_curve_is_broken_where_nothing_is_known(visit):
    series = {"a": [[0, 5.0], [1, 6.0], [2, None], [3, 6.0], [4, 5.0]]}
    tab = visit(groups=[figures.group("g", "G", [figures.lines("t", "x", "y", series)])])
    drawn = tab.locator("#g path.series").get_attribute("d")
    assert re.sub(r"[\d. ]", "", drawn) == "MLML"
    assert all(0 <= float(y) <= 230 for y in re.findall(r" ([\d.]+)", drawn))


def test_sorted_by_gini_the_list_follows_the_method(visit):
    def trace(a, b):
        made = {"a": credit([1.0] * 5), "b": credit([1.0] * 5)}
        made["a"]["diagnostics"]["gini"], made["b"]["diagnostics"]["gini"] = a, b
        return row(credit=made, source="")

    tab = visit(traces=[trace(0.9, 0.1), trace(0.5, 0.5), trace(0.1, 0.9)], fragment="#sort=gini&methods=a")
    assert listed(tab) == [1, 2, 3]
    tab.keyboard.press("m")
    assert listed(tab) == [3, 2, 1]


def test_an_unknown_reward_is_sorted_last(visit):
    tab = visit(traces=[row(reward=None), row(reward=-1.0), row(reward=1.0)], fragment="#sort=reward")
    assert listed(tab) == [3, 2, 1]


def test_the_link_shows_its_token_in_every_pane_and_so_do_arrow_keys(visit):
    long = row(tokens=[f"token{t} " for t in range(1500)])

    def in_sight(tab):
        return tab.locator(".tokens").evaluate_all(
            """all => all.map(box => {
                const [a, b] = [box, box.querySelector('.current')].map(e => e.getBoundingClientRect());
                return b.top >= a.top && b.bottom <= a.bottom;
            })"""
        )

    tab = visit(traces=[long], fragment="#token=1200&methods=atpo,p2t")
    assert in_sight(tab) == [True] * 3
    assert tab.evaluate("scrollY") == 0
    tab.locator(".tokens").nth(1).focus()
    tab.keyboard.press("End")
    assert in_sight(tab) == [True] * 3


def test_the_skip_link_leaves_the_view_alone(visit):
    tab = visit(traces=[row(), row()], fragment="#trace=1&methods=p2t")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert captions(tab) == ["p2t", "ground truth"]
    assert tab.evaluate("document.activeElement.id") == "traces"


def test_letters_can_be_switched_off(visit):
    tab = visit(traces=[row(), row()])
    tab.get_by_label("letters as shortcuts").uncheck()
    tab.locator(".tokens").first.focus()
    tab.keyboard.press("j")
    assert "trace 1" in tab.locator("#about").text_content()


def test_on_a_phone_everything_can_be_reached_and_the_panel_covers_nothing(visit):
    tab = visit(traces=[row(tokens=[f"token{t} " for t in range(300)]), row()])
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.locator(".tokens").first.scroll_into_view_if_needed()
    for y in range(0, 4000, 400):
        tab.evaluate(f"scrollTo(0, {y})")
        panel = tab.locator(".inspect").bounding_box()
        for box in tab.locator(".tokens, .key, #behind figure, #prompt, #about").all():
            other = box.bounding_box()
            apart = other["y"] + other["height"] <= panel["y"] or panel["y"] + panel["height"] <= other["y"]
            assert apart, "the panel covers text"
    texts, panel = tab.locator(".tokens").first.bounding_box(), tab.locator(".inspect").bounding_box()
    assert panel["y"] + panel["height"] - texts["y"] <= 844, "text and panel do not fit one screen"
    tab.get_by_role("button", name="Next").click()
    assert "trace 2" in tab.locator("#about").text_content()
    assert tab.get_by_role("button", name="as PNG").is_visible()


def test_the_list_filters_sorts_and_searches(visit):
    many = [
        row(tokens=["x"] * 9 + ["y"], source="before"),
        wrong(prompt="Q: needle?\n"),
        row(tokens=["a", "b", "</think>", "7"], reward=0.5),
    ]
    tab = visit(traces=many)
    assert listed(tab) == [1, 2, 3]
    tab.get_by_label("sort by").select_option("length")
    assert listed(tab) == [1, 2, 3]
    tab.get_by_label("sort by").select_option("reward")
    assert listed(tab) == [1, 3, 2]
    tab.locator("#control-kind").select_option("wrong")
    assert listed(tab) == [2]
    assert "needle" in tab.locator("#prompt").text_content()
    tab.locator("#control-kind").select_option("all")
    tab.get_by_label("policy").select_option("before")
    assert listed(tab) == [1]
    tab.get_by_label("policy").select_option("all")
    tab.keyboard.press("/")
    tab.get_by_label("search").fill("NEEDLE")
    assert listed(tab) == [2]
    assert tab.locator("#count").text_content() == "1 of 3"
    tab.get_by_label("search").fill("nowhere")
    assert listed(tab) == []


def test_keys_go_from_trace_to_trace_within_the_list(visit):
    tab = visit(traces=[row(), wrong(), row()], fragment="#kind=correct")
    tab.keyboard.press("j")
    assert tab.locator("#list [aria-current]").get_attribute("data-trace") == "2"
    tab.keyboard.press("n")
    assert "trace 3" in tab.locator("#about").text_content()
    tab.keyboard.press("k")
    assert "trace 1" in tab.locator("#about").text_content()
    tab.get_by_role("button", name="Next").click()
    assert "trace 3" in tab.locator("#about").text_content()


def test_the_address_leads_back_to_the_view(visit):
    tab = visit(traces=[row(), wrong(), row()])
    tab.keyboard.press("j")
    tab.get_by_label("sort by").select_option("length")
    tab.get_by_label("search").fill("a=1")
    method(tab, "p2t").click()
    tab.get_by_label("preplans and anchors").check()
    tokens(tab, 0).nth(3).click()
    tab.wait_for_timeout(200)
    path, fragment = tab.url.removeprefix("file://").split("#")
    again = visit(path, f"#{fragment}")
    assert again.locator("main").text_content() == tab.locator("main").text_content()
    assert [set(classes(again, 0, t)) for t in range(5)] == [set(classes(tab, 0, t)) for t in range(5)]
    assert facts(again)["position"] == "3"
    assert again.get_by_label("search").input_value() == "a=1"
    assert again.get_by_label("preplans and anchors").is_checked()


@pytest.mark.parametrize(
    "fragment",
    [
        "#trace=99999&token=-5",
        "#methods=__proto__,constructor,%E0%A4%A",
        "#sort=constructor&kind=toString",
        "#%%%",
        "#traces",
    ],
)
def test_an_address_that_means_nothing_shows_a_page_all_the_same(visit, fragment):
    tab = visit(traces=[row(), row()], fragment=fragment)
    assert captions(tab) == ["atpo", "ground truth"]
    assert listed(tab) == [1, 2]


def test_curves_attention_and_the_table_of_the_paper_stand_behind_a_trace(visit):
    long = row(tokens=[str(t) for t in range(60)], answer_start=40)
    tab = visit(traces=[long], fragment="#methods=atpo,p2t")
    titles = tab.locator("#behind figcaption strong").all_text_contents()
    assert titles[:5] == ["Advantage over the trace", "log-prob", "entropy", "WAAD", "FAI"]
    assert "layer 3" in titles[5]
    assert tab.locator("#behind .lines").first.locator("path.series").count() == 2
    assert tab.locator("#behind .lines").first.locator("line.mark").count() == 1
    assert tab.locator("#behind .matrix rect").count() == 59
    shown = tab.locator("#behind .table tbody tr").evaluate_all("rows => rows.map(r => +r.cells[0].textContent)")
    dots = float("nan")
    assert shown == pytest.approx([*range(10), dots, *range(35, 45), dots, *range(50, 60)], nan_ok=True)
    box = tab.locator("#behind .table .scroll")
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight"), "the last tokens are out of sight"


def test_every_chart_has_a_table_that_can_be_copied(visit):
    series = {"=evil()": [[0, 0.5, 0.4, 0.6], [10, 0.75, 0.7, 0.8]], 'a "b"': [[0, 0.5], [10, 0.25]]}
    group = figures.group("training", "Training", [figures.lines("Reward", "step", "reward", series)])
    tab = visit(groups=[group])
    tab.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
    figure = tab.locator("#training figure")
    figure.get_by_text("Table", exact=True).click()
    figure.locator("tbody").wait_for()
    assert figure.locator("tbody tr").count() == 4
    figure.get_by_role("button", name="Copy as CSV").click()
    assert tab.evaluate("window.copied").split("\r\n") == [
        '"series","step","reward","low","high"',
        '"\'=evil()",0,0.5,0.4,0.6',
        '"\'=evil()",10,0.75,0.7,0.8',
        '"a ""b""",0,0.5,"",""',
        '"a ""b""",10,0.25,"",""',
        "",
    ]
    assert figure.locator("path.series").count() == 2
    figure.get_by_role("button", name="=evil()").click()
    assert figure.locator("path.series").count() == 1


def test_intervals_and_matrices_are_drawn(visit):
    rows = [
        figures.interval("atpo", 0.7, 0.6, 0.8),
        figures.interval("random", 0.5, None, None, filled=False, muted=True),
    ]
    charts = [
        figures.intervals("Score", "AUROC", rows, reference=0.5),
        figures.matrix("Agreement", ["a", "b"], ["a", "b"], [[1.0, -0.5], [None, 1.0]], names=True, marked=[(0, 0)]),
        figures.table("Cost", ["method", "seconds"], [["atpo", 1.5]]),
    ]
    tab = visit(groups=[figures.group("audit", "Audit", charts)])
    assert tab.locator("#audit circle").count() == 2
    assert tab.locator("#audit circle.hollow").count() == 1
    assert tab.locator("#audit line.series").count() == 1
    assert tab.locator("#audit rect").evaluate_all("all => all.map(r => r.getAttribute('class'))") == [
        "cell p10 chosen", "cell n5", "cell p10",
    ]  # fmt: skip
    assert tab.locator("nav").get_by_text("Audit").is_visible()
    assert tab.locator("#traces").is_hidden()


LONG_NAMES = [
    "rhythm:strategy=local,q=0.3",
    "entropy_selection:fraction=0.2,keep=positive,start=answer",
    "x" * 90,
    "atpo",
]


@pytest.mark.parametrize("width", [1280, 390])
def test_no_label_is_cut(visit, width):
    rows = [figures.interval(name, 0.5, 0.4, 0.6) for name in LONG_NAMES]
    values = [[0.5] * 4 for _ in range(4)]
    charts = [
        figures.intervals("t", "x", rows),
        figures.matrix("t", LONG_NAMES[:2], LONG_NAMES[:2], [[1.0, -0.5]] * 2, names=True),
        figures.matrix("t", LONG_NAMES, ["1e-4", "3e-4"], [v[:2] for v in values], names=True),
        figures.matrix("t", range(2), range(2), [[0.5, 0.5]] * 2, x="head"),
        figures.lines("t", "GRPO step", "y", {name: [[0, -1.5e-9], [100_000, 123456.5]] for name in LONG_NAMES}),
    ]
    tab = visit(traces=[row(tokens=["a"] * 60, answer_start=59)], groups=[figures.group("g", "G", charts)])
    tab.set_viewport_size({"width": width, "height": 800})
    tab.wait_for_timeout(300)
    outside = tab.evaluate(
        """() => [...document.querySelectorAll('.canvas svg text')].filter(label => {
            const [a, b] = [label, label.ownerSVGElement].map(e => e.getBoundingClientRect());
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
        }).map(label => label.textContent)"""
    )
    assert outside == []
    drawn = "".join(tab.locator("#g .intervals text").all_text_contents())
    assert all(name in drawn for name in LONG_NAMES)
    legend = tab.locator("#g .legend span").evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth + 1)")
    assert legend
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_axes_of_shares_stay_within_zero_and_one(visit):
    charts = [
        figures.lines("t", "x", "y", {"a": [[0, 1.0, 0.9, 1.2], [1, 1.0, 0.9, 1.3]]}, bounds=figures.SHARE),
        figures.lines("t", "x", "y", {"a": [[0, 0.0], [1, 0.0]]}, bounds=figures.SHARE),
        figures.intervals("t", "x", [figures.interval("a", 0.95, 0.7, 1.2)], bounds=figures.SHARE),
    ]
    tab = visit(groups=[figures.group("g", "G", charts)])
    for chart in tab.locator("#g figure").all()[:2]:
        labels = [float(t) for t in chart.locator("text[text-anchor=end]").all_text_contents()]
        assert labels
        assert 0 <= min(labels) <= max(labels) <= 1
    box = tab.locator("#g .intervals svg").bounding_box()
    bar = tab.locator("#g .intervals line.series").bounding_box()
    assert bar["x"] + bar["width"] <= box["x"] + box["width"]
    assert max(float(t) for t in tab.locator("#g .intervals text[text-anchor=middle]").all_text_contents()) <= 1
    band = tab.locator("#g path.band").bounding_box()
    assert band["y"] >= tab.locator("#g .lines svg").first.bounding_box()["y"]


def test_figures_come_first_where_the_page_opens_with_them(visit):
    group = figures.group("audit", "Audit", [figures.table("t", ["c"], [["v"]])])
    tab = visit(traces=[row(), row()], groups=[group], opens_with="groups")
    assert tab.locator("main section").evaluate_all("all => all.map(e => e.id)") == ["audit", "traces"]
    assert tab.locator("nav a").all_text_contents() == ["Audit", "Traces"]
    assert tab.evaluate("scrollY") == 0
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "groups"
    tab.get_by_role("link", name="Traces").click()
    assert tab.evaluate("document.activeElement.id") == "traces"
    tab.set_viewport_size({"width": 1280, "height": 300})
    linked = visit(traces=[row(), row()], groups=[group], opens_with="groups", fragment="#trace=1&token=2")
    assert linked.locator("#traces").bounding_box()["y"] < 60


def contrast(a, b):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted(map(luminance, (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def rgba(text):
    values = [float(v) for v in re.findall(r"[\d.]+(?:e-?\d+)?", text.replace("color(srgb", ""))]
    rgb = values[:3] if text.startswith("color(") else [v / 255 for v in values[:3]]
    return rgb, values[3] if len(values) > 3 else 1.0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_every_shade(visit, scheme):
    tab = visit(traces=[row()])
    tab.emulate_media(color_scheme=scheme)
    background, ink = (
        rgba(tab.evaluate(f"getComputedStyle(document.body).{name}"))[0] for name in ("backgroundColor", "color")
    )
    assert (sum(background) < 1) == (scheme == "dark")
    shades = tab.evaluate(
        """() => [...'pnw'].flatMap(tone => [...Array(11).keys()].map(level => {
            const span = document.createElement('span');
            span.className = `t ${tone}${level}`;
            document.getElementById('panes').append(span);
            return getComputedStyle(span).backgroundColor;
        }))"""
    )
    for shade in shades:
        colour, alpha = rgba(shade)
        blended = [alpha * c + (1 - alpha) * b for c, b in zip(colour, background, strict=True)]
        assert contrast(ink, blended) >= 4.5, shade
    quiet = rgba(tab.evaluate("getComputedStyle(document.querySelector('.quiet')).color"))[0]
    assert contrast(quiet, background) >= 4.5
    strongest = [rgba(shades[10])[0], rgba(shades[21])[0], background]
    for mark in ("essential", "error", "peak"):
        hexed = tab.evaluate(f"getComputedStyle(document.body).getPropertyValue('--{mark}')").strip()
        drawn = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert min(contrast(drawn, shade) for shade in strongest) >= 3, mark
    assert len({*shades}) == 21, "each level has its own shade; weights share those of positive credit"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(visit, width):
    names = [figures.interval("a method of a very long name " * 3, 0.5, 0.4, 0.6)]
    groups = [
        figures.group("g", "G", [figures.intervals("t", "x", names), figures.table("t", ["c"] * 30, [["v"] * 30])])
    ]
    tab = visit(traces=[row(prompt="x" * 3000), wrong()], groups=groups)
    tab.set_viewport_size({"width": width, "height": 800})
    tab.wait_for_timeout(200)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_it_can_be_used_without_a_mouse_and_read_aloud(visit):
    tab = visit(
        traces=[row()], groups=[figures.group("g", "G", [figures.lines("t", "x", "y", {"a": [[0, 1], [1, 2]]})])]
    )
    for landmark in ("banner", "navigation", "main", "search", "complementary", "contentinfo"):
        assert tab.get_by_role(landmark).count() == 1, landmark
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll('button, select, input, summary, a')].filter(
            e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim())).length"""
    )
    assert nameless == 0
    assert tab.locator("svg[role=img]:not([aria-label])").count() == 0
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
            )
        )
    assert {"control-query", "control-sort", "tokens", "control-next", "control-png", "json"} <= reached
    assert (
        tab.locator(".tokens").first.evaluate("e => { e.focus(); return getComputedStyle(e).outlineStyle }") == "solid"
    )


def test_exports(visit, tmp_path):
    tab = visit(traces=[wrong(tokens=["<b>&", "é\n", "7", "</think>", "8"])], fragment="#methods=atpo")

    def exported(name):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=name).click()
        assert download.value.failure() is None
        return download.value.suggested_filename, download.value.path().read_bytes()

    name, content = exported("Trace as SVG")
    assert name == "trace-1.svg"
    tree = ElementTree.fromstring(content)
    assert "<b>&é⏎7</think>8" in "".join(tree.itertext())
    fills = [float(r.get("fill-opacity")) for r in tree.findall(".//{*}rect") if r.get("fill-opacity")]
    assert fills[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    name, content = exported("as PNG")
    assert (name, content[:8]) == ("trace-1.png", b"\x89PNG\r\n\x1a\n")
    assert len(content) > 2000
    tab.get_by_label("search").fill("q")
    name, content = exported("All of it as JSON")
    assert json.loads(content) == json.loads((tmp_path / "report.json").read_text())


def png_height(content):
    return int.from_bytes(content[20:24], "big")


def test_a_tall_trace_is_a_smaller_png_or_the_page_says_why_there_is_none(visit):
    """A token a line, 24 pixels each, of a method and of the truth. What fits at a smaller scale is drawn so; of more,
    browsers would draw nothing and say nothing."""

    def lines(n):
        return row(tokens=["7\n"] * n, attention=None, answer_start=None)

    tab = visit(traces=[lines(250), lines(500)], fragment="#trace=0&methods=atpo")
    png = tab.get_by_role("button", name="as PNG")
    with tab.expect_download() as download:
        png.click()
    assert 12_000 < png_height(download.value.path().read_bytes()) <= 16_384
    assert tab.locator("#export-problem").count() == 0
    tab.keyboard.press("j")
    png.click()
    told = tab.get_by_role("alert").text_content()
    assert told.startswith("Trace 2 cannot be a PNG: it is 24")
    assert "at most 16384" in told
    assert told.endswith("Export it as SVG.")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Trace as SVG").click()
    assert download.value.suggested_filename == "trace-2.svg"
    assert tab.get_by_role("alert").count() == 0


def test_it_prints_without_its_controls(visit):
    tab = visit(traces=[row()])
    tab.emulate_media(media="print")
    assert tab.locator(".chooser").is_hidden()
    assert tab.locator("#methods").is_hidden()
    assert tab.locator(".tokens").first.is_visible()
    assert len(tab.pdf()) > 5000


def test_sixteen_thousand_tokens(visit):
    n = 16_000
    long = row(tokens=[f"w{t}\n" if t % 40 == 39 else f"w{t} " for t in range(n)], attention=None)
    tab = visit(traces=[long], fragment="#methods=atpo")
    assert tokens(tab, 0).count() == n
    method(tab, "p2t").click()
    assert captions(tab) == ["atpo", "p2t", "ground truth"]
    tab.locator(".tokens").first.focus()
    tab.keyboard.press("End")
    assert facts(tab)["position"] == "15999"
    assert tokens(tab, 0).nth(n - 1).is_visible()


def test_it_says_when_it_cannot_be_drawn(visit, tmp_path):
    path = write_page(Page("t", [], [row()], []), tmp_path)
    path.write_text(re.sub(r'id="payload">[^<]+', 'id="payload">AAAA', path.read_text()))
    tab = visit(path, ready=False)
    tab.wait_for_selector("#failed:not([hidden])")
    assert "could not be drawn" in tab.locator("#failed").text_content()


def test_of_many_traces_an_even_share_is_kept_and_the_page_says_so(visit):
    dull = {"uniform": {**row()["credit"]["uniform"], "advantages": [0.0] * 5}}
    many = [row(source=s, credit=dull if i < 50 else row()["credit"]) for s in ("a", "b") for i in range(400)]
    kept = Page("t", [], many, []).as_json()["traces"]
    assert [r["source"] for r in kept] == ["a"] * (MOST_TRACES // 2) + ["b"] * (MOST_TRACES // 2)
    assert not any(r["credit"] is dull for r in kept)
    tab = visit(traces=many)
    assert "200 of 800 traces" in tab.locator("#traces > p").text_content()
    assert len(listed(tab)) == MOST_TRACES


def test_a_page_of_long_traces_stays_below_three_megabytes(tmp_path):
    rng = Random(0)

    def noise():
        return [float(f"{rng.random():.4g}") for _ in range(4000)]

    long = [
        row(tokens=["a"] * 4000, signals={"entropy": noise()}, credit={"atpo": credit(noise())}) for _ in range(100)
    ]
    page = write_page(Page("t", [], long, []), tmp_path)
    kept = len(json.loads((tmp_path / "report.json").read_text())["traces"])
    assert 20 < kept < 100
    assert 2_000_000 < page.stat().st_size < 3_000_000
    assert f"These are {kept} of 100 traces" in page.read_text()
    assert len(Page("t", [], [row(tokens=["a"] * 100_000)], []).as_json()["traces"]) == 1


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_page(Page("t", [], [row(reward=float("nan"))], []), tmp_path)
