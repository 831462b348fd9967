"""A person at the terminal: what is shown, what cannot be smuggled in, and what the keys mean."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from llmgym.labellers import label
from llmgym.preferences import Pair, Preference
from llmgym.tasks import Problem
from llmgym.terminal import UNFINISHED, TerminalLabeller, comparison

PAIRS = [Pair(Problem(f"prompt {i}"), f"LEFT{i}", f"RIGHT{i}") for i in range(4)]


def rendered(pair, width=80, **options):
    """The lines of a comparison, as they reach a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, **options).print(comparison(pair, title="pair 3 of 20"))
    return out.getvalue().split("\n")


def cells(lines):
    """The two columns of the rows under the keys."""
    rows = [line.strip("│").split("│") for line in lines if line.startswith("│")][1:]
    return tuple("\n".join(row[side][1:-1].rstrip() for row in rows) for side in (0, 1))


def person(*lines, seed=0, width=80):
    """A labeller whose person types these lines, and what is shown to them."""
    out = io.StringIO()
    stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    return TerminalLabeller(seed, stdin=stdin, console=Console(file=out, width=width)), out


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120])
def test_completions_stand_side_by_side_whole(width):
    first, second = " ".join(f"word{i}" for i in range(300)), "one\n\n  two\nthree " + "x" * 200
    lines = rendered(Pair(Problem("question?\nreally?"), first, second), width)
    assert all(cell_len(line) <= width for line in lines)
    assert "pair 3 of 20" in lines[0]
    assert [line.strip() for line in lines[1:3]] == ["question?", "really?"]
    left, right = cells(lines)
    assert left.split() == first.split()
    assert right.startswith("one\n\n  two\n")
    assert right.replace("\n", "").endswith("x" * 200)


def test_a_completion_that_was_cut_off_says_so():
    left, right = cells(rendered(Pair(Problem("p"), "a", "b", first_finished=False), 120))
    assert (left, right) == (f"a\n{UNFINISHED}", "b\n")


def test_markup_is_text():
    text = "[bold]x[/bold] [/] :smile: [link=http://a]b[/link] \\[x]"
    lines = rendered(Pair(Problem(text), text, "b"), 160)
    assert lines[1].strip() == text
    assert cells(lines) == (text, "b")


def test_what_cannot_be_seen_is_spelt():
    text = "\x1b[31mred\r\x07\x9b1A\u202eevil\u200b\u2028\ufeff\x00"
    left, right = cells(rendered(Pair(Problem("p"), text, "می\u200cخواهم 👨\u200d👩 \u00e9"), 160))
    assert left == r"\x1b[31mred\r\x07\x9b1A\u202eevil\u200b\u2028\ufeff\x00"
    assert right == "می\u200cخواهم 👨\u200d👩 é"


def test_spaces_at_the_end_are_seen():
    left, right = cells(rendered(Pair(Problem("p"), "a  \nb ", "a\n b"), 80))
    assert (left, right) == ("a··\nb·", "a\n b")


def test_tabs_are_indentation():
    assert cells(rendered(Pair(Problem("p"), "if x:\n\ty\n\t\tz", "b"), 80))[0] == "if x:\n    y\n        z"


anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(anything, min_size=3, max_size=3, unique=True), st.sampled_from([30, 80]))
def test_no_text_reaches_the_terminal_as_a_control_character(texts, width):
    prompt, first, second = texts
    shown = "\n".join(rendered(Pair(Problem(prompt), first, second), width, color_system=None))
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")} - {"\n"}
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def test_a_tall_pair_says_so_and_repeats_its_keys():
    pair, out = Pair(Problem("p"), "a\n" * 50, "b"), io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    TerminalLabeller(stdin=io.StringIO("1\n"), console=console)(pair)
    lines = out.getvalue().splitlines()
    assert "↑ 57 lines: the pair begins above this screen" in lines[-2]
    assert lines[-4].split() == ["│", "1", "│", "2", "│"]
    out.truncate(0)
    TerminalLabeller(stdin=io.StringIO("1\n"), console=console)(PAIRS[0])
    assert "above this screen" not in out.getvalue()


# --- what the answers mean ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("key", "side"), [("1", 0), ("2", 1), ("left", 0), ("right", 1)])
def test_a_key_chooses_the_text_above_it(seed, key, side):
    labeller, out = person(key, seed=seed)
    pair = PAIRS[0]
    chosen = pair.preference(labeller(pair)).chosen
    assert cells(out.getvalue().splitlines())[side] == chosen


def test_the_place_says_nothing_about_the_completion():
    def left(seed, pair):
        labeller, out = person("q", seed=seed)
        labeller(pair)
        return cells(out.getvalue().splitlines())[0]

    firsts = [left(seed, PAIRS[0]) == "LEFT0" for seed in range(200)]
    assert 70 <= sum(firsts) <= 130
    pair = PAIRS[1]
    for seed in range(20):
        assert left(seed, Pair(pair.problem, pair.second, pair.first)) == left(seed, pair)


def test_all_answers():
    labeller, _ = person("s", "S", "skip", "u", "q", "\x1b[D", "\x1b[C")
    answers = [labeller(PAIRS[0]) for _ in range(7)]
    assert answers[:5] == ["skip", "skip", "skip", "undo", "quit"]
    assert set(answers[5:]) == {"first", "second"}
    assert labeller(PAIRS[0]) == "quit"  # the input has ended


def test_what_is_no_answer_is_asked_again():
    labeller, out = person("", "3", "yes", "s")
    assert labeller(PAIRS[0]) == "skip"
    assert out.getvalue().endswith("? ? ? ? skip\n")


def test_a_whole_session_in_lines(tmp_path):
    labeller, out = person("s", "u", "u", "1", "1", "s", "q")
    found = label(PAIRS, labeller, tmp_path / "answers.jsonl")
    assert [type(p) for p in found] == [Preference, Preference]
    shown = out.getvalue()
    places = [line.strip("─ ") for line in shown.splitlines() if line.startswith("──")]
    numbers = [1, 2, 1, 1, 2, 3, 4]
    assert places == [f"pair {n} of 4" for n in numbers]
    assert shown.count("the last answer is taken back") == shown.count("nothing to undo") == 1


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer in"):
        TerminalLabeller(seed)
