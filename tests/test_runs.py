"""The run folder: nothing overwritten, nothing lost, every file readable."""

import json
import math

import numpy as np
import pytest

from llmgym.counters import Counters
from llmgym.evaluation import Completion, Score
from llmgym.plots import running_mean
from llmgym.runs import RunFolder, check_free, default_path, samples_table, versions
from llmgym.tasks import Problem

METRICS = {"reward": 0.5, "accuracy": 0.5, "length": 9.0, "kl": 0.01}


def score(successes):
    return Score(10, 1, successes, successes, 1.0, 5.0, 0, 1.0, Counters(sampled_tokens=50).as_dict())


def said(text, prompt="1+1=", success=True, reason="eos"):
    return Completion(Problem(prompt, "2"), text, reason, 3, -1.0, success, True, False)


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_metrics_are_on_disk_after_every_update(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        for step in (1, 2):
            folder.log(METRICS | {"sampled_tokens": 100 * step})
            lines = (folder.path / "metrics.jsonl").read_text().splitlines()  # read before the folder is closed
            assert [json.loads(line)["update"] for line in lines] == list(range(1, step + 1))
    assert json.loads(lines[-1])["sampled_tokens"] == 200


def test_what_is_not_a_number_becomes_null(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.log(METRICS | {"kl": math.nan, "ratio": math.inf})
    line = json.loads((folder.path / "metrics.jsonl").read_text())
    assert line["kl"] is None
    assert line["ratio"] is None


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder(tmp_path / "run") as folder:
        for step in (1, 2, 3):
            folder.log({"accuracy": step / 4, "sampled_tokens": 100 * step})
    events = EventAccumulator(str(folder.path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(100, 0.25), (200, 0.5), (300, 0.75)]


def test_an_error_leaves_what_was_written(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path / "run") as folder:
        folder.write_config({"task": "arithmetic", "limit": math.inf})
        folder.log(METRICS)
        raise KeyError("something else went wrong")
    config = json.loads((folder.path / "config.json").read_text())
    assert (config["task"], config["limit"]) == ("arithmetic", None)
    assert config["versions"] == versions()
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder with files in it: name a new or an empty folder"):
        RunFolder(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_empty_folder_is_fine(tmp_path):
    assert check_free(tmp_path) == tmp_path
    RunFolder(tmp_path).close()


def test_default_paths_never_meet(tmp_path):
    paths = []
    for _ in range(3):
        paths.append(default_path("grpo-copy", tmp_path))
        paths[-1].mkdir()
    assert len(set(paths)) == 3
    assert all(path.name.startswith("grpo-copy-20") for path in paths)


def test_evaluation_before_is_kept_beside_evaluation_after(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_evaluation({"before": {"greedy": score(3)}})
        folder.write_evaluation({"before": {"greedy": score(3)}, "after": {"greedy": score(9)}})
    table = json.loads((folder.path / "evaluation.json").read_text())
    assert (table["before"]["greedy"]["accuracy"], table["after"]["greedy"]["accuracy"]) == (0.3, 0.9)


@pytest.mark.parametrize(
    ("updates", "extra", "panels"),
    [
        (1, {}, 3),
        (30, {}, 3),
        (30, {"reward": 0.7}, 4),
        (5, {"kl": math.nan}, 3),
        (5, {"accuracy": 1.0, "reward": -1.0}, 4),
    ],
)
def test_the_curve_is_drawn_at_any_moment(tmp_path, updates, extra, panels):
    with RunFolder(tmp_path / "run") as folder:
        folder.records += [METRICS | extra | {"sampled_tokens": 10 * i} for i in range(updates)]
        folder.draw("a title", {"before": {"greedy": score(2)}})
        folder.draw("a title", {"before": {"greedy": score(2)}, "after": {"greedy": score(9)}})
    width, height = png_size(folder.path / "learning_curve.png")
    assert width == pytest.approx(150 * (1 + 3.5 * panels), abs=1)
    assert height == 480
    assert not list(folder.path.glob(".*"))  # no temporary file stays


def test_without_a_kl_there_is_no_panel_for_it(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.records.append({"reward": 1.0, "accuracy": 1.0, "length": 3.0})
        folder.draw()
    assert png_size(folder.path / "learning_curve.png")[0] == 150 * 8


def test_no_update_no_picture(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.draw("nothing yet")
    assert not (folder.path / "learning_curve.png").exists()


def test_running_mean_is_centred_and_skips_gaps():
    values = np.array([1.0, np.nan, 3.0, 8.0])
    np.testing.assert_allclose(running_mean(values, 1), [1.0, np.nan, 3.0, 8.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.0, 2.0, 5.5, 5.5])
    np.testing.assert_allclose(running_mean(values, 99), [4.0] * 4)
    np.testing.assert_allclose(running_mean(np.array([2.0]), 3), [2.0])


def test_samples_stand_side_by_side():
    table = samples_table([said("3", success=False)], [said("2")])
    assert "| `1+1=` | `2` | ✗ `3` | ✓ `2` |" in table
    assert "ended early" in samples_table([said("3")])


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", "`a\\|b`"),
        ("two\r\nlines", "`two⏎lines`"),
        ("`code`", "`` `code` ``"),
        ("", "(nothing)"),
        ("  ", "(nothing)"),
    ],
)
def test_a_completion_cannot_break_the_table(text, cell):
    row = samples_table([said(text)], [said("2", reason="length")]).splitlines()[-1]
    assert f"✓ {cell} |" in row
    assert row.endswith("`2` (length) |")
