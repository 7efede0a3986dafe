"""Measure the prose of README and docs, and find words that the project does not use.

`python -m tests.prose` checks the documents, and the words in comments and strings of the source. `--documents` checks
only the documents, `-v` prints the figures of each page. It prints every finding, and ends with status 1 if a rule is
broken. The rules are those of docs/contributing.md, section Prose.
"""

from __future__ import annotations

import argparse
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: A sentence with more words is long.
LONG_SENTENCE_WORDS = 30
#: The share of sentences that may be long.
MAX_LONG_SHARE = 0.05
#: Semicolons for each sentence.
MAX_SEMICOLONS = 0.05

#: A sentence may not begin with these as a relative ("Who pushes an event …"). A question may.
RELATIVES = ("Who", "Whoever", "Whom", "What", "Whatever", "Where", "Wherever")

#: Words and phrases that are private, quaint or ambiguous, each with the plain one.
PLAIN_WORDS = {
    "anew": "again",
    "whoever": "the client, the process",
    "whomever": "the client, the process",
    "is none": "is invalid, does not exist",
    "so many words": "explicitly",
    "of its own accord": "by itself",
    "of their own accord": "by themselves",
    "in peace": "normally",
    "send away": "disconnect",
    "sends away": "disconnects",
    "sent away": "disconnected",
    "part with": "disconnect",
    "parted with": "disconnected",
    "befalls": "happens to",
    "somebody": "another component, a client",
    "anybody": "any client",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "the browsers' door": "the WebSocket listener",
    "the backends' door": "the push API",
}

#: "There is none" is plain, and `is None` is Python.
_WORDS = re.compile(
    r"(?<!there )\b(" + "|".join(re.escape(word) for word in PLAIN_WORDS) + r")\b(?-i:(?<! None))", re.IGNORECASE
)
#: Ends of sentences that are no ends: abbreviations, and numbers of a list.
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|No|RFC)|\d)\.$")


class Finding(NamedTuple):
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class Figures(NamedTuple):
    sentences: int
    long: int
    semicolons: int

    @property
    def long_share(self) -> float:
        return self.long / max(1, self.sentences)

    @property
    def semicolons_each(self) -> float:
        return self.semicolons / max(1, self.sentences)

    def excesses(self) -> list[str]:
        """The figures that exceed their limits."""
        result = []
        if self.long_share > MAX_LONG_SHARE:
            result.append(f"{self.long_share:.1%} of the sentences have over {LONG_SENTENCE_WORDS} words")
        if self.semicolons_each > MAX_SEMICOLONS:
            result.append(f"{self.semicolons_each:.3f} semicolons each sentence")
        return result

    def __str__(self) -> str:
        return (
            f"{self.sentences} sentences: {self.long_share:.1%} over {LONG_SENTENCE_WORDS} words, "
            f"{self.semicolons_each:.3f} semicolons each"
        )


def documents() -> list[Path]:
    """README, CHANGELOG and every English page of the documents."""
    pages = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "php/README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    return [page for page in pages if "pt-BR" not in page.parts]


def sources() -> list[Path]:
    """Return the Python, PHP and JavaScript files that are searched for words."""
    folders = ("chatws", "php", "twisted", "tests", "benchmarks")
    suffixes = (".py", ".php", ".js", ".mjs")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in paths if path.name not in ("prose.py", "test_prose.py")]


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and list items of a Markdown page with their line numbers, without code, tables and headings."""
    start, fenced = 0, False
    lines: list[str] = []

    def flush() -> Iterator[tuple[int, str]]:
        if lines:
            yield start, " ".join(lines)
            lines.clear()

    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith(("```", "~~~")):
            fenced = not fenced
            yield from flush()
            continue
        item = re.match(r"(?:[-*+]|\d+\.)\s+", line)
        if fenced or not line or line.startswith(("|", "#", "<", "![", ":::")):
            yield from flush()
            continue
        if item:
            yield from flush()
            line = line[item.end() :]
        if not lines:
            start = number
        lines.append(line.removeprefix("> "))
    yield from flush()


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; code spans count as one word."""
    plain = re.sub(r"`[^`]*`", "CODE", paragraph)
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    plain = re.sub(r"<[^>]+>", "", plain)
    parts: list[str] = []
    for part in re.split(r"(?<=[.!?:])[\"”)*]*\s+(?=[\"“(*]*[A-Z0-9])", plain):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return [part for part in parts if re.search(r"[A-Za-z]", part)]


def measure(text: str) -> Figures:
    """The figures of a page."""
    result = [sentence for _, paragraph in paragraphs(text) for sentence in sentences(paragraph)]
    return Figures(
        sentences=len(result),
        long=sum(len(sentence.split()) > LONG_SENTENCE_WORDS for sentence in result),
        semicolons=sum(sentence.count(";") for sentence in result),
    )


def check_relatives(name: str, text: str) -> list[Finding]:
    """Sentences that begin with a relative."""
    findings: list[Finding] = []
    for line, paragraph in paragraphs(text):
        for sentence in sentences(paragraph):
            first = sentence.lstrip('"“(*_').split(" ")[0].rstrip('*_,:"”')
            if first in RELATIVES and not sentence.rstrip('"”)*_').endswith("?"):
                findings.append(Finding(name, line, f'begins with "{first}": {sentence[:60]}'))
    return findings


def check_page(path: Path) -> tuple[list[Finding], Figures]:
    """The findings and figures of one page. Each page keeps the limits by itself."""
    name = str(path.relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    figures = measure(text)
    findings = check_relatives(name, text) + check_words(path)
    return findings + [Finding(name, 1, excess) for excess in figures.excesses()], figures


def check_words(path: Path) -> list[Finding]:
    """Words that have a plainer one, in a page or in the comments and strings of a source file."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    if path.suffix == ".py":
        with tokenize.open(path) as file:
            texts = [
                (token.start[0], token.string)
                for token in tokenize.generate_tokens(file.readline)
                if token.type in (tokenize.COMMENT, tokenize.STRING)
            ]
    else:
        texts = list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    return [
        Finding(name, line + text.count("\n", 0, match.start()), f'"{match[0]}": write {PLAIN_WORDS[match[0].lower()]}')
        for line, text in texts
        for match in _WORDS.finditer(text)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", action="store_true", help="only the documents")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the figures of each page")
    arguments = parser.parse_args()
    findings: list[Finding] = []
    totals = Figures(0, 0, 0)
    for path in documents():
        result, figures = check_page(path)
        findings += result
        totals = Figures(*map(sum, zip(totals, figures, strict=True)))
        if arguments.verbose:
            print(f"{path.relative_to(ROOT)}: {figures}")
    if not arguments.documents:
        for path in sources():
            findings += check_words(path)
    for finding in findings:
        print(finding)
    print(totals)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
