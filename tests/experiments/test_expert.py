"""The expert's evidence, mixture and gate against numbers by hand; beside a student it changes nothing of it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from envs.decode import Decoder, decode
from envs.errors import InputError
from envs.prompts import Prompt
from envs.teachers import WARM_START
from experiments.__main__ import main
from experiments.evaluate import score_texts
from experiments.expert.counts import ANY, Evidence, Expert, Pointer, counted
from experiments.expert.files import COUNTS, SETTINGS, expert_beside, lay_beside
from experiments.expert.hybrid import Hybrid
from experiments.expert.mixture import SHUT, Gate, States, entropy, fitted, mixture
from experiments.expert.processor import ExpertProcessor
from experiments.expert.words import common_words, kinds_of, low_frequency, spans
from experiments.folder import digest
from experiments.studies.hybrid_student import HybridStudentConfig, study, table
from tests.envs.models import VOCABULARY, tiny_model, tiny_tokenizer

# 0 end, 1 " the", 2 " code", 3 " K", 4 "5", 5 "1", 6 ",", 7 " Ember"
KINDS = kinds_of([b"", b" the", b" code", b" K", b"5", b"1", b",", b" Ember"])
COMMON = frozenset({(1,), (2,), (6,)})
LOUD = Gate((1.0,) * 4, 0.0)


def test_words_are_runs_of_tokens_and_rare_ones_a_tenth() -> None:
    assert spans([2, 3, 4, 5, 6, 0, 4], KINDS) == [(0, 1), (1, 4), (4, 5), (6, 7)]
    assert low_frequency([2, 3, 4, 5, 6, 0], KINDS, COMMON).tolist() == [False, True, True, True, False, False]
    # Nine common words and K51: one of ten is rare. With K5 besides, two of eleven would be more than a tenth.
    assert common_words([[1] * 9 + [3, 4, 5]], KINDS) == {(1,)}
    assert common_words([[1] * 9 + [3, 4, 5], [3, 4]], KINDS) == {(1,), (3, 4, 5), (3, 4)}


def test_the_pointer_by_hand() -> None:
    pointer = Pointer([2, 3, 4, 5, 6, 1, 7, 6, 2, 3, 4, 4], KINDS, COMMON, 2)
    assert pointer([6, 1]) == (2, {7: 1})  # ", the" stands before "Ember" alone
    assert pointer([1, 2]) == (1, {3: 2})  # "code" before both codes
    assert pointer([2, 3, 4]) == (2, {5: 1, 4: 1})
    assert pointer([0]) == (0, {3: 2, 7: 1})  # no context matches: the beginnings of words
    assert Pointer([1, 2], KINDS, COMMON, 2)([1]) == (0, {})


def test_evidence_by_hand() -> None:
    """r_1 = (3 + ½) / (4 + 1) = .7, r = (1 + .7) / (1 + 1) = .85; P(7|1) = 2 / (4 + 1), P(7|6,1) = (1 + .4) / 2."""
    expert = Expert(
        kinds=KINDS,
        common=COMMON,
        longest=1,
        order=3,
        copies={(1, ANY): (3, 4), (1, 2): (1, 1)},
        totals={(1,): 4, (6, 1): 1},
        targets={(1,): {7: 2}, (6, 1): {7: 1}},
    )
    found = expert.evidence([1, 2], expert.pointer([2, 3, 4]))
    assert found.of(3) == pytest.approx(0.85) and found.share == pytest.approx(0.85)
    found = expert.evidence([6, 1], expert.pointer([1]))
    assert found.ids.tolist() == [7] and found.of(7) == pytest.approx(0.7)
    # A match of 1 behind a token never counted: r_1 alone, and the n-gram has what copying leaves.
    found = expert.evidence([6, 1], expert.pointer([1, 3]))
    assert (found.of(3), found.of(7)) == pytest.approx((0.7, 0.3 * 0.7))
    assert expert.evidence([7], expert.pointer([1])).share == 0.0


def test_counts_by_hand() -> None:
    replies = [[1] * 30 + [2, 3, 4, 5, 0], [1, 7, 1, 1, 0]]
    expert = counted([([2, 3, 4, 5], replies[0]), ([1], replies[1])], KINDS, order=2, longest=2)
    assert expert.common == {(1,)}  # 33 of 36 words; "code", K51 and Ember are seen once
    # 32 of the first reply's 35 states match nothing; at one, behind the last "the", a word of the prompt comes.
    assert expert.copies[(0, ANY)] == (1, 32) and expert.copies[(0, 1)] == (1, 30)
    assert expert.copies[(1, ANY)] == (1, 1) and expert.copies[(2, ANY)] == (2, 2)
    # Behind "the" stand 29 states of the first reply that are no copies, and 4 of the second, one of them with Ember;
    # behind the prompt's "1" and its copy nothing rare. Contexts seen once say nothing.
    assert expert.totals == {(1,): 33, (5,): 2} and expert.targets == {(1,): {7: 1}}
    with pytest.raises(InputError, match="order = 1 and match = 2"):
        counted([([1], [1])], KINDS, order=1, longest=2)
    with pytest.raises(InputError, match="0 replies hold no word"):
        counted([], KINDS)


def test_the_mixture_by_hand() -> None:
    """g = ½, e = (.6 on token 2, .2 on token 0): (1 − .4) (.5, .25, .25) + ½ (.2, 0, .6) = (.4, .15, .45)."""
    scores = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0  # logits
    evidence = [Evidence(np.array([2, 0]), np.array([0.6, 0.2]))]
    found = mixture(scores, evidence, Gate((0.0, 0.0, 0.0, 0.5), 0.0))
    assert found.exp()[0].tolist() == pytest.approx([0.4, 0.15, 0.45])
    assert float(entropy(scores.log_softmax(-1))) == pytest.approx(1.5 * math.log(2), abs=1e-6)
    # Shut by the weight of this much evidence, or by an entropy of 1.04 nats: the very scores.
    for gate in (SHUT, Gate((1.0, 1.0, 1.0, 0.0), 0.0), Gate((1.0,) * 4, 1.05)):
        assert mixture(scores, evidence, gate) is scores
    # A token that is ruled out stays out: (1 − .1) (⅔, ⅓, 0) + ½ (.2, 0, 0).
    scores[0, 2] = -torch.inf
    found = mixture(scores, evidence, Gate((0.5,) * 4, 0.0))
    assert found.exp()[0].tolist() == pytest.approx([0.7, 0.3, 0.0])


def test_mixtures_of_random_rows_sum_to_one() -> None:
    rng, scores = np.random.default_rng(0), torch.randn(9, 50, generator=torch.manual_seed(0)) * 4
    evidence = []
    for row in range(9):
        ids = rng.permutation(60)[: row + 1]  # some beyond the vocabulary
        evidence.append(Evidence(ids, rng.dirichlet(np.ones(row + 2))[:-1]))
    found = mixture(scores, evidence, Gate((0.3, 1.0, 0.5, 0.9), 0.5))
    open_rows = (entropy(scores.log_softmax(-1)) > 0.5).tolist()
    assert sum(open_rows) > 2 and torch.equal(found[[not x for x in open_rows]], scores[[not x for x in open_rows]])
    assert found[open_rows].double().exp().sum(-1).tolist() == pytest.approx([1.0] * sum(open_rows), abs=1e-5)
    for row in (row for row in range(9) if open_rows[row]):
        alone = mixture(scores[row : row + 1], evidence[row : row + 1], Gate((0.3, 1.0, 0.5, 0.9), 0.5))
        assert torch.allclose(alone[0], found[row], atol=1e-6)


def test_the_gate_is_the_likeliest() -> None:
    """Slope s in k states, −ε in j: λ = (k s − j ε) / ((k + j) s ε). Confident states are harmed by the expert."""
    good, bad, sure = 30, 10, 40
    states = States(
        entropy=np.array([1.0] * (good + bad) + [0.1] * sure),
        student=np.array([0.2] * (good + bad) + [0.9] * sure),
        expert=np.array([0.8] * good + [0.0] * (bad + sure)),
        share=np.full(good + bad + sure, 0.8),
    )
    gate, gain = fitted(states)
    slope = 0.8 / 0.2 - 0.8
    weight = (good * slope - bad * 0.8) / ((good + bad) * slope * 0.8)
    assert gate.weights[:3] == (0.0,) * 3 and gate.weights[3] == pytest.approx(weight) and 0.1 <= gate.threshold < 1.0
    assert gain == pytest.approx((good * math.log1p(weight * slope) + bad * math.log1p(-weight * 0.8)) / 80)
    useless = fitted(states._replace(expert=np.zeros(80)))
    assert useless == (SHUT, 0.0)


def tiny_expert() -> Expert:
    """Of replies that repeat the rare word of their prompts; some say one of their own behind w3; w3–w6 are common."""
    rng = np.random.default_rng(1)
    pairs = []
    for number in range(40):
        prompt = [1, *rng.integers(3, 7, 3).tolist(), 7 + number]
        own = [3, 60 + number] if number % 4 == 0 else []
        reply = [*rng.integers(3, 7, 5).tolist(), *prompt[-2:], *rng.integers(3, 7, 6).tolist(), *own, 2]
        pairs.append((prompt, reply))
    return counted(pairs, kinds_of([b"", b"", b"", *[b" w"] * (VOCABULARY - 3)]))


def unsure() -> Any:
    """A random student of much entropy."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    return model


PROMPTS = [[1, 4, 9, 3, 4], [1, 6, 12, 4, 5, 6], [1, 8, 3, 8]]
SETTINGS_OF_DECODE = {"eos_ids": [2], "max_new_tokens": 10, "rows": 2}


def test_a_shut_gate_is_the_student_bit_for_bit() -> None:
    model, expert = tiny_model("llama"), tiny_expert()
    policy = Hybrid(model, expert, SHUT)
    for temperature in (0.0, 1.0):
        given = {**SETTINGS_OF_DECODE, "temperature": temperature}
        assert decode(policy, PROMPTS, **given) == decode(model, PROMPTS, **given)
    walk, plain = policy.walk(3), Decoder(model, 3)
    for own in (walk, plain):
        own.start([0, 1, 2], PROMPTS)
        own.step(torch.tensor([3, 4, 5]), torch.ones(3, dtype=torch.bool))
    assert torch.equal(walk.logits, plain.logits) and torch.equal(walk.log_probs, plain.log_probs)
    texts = [[*prompt, 3, 4] for prompt in PROMPTS]
    sizes = [len(prompt) for prompt in PROMPTS]
    assert torch.equal(score_texts(policy, texts, sizes), score_texts(model, texts, sizes))


def test_decoding_processor_and_scoring_are_one_mixture() -> None:
    """Batched with refill, alone in plain `generate`, padded on the left in one batch, and along whole texts."""
    model, expert, gate = unsure(), tiny_expert(), Gate((0.5, 0.7, 0.9, 0.95), 0.2)
    policy = Hybrid(model, expert, gate)
    found = decode(policy, PROMPTS, **SETTINGS_OF_DECODE, temperature=0.0)
    assert [reply[0] for reply in found[:2]] == [9, 12]  # what stood behind the prompt's last token before
    assert found != decode(model, PROMPTS, **SETTINGS_OF_DECODE, temperature=0.0)
    width = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    batches = [(padded, PROMPTS), *((torch.tensor([prompt]), [prompt]) for prompt in PROMPTS)]
    for tokens, prompts in batches:
        out = model.generate(
            tokens,
            attention_mask=(tokens > 0).long(),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            logits_processor=[ExpertProcessor(expert, gate, padding=[0])],
        )
        for row, prompt in enumerate(prompts):
            reply = found[PROMPTS.index(prompt)]
            assert out[row, tokens.shape[1] :][: len(reply)].tolist() == reply
    texts = [prompt + reply for prompt, reply in zip(PROMPTS, found, strict=True)]
    logp = score_texts(policy, texts, [len(prompt) for prompt in PROMPTS])
    walk = policy.walk(3)
    walk.start([0, 1, 2], PROMPTS)
    for step in range(min(map(len, found))):
        states = torch.stack([logp[row, len(prompt) + step - 1] for row, prompt in enumerate(PROMPTS)])
        assert torch.allclose(walk.log_probs, states, atol=1e-4)
        assert states.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
        walk.step(torch.tensor([reply[step] for reply in found]), torch.ones(3, dtype=torch.bool))


def test_a_processor_serves_one_call() -> None:
    processor = ExpertProcessor(tiny_expert(), LOUD)
    processor(torch.tensor([PROMPTS[0]]), torch.zeros(1, VOCABULARY))
    with pytest.raises(InputError, match="one call of generate"):
        processor(torch.tensor([PROMPTS[1][:2]]), torch.zeros(1, VOCABULARY))


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    lay_beside(tmp_path, tiny_expert(), Gate((0.1, 0.2, 0.3, 0.4), 0.5), tiny_tokenizer(), [Prompt("a")], [Prompt("b")])
    return tmp_path


def test_what_is_written_is_read_back_and_the_student_loads_plain(beside: Path) -> None:
    written, (read, gate) = tiny_expert(), expert_beside(beside, tiny_tokenizer())
    assert gate == Gate((0.1, 0.2, 0.3, 0.4), 0.5)
    for name in ("common", "longest", "order", "copies", "totals", "targets"):
        assert getattr(read, name) == getattr(written, name)
    assert read.kinds.tolist() == written.kinds.tolist() and read.targets
    text = [*PROMPTS[0], 3, 4]
    one, two = (own.evidence(text, own.pointer(PROMPTS[0])) for own in (written, read))
    assert dict(zip(one.ids.tolist(), one.mass.tolist(), strict=True)) == dict(
        zip(two.ids.tolist(), two.mass.tolist(), strict=True)
    )
    with_it = AutoModelForCausalLM.from_pretrained(beside).state_dict()
    shutil.rmtree(beside / "expert")
    without = AutoModelForCausalLM.from_pretrained(beside).state_dict()
    assert with_it.keys() == without.keys() and all(torch.equal(with_it[name], without[name]) for name in with_it)
    with pytest.raises(InputError, match="make it with tdistill expert"):
        expert_beside(beside, tiny_tokenizer())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": [0.1, 0.2, 0.3]}, "must be 4 in"),
        ({"weights": [0.1, 0.2, 0.3, 1.5]}, "must be 4 in"),
        ({"threshold": float("nan")}, "a number from 0"),
        ({"order": 1}, "a whole number from 2"),
        ({"weights": None}, "is damaged"),
        ({"format": 99}, "this version reads 1"),
        ({"vocabulary": "0" * 16}, "another tokenizer"),
        ({"counts": "0" * 16}, "not the one that expert.json was written with"),
    ],
)
def test_settings_that_are_damaged_are_refused(beside: Path, change: dict[str, object], says: str) -> None:
    path = beside / "expert" / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=says):
        expert_beside(beside, tiny_tokenizer())


def test_counts_that_are_damaged_are_refused(beside: Path) -> None:
    path, settings = beside / "expert" / COUNTS, beside / "expert" / SETTINGS
    whole, known = path.read_bytes(), json.loads(settings.read_text())
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="is damaged"):
        expert_beside(beside, tiny_tokenizer())
    path.write_bytes(whole)
    tensors = load_file(path)
    for content in (
        {name: tensor for name, tensor in tensors.items() if name != "totals"},
        tensors | {"target_starts": tensors["target_starts"][:-1]},
    ):
        save_file(content, path)
        settings.write_text(json.dumps(known | {"counts": digest(path.read_bytes())}))
        with pytest.raises(InputError, match="holds no expert"):
            expert_beside(beside, tiny_tokenizer())
    settings.write_text("no JSON")
    with pytest.raises(InputError, match="is damaged"):
        expert_beside(beside, tiny_tokenizer())


def test_the_commands_make_an_expert_and_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = tmp_path / "student"
    shutil.copytree(WARM_START, student)
    few = ["--student", str(student), "--max-new-tokens", "24"]
    asked = [
        "--prompt",
        "Hi, please correct the delivery address of order 365 to 35 Glovers Buildings. The old one is wrong thanks",
    ]
    assert main(["generate", *few, *asked, "--expert"]) == 2
    assert "tdistill expert --student" in capsys.readouterr().err
    figures = tmp_path / "figures.json"
    made = ["expert", *few, "--targets", "references", "--episodes", "256", "--eval-prompts", "16"]
    assert main([*made, "--json", str(figures)]) == 0
    found = {entry["name"]: entry["value"] for entry in json.loads(figures.read_text())["figures"]}
    assert found["replies"] == 256 and found["gain"] > 0 and found["gain_rare"] > found["gain"]
    assert {path.name for path in student.iterdir()} - {path.name for path in WARM_START.iterdir()} == {"expert"}
    capsys.readouterr()
    assert main(["generate", *few, *asked]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", *few, *asked, "--expert"]) == 0
    assert "order 365" in capsys.readouterr().out.splitlines()[2] and "order 365" not in plain.splitlines()[2]
    measured = ["evaluate", *few, "--expert", "--prompt-split", "validation", "--eval-prompts", "4"]
    assert main(measured) == 2
    said = capsys.readouterr().err
    assert "was selected on" in said and said.count("\n") == 1
    for words, says in ((["--order", "1"], "order = 1 is below 2"), (["--targets", "none"], "none of teacher")):
        assert main([*made, *words]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.long
def test_a_student_is_measured_with_its_expert(tmp_path: Path) -> None:
    student, figures, found = tmp_path / "student", tmp_path / "figures.json", []
    shutil.copytree(WARM_START, student)
    assert main(["expert", "--student", str(student), "--targets", "references", "--eval-prompts", "32"]) == 0
    for more in ([], ["--expert"]):
        measured = ["evaluate", "--student", str(student), "--eval-prompts", "32", "--json", str(figures)]
        assert main([*measured, *more]) == 0
        found.append({entry["name"]: entry["value"] for entry in json.loads(figures.read_text())["figures"]})
    assert found[1]["task_score"] > found[0]["task_score"] and found[1]["forward_kl"] < found[0]["forward_kl"]
    assert found[1]["parameters"] == found[0]["parameters"]


def test_the_studys_table_pairs_by_seed() -> None:
    """Gains .3 and .1: .2 ± 12.706 · .1414 / √2 = 1.271; times are multiples, and what a seed lacks is left out."""
    cells = [
        {"seed": seed, "top_p": 0.5, "agent": "bc", "arm": arm, "candidates": 2.0, "task_score": score, "slower": slow}
        | ({"code_recall": 1.0} if seed else {})
        for seed, gain in enumerate((0.3, 0.1))
        for arm, score, slow in (("bare", 0.4, 1.0), ("own", 0.4 + gain, 2.0), ("references", 0.5, 3.0))
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(cells).splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [row["arm"] for row in rows] == ["bare", "+ own", "+ references"]
    assert [row["task"] for row in rows] == ["0.400", "+0.200±1.271", "+0.100±0.000*"]
    assert [row["time/token"] for row in rows] == ["1.00", "x2.00", "x3.00"]
    assert [row["part codes"] for row in rows] == ["", "", ""] and rows[0]["candidates"] == "2.0"


@pytest.mark.long
def test_the_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = HybridStudentConfig(
        agents=("bc",), seeds=2, top_p=(0.5,), updates=1, episodes=24, eval_prompts=4, max_new_tokens=24, out=tmp_path
    )
    first = study(config)
    assert [cell["arm"] for cell in first] == ["bare", "own", "references"] * 2
    assert first[0]["slower"] == 1.0 and first[2]["surprise"] < first[0]["surprise"]
    assert study(config) == first
    with pytest.raises(InputError, match="holds updates = 1"):
        study(replace(config, updates=2))
    with pytest.raises(InputError, match="seeds = 1 gives no interval"):
        study(replace(config, seeds=1))
