"""A stand-in for tinyshakespeare: pseudo-Elizabethan drama from a seeded grammar.

Without the real text the book must still run, so this module writes plays in the same
layout and the same 65 characters. Nothing here is taken from an existing play: the
words, the templates and the names, all in standin.ini, are the project's own. The
result is no literature, but it has what a small language model can learn: spelling,
agreement (thou art, he hath, they do), verse lines, speakers who answer the question
just asked, courtesy and abuse.
"""

from __future__ import annotations

import configparser
import random
import re
import textwrap
from bisect import bisect
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# How often a word comes from the topic, and not from common stock
TOPICAL = dict(
    thing=0.85, stir=0.75, mass=0.7, who=0.65, where=0.6, act=0.6, adj=0.6, verb=0.5
)
# The number of sentences between an answer and a question, the likeliest first
SENTENCES = [0, 1, 0, 2, 1, 3, 0, 5, 8, 12]
THOU = {"thou": "thou", "thee": "thee", "thy": "thy", "thine": "thine"}
YOU = {"thou": "you", "thee": "you", "thy": "your", "thine": "yours"}

DOUBLED = {"abhor", "forget", "outrun", "quarrel", "worship"}
SYMBOL = re.compile(r"\{(\w+)(?::(\w+))?\}")
SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))'?[a-z]")


@dataclass(frozen=True)
class Lists:
    """What a play is written with: the sections of standin.ini."""

    topics: dict[str, dict[str, list[str]]]  # topic -> kind of word -> words
    common: dict[str, list[str]]  # kind of word -> words
    persons: dict[str, dict[str, str]]  # verb -> person -> form
    rules: dict[str, list[str]]  # rule -> templates
    people: dict[str, list[str]]
    moods: dict[str, list[str]]  # mood -> kinds of question
    leaning: list[str]  # words that should not end a line


@cache
def read_lists() -> Lists:
    """The lists and rules of standin.ini, read once."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.read_string(Path(__file__).with_name("standin.ini").read_text("utf-8"))
    topics = [name for name in parser.sections() if name.startswith("topic ")]
    persons = listed_each(parser["persons"])
    return Lists(
        topics={name.split()[1]: listed_each(parser[name]) for name in topics},
        common=listed_each(parser["common"]),
        persons={
            k: dict(zip(("I", "thou", "he", "they"), v)) for k, v in persons.items()
        },
        rules={rule: text.split("\n")[1:] for rule, text in parser["rules"].items()},
        people=listed_each(parser["people"]),
        moods=listed_each(parser["moods"]),
        leaning=listed(parser["verse"]["leaning"]),
    )


def listed_each(section: Mapping[str, str]) -> dict[str, list[str]]:
    """The entries of each list of a section."""
    return {name: listed(text) for name, text in section.items()}


def listed(text: str) -> list[str]:
    """The entries of a comma-separated list, which may run over several lines."""
    return " ".join(text.split()).split(", ")


@dataclass(frozen=True)
class Role:
    """One of the cast: the label above a speech, and how others name and greet them."""

    label: str
    name: str
    title: str  # the name with its article: "Orso", "the nurse"
    address: str  # the rule for courteous address, such as "you_lord"

    @property
    def noble(self) -> bool:
        return self.address in ("you_lord", "you_lady")


@dataclass(frozen=True)
class Question:
    """What the last speaker asked, for the next one to answer."""

    kind: str
    focus: str
    topic: str


@cache
def zipf(n: int) -> list[float]:
    """Cumulative weights 1 / (rank + 4) of n entries, scaled to end at 1."""
    sums, total = [], 0.0
    for rank in range(n):
        total += 1.0 / (rank + 4)
        sums.append(total)
    return [s / total for s in sums]


@cache
def inflect(entry: str, form: str) -> str:
    """A word in a form: its base, or with s (nouns), es, eth, est, ed, en or ing."""
    base, *irregular = entry.split("/")
    if irregular and form in ("s", "ed", "en"):
        return irregular[-1] if form == "en" else irregular[0]
    if form in ("s", "es"):
        return pluralised(base)
    if form == "ing":
        return re.sub("([^eo])e$", r"\1", doubled(re.sub("ie$", "y", base))) + "ing"
    ending = "ed" if form == "en" else form
    stem = re.sub("([^aeiou])y$", r"\1i", doubled(base)) if ending else base
    return stem + (ending[1:] if stem.endswith("e") else ending)


def pluralised(word: str) -> str:
    """The word with a regular final s: bell -> bells, kiss -> kisses, cry -> cries."""
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search("(s|x|z|o|ch|sh)$", word) else "s")


def doubled(word: str) -> str:
    """The word, its last consonant doubled for an ending: stabb(ed), but fear(ed)."""
    one_syllable = re.fullmatch("(qu|[^aeiou])*[aeiou][^aeiouwxy]", word)
    return word + word[-1] if one_syllable or word in DOUBLED else word


def capitalised(text: str) -> str:
    """The text with a capital at the start of each sentence."""
    return SENTENCE_START.sub(lambda match: match[0].upper(), text)


class Playwright:
    """Writes plays without end; all choices come from one seeded stream of numbers."""

    def __init__(self, seed: int):
        # Use `random()` alone: its numbers are the same on every version of Python
        self.random = random.Random(seed).random
        self.lists = read_lists()
        self.topic = ""
        self.bound: dict[str, str] = {}  # symbols with one meaning in this speech
        self.recent: deque[str] = deque(maxlen=6)  # words not to repeat at once

    # Draw from the lists and expand templates.

    def choose(self, options: list):
        """One of the options, the earlier the likelier."""
        return options[bisect(zipf(len(options)), self.random())]

    def sample(self, options: list, n: int) -> list:
        """n different options, all equally likely."""
        pool = list(options)
        return [pool.pop(int(self.random() * len(pool))) for _ in range(n)]

    def draw(self, rule: str) -> str:
        """One expansion of the rule."""
        return self.expand(self.choose(self.lists.rules[rule]))

    def expand(self, template: str) -> str:
        """The template with its symbols replaced."""
        return SYMBOL.sub(self.replacement, template)

    def replacement(self, match: re.Match) -> str:
        name, form = match[1], match[2] or ""
        name = self.vocative if name == "you" else name
        if name in self.bound:
            return self.bound[name]
        if name in self.lists.persons:
            return self.lists.persons[name][self.person(form)]
        if name in self.lists.rules:
            return self.expand(self.choose(self.lists.rules[name]).replace("*", form))
        return self.word(name, form)

    def person(self, form: str) -> str:
        """The person of a verb: a speaker who says `you` uses the plural."""
        return "they" if form == "thou" and self.bound["thou"] == "you" else form

    def word(self, kind: str, form: str) -> str:
        """A word not used just before, in the form asked for."""
        topical = self.lists.topics[self.topic].get(kind)
        while True:
            from_topic = topical and self.random() < TOPICAL[kind]
            entry = self.choose(topical if from_topic else self.lists.common[kind])
            if entry not in self.recent:
                break
        self.recent.append(entry)
        return self.expand(inflect(entry, self.ending(form)))

    def ending(self, form: str) -> str:
        """The ending of a person: he loves or loveth, thou lovest, you love."""
        if form == "he":
            return "eth" if self.random() < 0.5 else "es"
        return {"I": "", "they": "", "thou": "est"}.get(self.person(form), form)

    # Compose a speech.

    def speech(
        self, speaker: Role, listener: Role, question: Question | None, mood: str
    ) -> tuple[str, Question | None]:
        """The speaker's next speech in the mood, and the question it ends in."""
        self.address(speaker, listener, mood)
        parts = []
        # Answer what was asked
        if question:
            self.topic, self.bound["focus"] = question.topic, question.focus
            parts.append(self.draw(f"tell_{question.kind}"))
        # Say something of one's own
        tone = "rude" if mood == "rude" else "kind"
        for _ in range(max(self.choose(SENTENCES), 0 if question else 1)):
            parts.append(self.draw(tone if self.random() < 0.25 else "say"))
        # Ask something in turn
        asks = mood in self.lists.moods and self.random() < 0.6
        question = self.question(mood) if asks else None
        if question:
            parts.append(self.draw(f"ask_{question.kind}"))
        return self.layout(speaker, " ".join(parts)), question

    def address(self, speaker: Role, listener: Role, mood: str) -> None:
        """Fix what `you`, `me`, `thou` and the rest mean in this speech."""
        formal = (listener.noble and not speaker.noble) != (self.random() < 0.15)
        self.bound.update(YOU if formal else THOU, me=speaker.title, name=listener.name)
        self.vocative = "you_rude" if mood == "rude" else listener.address

    def question(self, mood: str) -> Question:
        """A question about some thing of the present topic."""
        focus = self.bound["focus"] = self.word("thing", "")
        return Question(self.choose(self.lists.moods[mood]), focus, self.topic)

    def layout(self, speaker: Role, text: str) -> str:
        """A speech under its speaker's name: the nobles' in verse, else in prose."""
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIO]|hon|hour|heir)", r"\1n ", text)
        text = re.sub(r"\b([TtMm]h?)y (?=[aeio])", r"\1ine ", text)
        text = capitalised(text)
        prose = textwrap.wrap(text, 52, break_on_hyphens=False)
        rows = self.verse(text) if speaker.noble else prose
        return "\n".join([speaker.label + ":", *rows])

    def verse(self, text: str) -> list[str]:
        """Lines of about ten syllables, ending with a phrase where they can."""
        rows, row, width = [], [], 46
        for word in text.split():
            length = len(" ".join(row))
            if length + len(word) >= width or self.phrase_ends(row, length):
                # Carry a word that leans on the next one over to the new line
                carried = [row.pop()] if row[-1].lower() in self.lists.leaning else []
                rows.append(row)
                row, width = carried, 38 + int(self.random() * 14)
            row.append(word)
        return [capitalised(" ".join(row)) for row in rows + [row]]

    def phrase_ends(self, row: list[str], length: int) -> bool:
        """Whether to break a line that is long enough after a phrase: mostly."""
        return length > 28 and row[-1][-1] in ",.;:!?" and self.random() < 0.6

    # Put speeches together.

    def speeches(self) -> Iterator[str]:
        """Play after play, speech by speech."""
        while True:
            company = self.company()
            self.bound.update(place=self.place(), foe=self.place())
            for _ in range(15 + int(self.random() * 10)):
                yield from self.scene(company)

    def company(self) -> list[Role]:
        """Twelve roles, seven of them noble, no two with the same name."""
        men = [self.noble(n, "lords", "you_lord") for n in self.some("men", 4)]
        women = [self.noble(n, "ladies", "you_lady") for n in self.some("women", 3)]
        men += [self.commoner(trade, "you_man") for trade in self.some("tradesmen", 4)]
        (trade,) = self.some("tradeswomen", 1)
        return men + women + [self.commoner(trade, "you_woman")]

    def some(self, people: str, n: int) -> list[str]:
        """n different entries of a list of people, all equally likely."""
        return self.sample(self.lists.people[people], n)

    def noble(self, name: str, ranks: str, address: str) -> Role:
        rank = self.choose(self.lists.people[ranks]) if self.random() < 0.5 else ""
        return Role(f"{rank} {name}".strip().upper(), name, name, address)

    def commoner(self, trade: str, address: str) -> Role:
        number = self.choose(["", "First", "Second", "Third"])
        name = trade.lower()
        return Role(f"{number} {trade}".strip(), name, f"the {name}", address)

    def place(self) -> str:
        return "".join(self.some(p, 1)[0] for p in ("onsets", "middles", "codas"))

    def scene(self, company: list[Role]) -> Iterator[str]:
        """Two to five talk about two who are away: whoever is asked speaks next."""
        third, absent = self.sample([role for role in company if role.noble], 2)
        self.mention(third, absent)
        present = [role for role in company if role not in (third, absent)]
        cast = self.sample(present, 2 + int(self.random() * 4))
        topics = self.sample(list(self.lists.topics), 4)
        temper = "rude" if self.random() < 0.4 else "kind"
        speaker, listener, question = cast[0], cast[1], None
        middle = [temper] * (4 + int(self.random() * 24))
        for mood in ["meet", *middle, "part", "end"]:
            self.topic = self.choose(topics)
            speech, question = self.speech(speaker, listener, question, mood)
            yield speech
            # Give the word to the one who was asked, else to anyone
            others = [role for role in cast if role is not speaker]
            next_speaker = listener if question else self.sample(others, 1)[0]
            speaker, listener = next_speaker, speaker

    def mention(self, third: Role, absent: Role) -> None:
        """Name the two who are talked about."""
        woman = third.address == "you_lady"
        he, him, his = ("she", "her", "her") if woman else ("he", "him", "his")
        self.bound.update(third=third.name, absent=absent.name, he=he, him=him, his=his)


def generate_play(characters: int = 1_100_000, seed: int = 1) -> str:
    """At least so many characters of drama, ending with a speech.

    A longer text continues a shorter one.
    """
    speeches, length = [], 0
    for speech in Playwright(seed).speeches():
        speeches.append(speech)
        length += len(speech) + 2
        if length > characters:
            return "\n\n".join(speeches) + "\n"
