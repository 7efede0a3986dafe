"""Documents and sources keep the rules of docs/contributing.md, section Prose. `python -m tests.prose` prints them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.prose import (
    ROOT,
    Figures,
    check_page,
    check_relatives,
    check_words,
    documents,
    measure,
    sentences,
    sources,
)


@pytest.mark.parametrize("page", documents(), ids=lambda path: os.path.relpath(path, ROOT))
def test_page_keeps_the_rules(page: Path) -> None:
    findings, _ = check_page(page)
    assert not findings, "\n".join(map(str, findings))


def test_sources_contain_no_listed_word() -> None:
    findings = [finding for path in sources() for finding in check_words(path)]
    assert not findings, "\n".join(map(str, findings))


def test_sources_include_python_php_and_javascript() -> None:
    names = {str(path.relative_to(ROOT)) for path in sources()}
    assert {"chatws/errors.py", "tests/conftest.py"} <= names
    assert {".php", ".py", ".js"} <= {os.path.splitext(name)[1] for name in names}


def test_documents_include_every_english_page() -> None:
    names = {str(page.relative_to(ROOT)) for page in documents()}
    assert {"README.md", "CHANGELOG.md", "php/README.md", "docs/operations.md", "docs/adr/README.md"} <= names
    assert not [name for name in names if "pt-BR" in name]


@pytest.mark.parametrize(
    "text",
    [
        "Who pushes an event gets an answer.",
        "The server answers. What is lost is sent again.",
        "- Where there are several nodes, list all.",
        "**Whoever** has the token is that user.",
    ],
)
def test_relative_at_the_beginning_of_a_sentence_is_found(text: str) -> None:
    assert len(check_relatives("page.md", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Who is online?",
        "## What it costs",
        "```\nWho pushes an event\n```",
        "| Who | gets it |",
        "The server knows who.",
    ],
)
def test_question_heading_code_and_table_are_no_relatives(text: str) -> None:
    assert check_relatives("page.md", text) == []


def test_listed_words_are_found_in_comments_and_strings_of_source(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text('anew = 1  # begins anew\nmessage = "somebody else"\n')
    assert [(finding.line, finding.message.split('"')[1]) for finding in check_words(source)] == [
        (1, "anew"),
        (2, "somebody"),
    ]


def test_there_is_none_and_python_s_none_are_accepted(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("An id that is none.\nAn address, if there is none.\nThe value is None.\n")
    assert [finding.line for finding in check_words(page)] == [1]


def test_long_sentences_and_semicolons_are_counted() -> None:
    text = " ".join(["The server", *["very"] * 29, "often", "answers; really."]) + " It ends."
    assert measure(text) == Figures(sentences=2, long=1, semicolons=1)
    assert len(measure(text).excesses()) == 2
    assert Figures(sentences=100, long=5, semicolons=5).excesses() == []


def test_code_and_links_count_as_words_of_a_sentence() -> None:
    assert sentences("Set `a; b; c` as in [the page](page.md#part). See e.g. RFC 6455.") == [
        "Set CODE as in the page.",
        "See e.g. RFC 6455.",
    ]
