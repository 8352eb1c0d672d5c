"""The finished pages in a real browser: models that run in one, loading, and phones.

Needs Playwright (the extra `browser`), Chromium, and the built book.
"""

import functools
import http.server
import json
import operator
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from posttrain.chat import render_prompt
from posttrain.cli.browser import STAGES, rounded
from posttrain.data import corpus, datasets
from posttrain.lab.enumerable import WORDS, build_world, optimum
from posttrain.reward_model import score_answer
from posttrain.sampling import generate
from posttrain.tokenizer import CharTokenizer

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
TALK = "book/talk.html"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
PAGES = [
    "index.html",
    "search.html",
    *(
        path.relative_to(ROOT).with_suffix(".html").as_posix()
        for path in sorted((ROOT / "book").rglob("*.md"))
    ),
]
TOKENIZER = CharTokenizer()

WHERE = "Playwright and axe are in the extra 'browser': pip install -e '.[browser]'"
axe_playwright_python = pytest.importorskip("axe_playwright_python", reason=WHERE)
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
sync_api = pytest.importorskip("playwright.sync_api", reason=WHERE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="there is no Chromium here (on Debian or Ubuntu: apt install chromium)",
    ),
    pytest.mark.skipif(
        not (SITE / TALK).exists(), reason="the book has not been built yet (make book)"
    ),
]


@pytest.fixture(scope="module")
def chromium():
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address():
    """Where the site is served: {"file": ..., "http": ...}."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield dict(
            file=SITE.as_uri(), http=f"http://127.0.0.1:{server.server_address[1]}"
        )
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def page(chromium):
    """A page that keeps what goes wrong in it, and all that it asks for."""
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.complaints, page.requests = [], []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            message.type == "error" and page.complaints.append(message.text)
        ),
    )
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    page.close()


@functools.cache
def model(name):
    return STAGES[name](corpus.load())[0]


def ask(page, question, **settings):
    """Fill in the form, ask, and wait; the cards' texts and notes by model."""
    page.fill("[name=question]", question)
    if "seed" in settings:
        page.fill("[name=seed]", str(settings["seed"]))
    if "temperature" in settings:
        page.locator("[name=temperature]").fill(str(settings["temperature"]))
    page.click("form.talk [type=submit]")
    page.locator("form.talk button[type=submit]:enabled").wait_for(timeout=120_000)
    return {
        card.get_attribute("data-model"): (
            card.locator(".talk-text").text_content(),
            card.locator(".talk-note").text_content(),
        )
        for card in page.locator(".talk-card").all()
    }


@pytest.mark.parametrize("name", ["base", "sft", "ppo", "dpo"])
def test_logits_are_pytorchs_to_a_thousandth_and_greedy_answers_the_same(
    page, address, name
):
    page.goto(f"{address['file']}/{TALK}")
    questions = datasets.heldout_prompts()[:50]
    prompts = [
        TOKENIZER.encode(question + "\n")
        if name == "base"
        else render_prompt([dict(role="user", content=question)], TOKENIZER)
        for question in questions
    ]
    theirs = page.evaluate(
        """async ([name, prompts]) => {
          const model = await load(name), found = [];
          for (const prompt of prompts) {
            model.forget();
            const read = (token) => Array.from(model.logits(model.read(token)));
            const logits = prompt.map(read);
            const options = {temperature: 0, most: 64, stop: special("end")};
            found.push([logits, [...write(model, prompt, options)]]);
          }
          return found;
        }""",
        [name, prompts],
    )
    assert page.evaluate(f"promptOf({name!r}, {questions[0]!r})") == prompts[0]
    with torch.no_grad():
        for prompt, (logits, _) in zip(prompts, theirs):
            assert (
                torch.tensor(logits) - model(name)(torch.tensor([prompt]))[0]
            ).abs().max() <= 1e-3
    ours = generate(
        model(name), prompts, 64, temperature=0, stop=TOKENIZER.end
    ).responses()
    answers = [answer for _, answer in theirs]
    assert len({tuple(answer) for answer in answers}) >= 3
    # Where the two best tokens are next to equal, rounding may choose: and so may they
    for prompt, answer, own in zip(prompts, answers, ours):
        if answer == own:
            continue
        parted = next(i for i, (a, b) in enumerate(zip(answer, own)) if a != b)
        path = torch.tensor([prompt + own[:parted]])
        with torch.no_grad():
            logits = model(name)(path)[0, -1]  # (V,)
        assert logits[own[parted]] - logits[answer[parted]] <= 2e-3
    assert sum(map(operator.eq, answers, ours)) >= 45


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_four_models_answer_with_scores_and_nothing_leaves_the_page(
    page, address, scheme
):
    page.goto(f"{address[scheme]}/{TALK}")
    answers = ask(page, "Where is the king?", seed=3)
    assert (
        list(answers) == ["base", "sft", "ppo", "dpo"]
        and page.locator("[role=status]").text_content() == "Done."
    )
    for name, (text, note) in answers.items():
        assert text and ("it did not end" in note) == (
            name == "base" or len(text) >= 96
        )
        said = float(note.removeprefix("reward model: ").split(",")[0])
        assert (
            abs(said - score_answer(model("reward"), "Where is the king?", text))
            < 0.006
        )
    assert ask(page, "Where is the king?", seed=3) == answers
    assert ask(page, "Where is the king?", seed=4) != answers
    assert not page.complaints
    assert all(url.startswith(address[scheme]) for url in page.requests)
    # Each model's file was asked for once
    files = [url for url in page.requests if "/models/" in url]
    assert len(files) == len(set(files)) == 6


def test_hostile_input_is_shown_as_text_and_asked_in_the_models_alphabet(page, address):
    page.goto(f"{address['file']}/{TALK}")
    page.uncheck("[value=base]")
    answers = ask(
        page,
        "<img src=x onerror=alert(1)> \u201cWo ist K\u00f6nig \U0001f600?\u201d",
        temperature=0,
    )
    typed = "<img src=x onerror=alert(1)> \u201cWo ist K\u00f6nig \U0001f600?\u201d"
    status = page.locator("[role=status]").text_content()
    assert (
        status.startswith("Done.")
        and status.endswith(TOKENIZER.clean(typed))
        and len(answers) == 3
    )
    assert page.evaluate("(text) => clean(text)", typed) == TOKENIZER.clean(typed)
    # Let a model write HTML: it stays text
    page.evaluate("TOKENS[0] = TOKENS[1] = '<img src=x onerror=alert(1)>'")
    ask(page, "Where is the king?", temperature=0)
    assert "<img" in page.locator(".talk-answers").text_content()
    assert (
        page.locator(".talk-page img, .talk-page script").count() == 0
        and not page.complaints
    )


def test_what_is_missing_is_said(page, address):
    page.route("**/models/ppo.js", lambda route: route.abort())
    page.goto(f"{address['http']}/{TALK}")
    ask(page, "   ")
    assert page.locator("[role=status]").text_content() == "Ask something first."
    ask(page, "Where is the king?")
    assert "ppo.js could not be loaded" in page.locator("[role=status]").text_content()
    page.unroute("**/models/ppo.js")
    assert (
        len(ask(page, "Where is the king?")) == 4
        and page.locator("[role=status]").text_content() == "Done."
    )


def test_writing_can_be_stopped(page, address):
    page.goto(f"{address['file']}/{TALK}")
    for name in ("sft", "ppo", "dpo"):
        page.uncheck(f"[value={name}]")
    # Let each token take its time, so that there is something to stop
    page.evaluate("""load('base').then((model) => {
      const read = model.read.bind(model);
      model.read = (token) => {
        const until = performance.now() + 40;
        while (performance.now() < until);
        return read(token);
      };
    })""")
    page.click("form.talk [type=submit]")
    page.locator(".talk-text:not(:empty)").wait_for()
    page.click("form.talk [type=button]")
    page.locator("[role=status]", has_text="Stopped.").wait_for()
    assert len(page.locator(".talk-text").text_content()) < 96


def values_of(page, kind):
    """What a chapter gave a view to show."""
    return json.loads(
        page.locator(f".interactive[data-kind={kind}]").get_attribute("data-values")
    )


def walk(view, i):
    """Move a view's slider to i, as a keyboard does; what is said then."""
    view.locator("input[type=range]").evaluate(
        "(bar, i) => { bar.value = i; bar.dispatchEvent(new Event('input')); }", i
    )
    return view.locator(".view-said").inner_text()


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_the_mask_viewer_shows_every_token_its_label_and_its_surprise(
    page, address, scheme
):
    page.goto(f"{address[scheme]}/book/sft.html")
    view, examples = (
        page.locator(".interactive[data-kind=mask]"),
        values_of(page, "mask")["examples"],
    )
    assert view.locator("option").count() == len(examples) + 3
    for number, example in enumerate(examples):
        view.locator("select").first.select_option(str(number))
        assert (
            view.locator(".view-tokens span").all_text_contents() == example["tokens"]
        )
        graded = view.locator(".view-tokens span.view-graded").count()
        assert graded == sum(label >= 0 for label in example["labels"]) > 0
        # The labels are the tokens themselves, and what the page says of one is what
        # the model gave it
        last = len(example["tokens"]) - 1
        said = walk(view, last)
        assert (
            f"label {example['ids'][last]}: graded" in said
            and f"{example['surprise']['after SFT'][last]:.2f} nats (after SFT)" in said
        )
        assert "label -100: read, and not graded" in walk(view, 1)
    # A click says the same as the slider, and a colour is the surprise's
    view.locator(".view-tokens span").nth(3).click()
    assert (
        view.locator("input").input_value() == "3"
        and view.locator("[aria-current]").count() == 1
    )
    view.locator("select").nth(1).select_option("1")
    colours = view.locator(".view-tokens span").evaluate_all(
        "(spans) => spans.map((span) => span.style.background)"
    )
    assert len(set(colours)) > 10 and not page.complaints


def test_the_rollout_microscope_makes_each_number_from_those_before_it(page, address):
    page.goto(f"{address['file']}/book/ppo.html")
    view, values = (
        page.locator(".interactive[data-kind=rollout]"),
        values_of(page, "rollout"),
    )
    for number, answer in enumerate(values["answers"]):
        view.locator("select").first.select_option(str(number))
        n = len(answer["tokens"])
        assert view.locator(".view-tokens span").count() == n
        for i in (0, n // 2, n - 1):
            said = walk(view, i).replace("\u2212", "-")
            last = i == n - 1
            reward = -answer["beta"] * (
                answer["log-probability"][i] - answer["reference"][i]
            ) + (answer["score"] if last else 0)
            following = (
                (0, 0) if last else (answer["value"][i + 1], answer["advantage"][i + 1])
            )
            delta = reward + values["gamma"] * following[0] - answer["value"][i]
            advantage = delta + values["gamma"] * values["lam"] * following[1]
            # What the page's formulas give is what the package had computed
            assert reward == pytest.approx(
                answer["reward"][i], abs=1e-4
            ) and advantage == pytest.approx(answer["advantage"][i], abs=1e-4)
            # Each number that the formula names is said, and what comes of them
            made = [
                float(number)
                for number in re.findall(
                    r"-?\d+\.\d+", said.partition("Advantage: ")[2]
                )
            ]
            expected = [
                delta,
                values["gamma"] * values["lam"],
                following[1],
                advantage,
                advantage + answer["value"][i],
            ]
            assert made == pytest.approx(expected, abs=6e-4)
            assert [
                float(found) for found in re.findall(r"= ([+-]\d+\.\d+)$", said, re.M)
            ][:2] == pytest.approx([reward, delta], abs=6e-4)
    assert not page.complaints


def test_the_beta_slider_shows_the_optimum_that_the_formula_names(page, address):
    page.goto(f"{address['file']}/book/dpo.html")
    view, values = page.locator(".interactive[data-kind=beta]"), values_of(page, "beta")
    world = build_world()
    for i in (0, values["start"], len(values["betas"]) - 1):
        said, best = walk(view, i), optimum(world, values["betas"][i])
        assert (
            f"= {values['betas'][i]:.2f}: mean reward "
            f"{(best * world.rewards).sum().item():+.2f}" in said.replace("\u2212", "-")
        )
        for row, word in zip(view.locator("tbody tr").all(), values["words"]):
            cells = row.locator("th, td").all_inner_texts()
            assert cells[0] == word and float(cells[3].rstrip("%\n")) == pytest.approx(
                100 * best[WORDS.index(word)].item(), abs=0.06
            )
    assert not page.complaints


def test_without_its_script_a_page_shows_the_still_views(chromium, address):
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        for name, still in (
            ("sft", "p.token-view"),
            ("ppo", "p.token-view"),
            ("dpo", "table"),
        ):
            page.goto(f"{address['file']}/book/{name}.html")
            assert (
                page.locator(f".interactive {still}").count() == 1
                and page.locator(".interactive input").count() == 0
            )


@pytest.mark.parametrize("name", ["index", "sft", "dpo"])
def test_a_page_prints_whole_with_nothing_folded_or_cut_off(page, address, name):
    page.goto(f"{address['http']}/book/{name}.html", wait_until="networkidle")
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for()
    folded = page.locator(".bd-article details:not([open])").count()
    printed = page.pdf(
        format="A4", margin=dict(top="15mm", bottom="15mm", left="15mm", right="15mm")
    )
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    # Afterwards the page is as it was
    assert (
        page.locator(".bd-article details:not([open])").count() == folded
        and page.locator("html[data-theme=dark]").count() == 1
    )
    # See it as the printer does; a sheet is 680 px wide
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size(dict(width=680, height=960))
    assert (
        page.locator(".bd-article details:not([open])").count() == 0
        and page.locator("html[data-theme=light]").count() == 1
    )
    assert (
        page.locator(".bd-sidebar-primary, .bd-header, .bd-sidebar-secondary")
        .filter(visible=True)
        .count()
        == 0
    )
    wide = (
        "(places) => places.filter((place) => place.getBoundingClientRect().right "
        "> 690).map((place) => place.outerHTML.slice(0, 150))"
    )
    assert (
        page.locator(".bd-article :is(p, pre, table, img, figure)").evaluate_all(wide)
        == []
    )


@pytest.mark.parametrize("name", PAGES)
def test_pages_obey_their_policy_load_nothing_from_elsewhere_and_fit_a_phone(
    page, address, name
):
    # A browser asks for /favicon.ico where a page names no icon, now and then before it
    # has left that page
    assert '<link rel="icon" href="' in (SITE / name).read_text(encoding="utf-8")
    page.set_viewport_size(dict(width=390, height=800))
    page.goto(f"{address['http']}/{name}", wait_until="networkidle")
    assert not page.complaints
    assert all(url.startswith((address["http"], "data:")) for url in page.requests)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# Contrast is a matter of colours and sizes: where pieces of code, or of formulas, look
# the same up to the root, axe reads the first that shows, and not all thousands
LOOK_ONCE = """() => {
  const looks = new Map(), seen = new Set();
  const look = (part) => {
    if (!part) return '';
    if (!looks.has(part)) {
      const style = getComputedStyle(part);
      looks.set(part, [
        style.color, style.backgroundColor, style.backgroundImage, style.opacity,
        style.fontSize, style.fontWeight, style.textShadow, style.filter,
        style.position, style.visibility, look(part.parentElement),
      ].join());
    }
    return looks.get(part);
  };
  const isCut = (part) => {
    const whole = part.closest('pre, mjx-container').getBoundingClientRect();
    return part.getBoundingClientRect().right > whole.right;
  };
  for (const part of document.querySelectorAll('pre span, mjx-container *')) {
    if (!part.checkVisibility()) continue;
    const name = [isCut(part), look(part)].join();
    part.toggleAttribute('data-again', seen.has(name));
    seen.add(name);
  }
  const selector = '*:not([data-again])';
  axe.configure({rules: [{id: 'color-contrast', selector}]});
}"""


@pytest.fixture
def examined(chromium, address):
    """Opens a page, and gives what axe finds there in a scheme, at a width, by rules
    (None: all).
    """
    with chromium.new_context(bypass_csp=True, color_scheme="light") as context:
        page = context.new_page()

        def opened(name):
            page.goto(f"{address['http']}/{name}", wait_until="networkidle")
            page.evaluate(AXE.read_text(encoding="utf-8"))
            # No colours between two
            page.add_style_tag(
                content="* { transition: none !important; animation: none !important }"
            )
            return page

        def faults(scheme, width, rules=None):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(dict(width=width, height=900))
            page.locator(f"html[data-theme={scheme}]").wait_for()
            page.evaluate(LOOK_ONCE)
            options = dict(resultTypes=["violations"]) | (
                dict(runOnly=rules) if rules else {}
            )
            found = page.evaluate("(options) => axe.run(options)", options)
            return [
                (v["id"], v["nodes"][0]["html"][:200])
                for v in found["violations"]
                if v["impact"] in ("serious", "critical")
            ]

        yield opened, faults


# All posts are made of the same parts, and all pages of the laboratory: one is enough
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in PAGES
        if not re.search("/posts/|/lab-", name)
        or name.endswith(("/rlhf.html", "/lab-ppo.html"))
    ],
)
def test_axe_finds_no_serious_fault(examined, name):
    """What axe finds in names, roles, contrast, keys; dark and on a phone."""
    opened, faults = examined
    opened(name)
    for scheme, width, rules in (
        ("light", 1280, None),
        ("dark", 1280, ["color-contrast"]),
        ("dark", 390, ["scrollable-region-focusable"]),
    ):
        bad = faults(scheme, width, rules)
        assert not bad, f"{scheme}, {width} px: {bad}"


@pytest.mark.parametrize(
    "change", ["color: rgb(221, 221, 221)", "background: rgb(85, 85, 85)"]
)
def test_axe_finds_one_faint_piece_of_code_among_all_that_look_alike(examined, change):
    opened, faults = examined
    kind = opened("book/sft.html").locator("pre > span.n").filter(visible=True)
    assert kind.count() > 100
    kind.last.evaluate("(part, change) => part.style.cssText = change", change)
    ((rule, html),) = faults("light", 1280, ["color-contrast"])
    assert rule == "color-contrast" and change in html


def test_the_policy_stops_a_script_that_got_into_a_page(page, address):
    page.route(
        f"**/{TALK}",
        lambda route: route.fulfill(
            body=(SITE / TALK)
            .read_text(encoding="utf-8")
            .replace(
                "</body>", "<script>document.title = 'taken over'</script></body>"
            ),
            content_type="text/html",
        ),
    )
    page.goto(f"{address['http']}/{TALK}")
    assert page.title() != "taken over" and any(
        "Content Security Policy" in complaint for complaint in page.complaints
    )


def test_the_rounded_model_is_what_the_page_runs(page, address):
    """Closer to the rounded weights than rounding is to the trained ones."""
    page.goto(f"{address['file']}/{TALK}")
    prompt = render_prompt([dict(role="user", content="Where is the king?")], TOKENIZER)
    logits = page.evaluate(
        "async (prompt) => { const model = await load('sft'); return prompt.map((t) "
        "=> Array.from(model.logits(model.read(t)))); }",
        prompt,
    )
    with torch.no_grad():
        apart = [
            (torch.tensor(logits) - each(torch.tensor([prompt]))[0]).abs().max().item()
            for each in (rounded(model("sft")), model("sft"))
        ]
    assert apart[0] <= 1e-4 and apart[1] <= 1e-3
