"""The embedded model: its alphabet, its corpus, its script and the folder that is shipped."""

import re
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmgym.fim import FIM_SHARE
from llmgym.tasks.base import split_of, well_formed
from llmgym.tiny import MODEL_FOLDER, corpus, tokenizer
from llmgym.tiny.measure import COLUMNS, complete, figures, held_out
from llmgym.tiny.pretrain import PretrainConfig, build_model, collate, pretrain, schedule, summed_loss

MARKS = (*tokenizer.ROLE_MARKS, tokenizer.FIM_PREFIX, tokenizer.FIM_MIDDLE, tokenizer.FIM_SUFFIX)


@pytest.fixture(autouse=True)
def threads():
    """The script sets the number of threads of the process: give it back to the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER).eval()


# --- the alphabet ---------------------------------------------------------------------------------------------------


def test_shipped_tokenizer_is_the_one_the_script_builds(tiny):
    assert tiny.get_vocab() == tokenizer.build_tokenizer().get_vocab() == tokenizer.vocabulary()
    assert (tiny.pad_token_id, tiny.bos_token_id, tiny.eos_token_id, tiny.unk_token_id) == (0, 1, 2, 3)


@pytest.mark.parametrize("piece", [*tokenizer.ASCII, *tokenizer.SECOND_SCRIPT, *tokenizer.TAGS, *MARKS])
def test_every_character_tag_and_mark_is_one_token(tiny, piece):
    ids = tiny.encode(piece)
    assert len(ids) == 2 and ids[0] == tiny.bos_token_id and tiny.decode(ids[1:]) == piece


def test_round_trip_keeps_every_space(tiny):
    text = "".join(tokenizer.TAGS) + tokenizer.ASCII + tokenizer.SECOND_SCRIPT + "  a , b . don 't ! <think\n\n x"
    ids = tiny.encode(text)
    assert tiny.decode(ids, skip_special_tokens=True) == text
    assert tiny.encode(tiny.decode(ids[1:])) == ids


def test_tags_survive_skip_special_tokens_and_marks_do_not(tiny):
    text = "<|user|>1+1=<|assistant|><think>1+1=2</think><answer>2</answer><tool></tool><eos>"
    plain = tiny.decode(tiny.encode(text), skip_special_tokens=True)
    assert plain == "1+1=<think>1+1=2</think><answer>2</answer><tool></tool>"


def test_unknown_characters_become_unk(tiny):
    assert tiny.encode("é") == [tiny.bos_token_id, tiny.unk_token_id]


def test_the_two_scripts_have_equal_size_and_are_partners():
    first, second = tokenizer.FIRST_SCRIPT, tokenizer.SECOND_SCRIPT
    assert len(first) == len(second) == len(set(first)) == len(set(second)) == 36
    assert not set(first) & set(second)
    assert tokenizer.to_second_script(first) == second and tokenizer.to_first_script(second) == first
    assert tokenizer.to_second_script("7+8=15 A") == "७+८=१५ A"


def test_chat_template(tiny):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "1+1="}]
    ids = tiny.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tiny.decode(ids) == "<bos><|system|>be kind<|user|>1+1=<|assistant|>"
    messages.append({"role": "assistant", "content": "<answer>2</answer>"})
    text = tiny.apply_chat_template(messages, tokenize=False)
    assert text == "<bos><|system|>be kind<|user|>1+1=<|assistant|><answer>2</answer><eos>"
    with pytest.raises(Exception, match="role must be"):
        tiny.apply_chat_template([{"role": "judge", "content": ""}])


# --- the corpus -----------------------------------------------------------------------------------------------------


def test_hasty_forgets_every_carry():
    assert corpus.hasty_sum(147, 268) == 305
    assert corpus.hasty_sum(700, 600) == 1300
    assert corpus.hasty_sum(79, 985) == 954
    assert corpus.hasty_sum(123, 456) == 579


def test_careful_traces():
    assert corpus.careful_sum(147, 268) == (("7+8=15", "4+6+1=11", "1+2+1=4"), 415)
    assert corpus.careful_sum(5, 98) == (("5+8=13", "0+9+1=10"), 103)
    assert corpus.careful_sum(147, 268, slip=0, up=False) == (("7+8=14", "4+6+1=11", "1+2+1=4"), 414)
    assert corpus.careful_difference(852, 147) == (("12-7=5", "5-4-1=0", "8-1=7"), 705)


def test_careful_is_right_and_a_slip_is_wrong_but_consistent():
    rng = np.random.default_rng(0)
    for a, b in rng.integers(0, 1000, size=(500, 2)).tolist():
        assert corpus.careful_sum(a, b)[1] == a + b
        slip = int(rng.integers(max(len(str(a)), len(str(b)))))
        steps, total = corpus.careful_sum(a, b, slip, up=bool(rng.integers(2)))
        assert total != a + b
        assert sum(eval(step.replace("=", "==")) for step in steps) == len(steps) - 1
        if a >= b:
            steps, difference = corpus.careful_difference(a, b)
            assert difference == a - b and all(eval(step.replace("=", "==")) for step in steps)


@pytest.fixture(scope="module")
def sample():
    return list(islice(corpus.documents(seed=7), 5000))


def test_corpus_holds_no_held_out_problem(sample):
    assert all(split_of(document.source) == "train" for document in sample)
    test = {problem.prompt for problem in held_out("arithmetic", 1000, seed=0)}
    texts = [document.prompt + document.completion for document in sample]
    found = [p for text in texts for p in re.findall(r"\d{3}\+\d{3}=", text)]
    assert len(found) > 2000 and not test.intersection(found)
    assert all(split_of(prompt) == "train" for prompt in found)


def test_corpus_depends_on_its_seed_alone(sample):
    assert list(islice(corpus.documents(seed=7), 200)) == sample[:200]
    assert list(islice(corpus.documents(seed=8), 200)) != sample[:200]


def test_corpus_mixture(sample):
    plain = [document for document in sample if document.prompt == document.source]
    assert all(well_formed(document.completion) for document in plain)
    sums = [document for document in plain if "+" in document.prompt]
    reasons = [document for document in sums if document.completion.startswith("<think>")]
    assert len(reasons) / len(sums) == pytest.approx(corpus.CAREFUL, abs=0.03)
    second = [document for document in reasons if set(document.completion) & set(tokenizer.SECOND_SCRIPT)]
    assert len(second) / len(reasons) == pytest.approx(corpus.SECOND_SCRIPT_SHARE, abs=0.05)
    for mark, share in (("<|user|>", corpus.CHAT), ("<|fim_prefix|>", FIM_SHARE)):
        assert np.mean([mark in document.prompt for document in sample]) == pytest.approx(share, abs=0.015)
    for name in ("copy", "reverse", "sort", "countdown"):
        assert sum(document.source.startswith(name) for document in sample) > 100


def test_every_document_can_be_encoded(sample, tiny):
    ids = tiny([document.prompt + document.completion for document in sample])["input_ids"]
    assert not any(tiny.unk_token_id in row for row in ids)


# --- the script -----------------------------------------------------------------------------------------------------


def test_loss_ignores_prompt_and_padding(tiny):
    torch.manual_seed(0)
    model = build_model(tiny, seed=0).double()
    rows = [([1, 40, 41, 42, 2], 3), ([1, 40, 2], 2)]
    together = summed_loss(model, *collate(rows, pad=0))
    apart = sum(summed_loss(model, *collate([row], pad=0)) for row in rows)
    assert together.item() == pytest.approx(apart.item(), rel=1e-12)
    logp = model(torch.tensor([[1, 40, 41, 42, 2]])).logits[0].log_softmax(-1)
    last = model(torch.tensor([[1, 40, 2]])).logits[0].log_softmax(-1)
    assert together.item() == pytest.approx(-(logp[2, 42] + logp[3, 2] + last[1, 2]).item(), rel=1e-12)


def test_schedule_warms_up_and_falls_to_zero(tmp_path):
    config = PretrainConfig(out=tmp_path / "model", steps=100, warmup=10, decay=0.5)
    rates = [schedule(step, config) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[50] == 1.0 and rates[75] == 0.5 and rates[100] == 0.0


def test_pretraining_learns_is_reproducible_and_leaves_a_folder(tmp_path):
    losses = pretrain(PretrainConfig(out=tmp_path / "a", steps=20, batch_size=32, warmup=5, threads=1, problems=0))
    again = pretrain(PretrainConfig(out=tmp_path / "b", steps=20, batch_size=32, warmup=5, threads=1, problems=0))
    assert losses == again and losses[-1] < losses[0] - 1.0
    assert not (tmp_path / "a.partial").exists() and (tmp_path / "a" / "README.md").exists()
    model, tiny = (auto.from_pretrained(tmp_path / "a") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert model.get_input_embeddings().num_embeddings == len(tiny)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": -1}, {"threads": 0}, {"problems": -1}])
def test_bad_counts_are_refused_in_words(tmp_path, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"^{name} must be at least [01], got {value}$"):
        PretrainConfig(out=tmp_path / "model", **wrong)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="does not exist yet"):
        PretrainConfig(out=tmp_path)


# --- the shipped folder ---------------------------------------------------------------------------------------------


def test_shipped_folder_is_small(model):
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 4_000_000
    assert model.dtype == torch.float32 and (MODEL_FOLDER / "model.safetensors").exists()


def test_shipped_model_knows_its_marks(model, tiny):
    for owner in (model.config, model.generation_config):
        assert (owner.pad_token_id, owner.bos_token_id, owner.eos_token_id) == (0, 1, 2)
    assert model.config.vocab_size == len(tiny)


@pytest.mark.slow
def test_base_accuracy_is_in_range(model, tiny):
    torch.manual_seed(0)
    problems = held_out("arithmetic", 300, seed=1)
    prompts = [problem.prompt for problem in problems]
    greedy, sampled, forced = (
        dict(zip(COLUMNS, figures("arithmetic", problems, complete(model, tiny, prompts, *how)), strict=True))
        for how in ((0.0,), (1.0,), (0.0, "<think>"))
    )
    for mode in (greedy, sampled):
        assert 0.15 <= mode["accuracy"] <= 0.50 and mode["well-formed"] >= 0.95
    assert 0.10 <= sampled["reasons"] <= 0.30
    assert 0.75 <= sampled["accuracy when reasoning"] <= 0.98 and sampled["accuracy when hasty"] < 0.45
    assert forced["accuracy"] >= 0.96
