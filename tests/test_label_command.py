"""`llmgym label`: real key presses on a pseudo-terminal, interruptions that lose nothing, and bad input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import tyro

from llmgym.cli import main
from llmgym.commands.label import LabellerOptions, LabelOptions
from llmgym.commands.options import parse
from llmgym.labellers import RuleLabeller, label
from llmgym.preferences import Pair, read_labels, read_pairs, read_preferences, write_pairs
from llmgym.tasks import Problem, make_task

ROOT = Path(__file__).parent.parent
PAIRS = [Pair(Problem(f"{i}+{i}=", str(2 * i)), f"<answer>{2 * i}</answer>", f"{2 * i + i % 2}") for i in range(1, 7)]
LEFT, RIGHT, CTRL_C, CTRL_D = b"\x1b[D", b"\x1b[C", b"\x03", b"\x04"
on_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Pairs in a file, and where answers go, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_pairs("pairs.jsonl", PAIRS)
    return Path("pairs.jsonl"), Path("answers.jsonl")


def labels(path):
    return [label for _, _, label in read_labels(path)]


class Person:
    """`llmgym label` on a pseudo-terminal of its own, where Ctrl-C is a signal."""

    def __init__(self, *words, columns=80):
        import fcntl
        import termios

        self.master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        command = [sys.executable, "-c", CONTROLLING_TERMINAL, "label", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        fcntl.fcntl(self.master, fcntl.F_SETFL, os.O_NONBLOCK)
        self.said = ""

    def until(self, text):
        """Read until `text` has been said since the last key."""
        deadline = time.monotonic() + 60
        while text not in self.said:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.said}"
            if select.select([self.master], [], [], 0.1)[0] and not self._read():
                raise AssertionError(f"the command ended before {text!r}: {self.said}")

    def press(self, key, place=None):
        """Wait for the pair at `place`, then press a key."""
        if place is not None:
            self.until(f" pair {place} of {len(PAIRS)} ")
        self.until("quit   ? ")
        self.said = ""
        os.write(self.master, key)

    def ended(self):
        """The exit code."""
        deadline = time.monotonic() + 60
        while self._read() or self.process.poll() is None:
            assert time.monotonic() < deadline, f"the command never ended: {self.said}"
            select.select([self.master], [], [], 0.1)
        os.close(self.master)
        return self.process.wait()

    def _read(self):
        try:
            read = os.read(self.master, 4096).decode(errors="replace")
        except BlockingIOError:
            return self.process.poll() is None
        except OSError:  # what Linux says when the other end is closed
            return False
        self.said += re.sub(r"\x1b\[[0-9;]*m", "", read)  # without colours, which come whole
        return bool(read)

    def close(self):
        """End what a failed test left running."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)


@pytest.fixture
def sit_down():
    """Starts a `Person`."""
    persons = []

    def start(*words, **options):
        persons.append(Person(*words, **options))
        return persons[-1]

    yield start
    for person in persons:
        person.close()


CONTROLLING_TERMINAL = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests (nohup, a runner) may ignore it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from llmgym.cli import main
sys.exit(main())
"""


# --- a person -------------------------------------------------------------------------------------------------------


@on_a_terminal
@pytest.mark.parametrize("columns", [80, 120])
def test_key_presses_choose_what_is_shown_above_them(paths, sit_down, columns):
    pairs, answers = paths
    person = sit_down(pairs, "--out", answers, "--seed", 3, columns=columns)
    left = []
    for place, key in enumerate((b"1", b"2", LEFT, RIGHT, b"s"), start=1):
        person.until("quit   ? ")
        row = next(line for line in person.said.splitlines() if f"{2 * place}" in line and line.startswith("│"))
        left.append("<answer>" in row.split("│")[1])
        person.press(key, place)
    person.press(b"u", 6)
    person.until("the last answer is taken back")
    person.press(b"7x2", 5)  # keys without a meaning; what else was typed at once does not answer the next pair
    person.press(b"q", 6)
    assert person.ended() == 0
    assert "5 of 6 pairs have an answer: " in person.said
    expected = [["second", "first"][on_left == (key in "1L")] for on_left, key in zip(left, "12LR", strict=False)]
    assert labels(answers)[:4] == expected
    assert len(labels(answers)) == 5


@on_a_terminal
@pytest.mark.parametrize("end", ["q", "Ctrl-D", "Ctrl-C", "kill", "hang up"])
def test_whatever_ends_it_the_next_start_goes_on_at_the_right_pair(paths, sit_down, end):
    pairs, answers = paths
    person = sit_down(pairs, "--out", answers)
    person.press(b"1", 1)
    person.press(b"s", 2)
    person.press({"q": b"q", "Ctrl-D": CTRL_D, "Ctrl-C": CTRL_C}.get(end, b""), 3)
    if end == "kill":
        person.process.kill()
    if end == "hang up":
        os.close(person.master)
        assert person.process.wait(60) == -signal.SIGHUP
    else:
        assert person.ended() == {"Ctrl-C": 130, "kill": -signal.SIGKILL}.get(end, 0)
        assert "Traceback" not in person.said
    if end in ("q", "Ctrl-D", "Ctrl-C"):
        assert "2 of 6 pairs have an answer" in person.said
        assert "answers: answers.jsonl (the same command goes on)" in person.said
    before = answers.read_bytes()
    assert len(labels(answers)) == 2
    person = sit_down(pairs, "--out", answers)
    for place in (3, 4, 5, 6):
        person.press(b"1", place)
    assert person.ended() == 0
    assert "6 of 6 pairs have an answer" in person.said
    assert answers.read_bytes().startswith(before)
    assert [pair.problem for _, pair, _ in read_labels(answers)] == [pair.problem for pair in PAIRS]


@on_a_terminal
def test_the_terminal_is_as_before_when_it_is_over(paths, sit_down):
    import termios

    pairs, answers = paths
    for key, code in ((b"q", 0), (CTRL_C, 130)):
        person = sit_down(pairs, "--out", answers)
        before = termios.tcgetattr(person.master)
        person.until("quit   ? ")
        assert not termios.tcgetattr(person.master)[3] & (termios.ICANON | termios.ECHO)
        person.press(key)
        assert person.process.wait(60) == code
        assert termios.tcgetattr(person.master) == before
        os.close(person.master)


@on_a_terminal
def test_keys_work_after_a_suspension(paths, sit_down):
    import termios

    pairs, answers = paths
    person = sit_down(pairs, "--out", answers)
    person.until("quit   ? ")
    cbreak = termios.tcgetattr(person.master)
    person.process.send_signal(signal.SIGSTOP)
    cooked = [*cbreak[:3], cbreak[3] | termios.ICANON | termios.ECHO, *cbreak[4:]]
    termios.tcsetattr(person.master, termios.TCSANOW, cooked)  # as a shell does
    person.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while termios.tcgetattr(person.master) == cooked and time.monotonic() < deadline:
        time.sleep(0.01)
    person.press(b"s", 1)
    person.press(b"q", 2)
    assert person.ended() == 0
    assert labels(answers) == ["skip"]


def test_without_a_terminal_an_answer_is_a_line(paths):
    pairs, answers = paths
    command = [sys.executable, "-m", "llmgym.cli", "label", str(pairs), "--out", str(answers)]
    done = subprocess.run(command, input="1\n2\ns\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "3 of 6 pairs have an answer" in done.stdout
    assert labels(answers)[2] == "skip" and len(labels(answers)) == 3


# --- rules and files ------------------------------------------------------------------------------------------------


def test_a_rule(paths, capsys):
    pairs, answers = paths
    words = ["label", str(pairs), "--out", str(answers), "--by", "rule", "--task", "arithmetic"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == "6 of 6 pairs have an answer: 3 first, 0 second, 3 skip\nanswers: answers.jsonl\n"
    assert "rule: 100%" in said.err
    assert labels(answers) == ["first", "skip"] * 3
    assert [p.chosen for p in read_preferences(answers)] == [PAIRS[i].first for i in (0, 2, 4)]
    before = answers.read_bytes()
    assert main(words) == 0
    assert answers.read_bytes() == before


def test_the_options_of_a_rule_are_those_of_the_labeller(paths):
    pairs, answers = paths
    options = ["--noise", "0.4", "--seed", "5", "--ties", "random", "--temperature", "0.5"]
    options += ["--task-options", '{"weights": {"format": 1}}']
    assert main(["label", str(pairs), "--out", str(answers), "--by", "rule", "--task", "arithmetic", *options]) == 0
    task = make_task("arithmetic", weights={"format": 1})
    assert read_preferences(answers) == label(PAIRS, RuleLabeller(task, 0.4, 5, ties="random", temperature=0.5))


def test_a_file_of_labels(paths):
    pairs, answers = paths
    label(PAIRS, lambda pair: "second", "known.jsonl")
    assert main(["label", str(pairs), "--out", str(answers), "--by", "file", "--labels", "known.jsonl"]) == 0
    assert answers.read_bytes() == Path("known.jsonl").read_bytes()


@pytest.mark.filterwarnings("default:the last line:UserWarning")
def test_a_line_that_was_cut_short_is_a_warning(paths, capsys):
    pairs, answers = paths
    label(PAIRS[:2], lambda pair: "first", answers)
    answers.write_bytes(answers.read_bytes()[:-20])
    assert main(["label", str(pairs), "--out", str(answers), "--by", "rule", "--task", "arithmetic"]) == 0
    said = capsys.readouterr()
    assert "warning: the last line of answers.jsonl was cut short and is dropped" in said.err
    assert labels(answers) == ["first", "skip"] * 3


# --- bad input ------------------------------------------------------------------------------------------------------

RULE = "label pairs.jsonl --out new.jsonl --by rule"
BAD_INPUT = {
    "label": "Missing from llmgym label: PAIRS.jsonl",
    "label pairs.jsonl": "Missing from llmgym label: --out FILE",
    "label none.jsonl --out new.jsonl": "cannot read none.jsonl: No such file or directory",
    "label equal.jsonl --out new.jsonl": "line 2 of equal.jsonl: first and second are the same text, '4'",
    "label empty.jsonl --out new.jsonl": "line 1 of empty.jsonl: second must be a non-empty string, got ''",
    "label pairs.jsonl --out pairs.jsonl": "line 1 of pairs.jsonl has no key 'label'",
    "label pairs.jsonl --out none/new.jsonl": "cannot write none/new.jsonl: No such file or directory",
    "label pairs.jsonl --out labels.jsonl": "line 2 of labels.jsonl: label must be one of 'first', 'second', 'skip'",
    "label pairs.jsonl --out new.jsonl --by me": "Expected one of ('person', 'rule', 'file')",
    RULE: "--by rule needs --task",
    "label pairs.jsonl --out new.jsonl --by file": "--by file needs --labels",
    "label pairs.jsonl --out new.jsonl --noise 0.1": "noise is an option of --by rule only, got --by person",
    "label pairs.jsonl --out new.jsonl --labels x": "labels is an option of --by file only, got --by person",
    "label pairs.jsonl --out new.jsonl --by file --labels labels.jsonl": "line 2 of labels.jsonl: label must be one",
    "label pairs.jsonl --out new.jsonl --seed -1": "seed must be an integer in",
    "label pairs.jsonl --out new.jsonl --nois 1": "perhaps you meant --noise",
    f"{RULE} --task arithmetic --noise 0.5": "noise must be in [0, 0.5), got 0.5",
    f"{RULE} --task arithmetic --temperature 0": "temperature must be above 0 or None, got 0",
    "label pairs.jsonl --out none/new.jsonl --by rule --task sort": "cannot write none/new.jsonl: No such file",
    f"{RULE} --task nope": "unknown task 'nope'",
    f"{RULE} --task arithmetic --task-options [1]": "task_options must be a JSON object",
    f"{RULE} --task arithmetic --ties first": "Expected one of ('skip', 'random')",
}


@pytest.mark.parametrize(("words", "sentence"), BAD_INPUT.items())
def test_bad_input_is_one_sentence_and_exit_code_2(paths, capsys, words, sentence):
    row = {"prompt": "2+2=", "first": "4", "second": "5"}
    lines = {
        "equal.jsonl": [row, row | {"second": "4"}],
        "empty.jsonl": [row | {"second": ""}],
        "labels.jsonl": [row | {"label": "first"}, row | {"label": "third"}],
    }
    for name, rows in lines.items():
        Path(name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("llmgym: ")
    assert said.err.count("\n") == 1 and sentence in said.err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_scorer_that_fails_in_the_middle_names_the_pair_and_keeps_the_rest(paths, capsys):
    pairs, answers = paths
    write_pairs(pairs, [*PAIRS[:2], Pair(Problem("what?"), "a", "b")])
    assert main(["label", str(pairs), "--out", str(answers), "--by", "rule", "--task", "countdown"]) == 2
    said = capsys.readouterr()
    assert "llmgym: pair 1 of 3: the score of '<answer>2</answer>' after '1+1=' failed: ValueError" in said.err
    assert "Traceback" not in said.err


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", capsys.readouterr().out)
    for field in fields(LabellerOptions):
        explained = text.split(f"--{field.name.replace('_', '-')} ", 1)[1].split("(default:")[0]
        assert len(explained.split()) >= 3, field.name
    assert "usage: llmgym label [-h] [OPTIONS] PAIRS.jsonl" in text


def test_the_commands_of_the_page_can_be_parsed():
    lines = re.findall(r"^    (llmgym label .*)$", (ROOT / "docs" / "preferences.md").read_text("utf-8"), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        default = LabelOptions(tyro.MISSING, tyro.MISSING)
        parse(LabelOptions, shlex.split(line, comments=True)[2:], prog="llmgym label", default=default)
    assert read_pairs([{"prompt": "p", "first": "a", "second": "b"}])
