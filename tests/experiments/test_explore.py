"""The explorer without its page: walks, what is said of a state, soft-optimal returns, and what every click does."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch

from agents.errors import InputError as AgentInputError
from agents.student import build_student
from agents.table_student import TableStudent
from envs.errors import InputError
from envs.exact import solve_finite, stay_probability
from envs.table_teacher import toy
from experiments.__main__ import main
from experiments.explore import app, chart
from experiments.explore.desk import Desk, ExploreConfig
from experiments.explore.draw import address, board, panel
from experiments.explore.guard import MOST_BYTES, Guard, past_proxies
from experiments.explore.lesson import Lesson, teachable
from experiments.explore.play import next_token
from experiments.explore.returns import Walks, outlook, walks_from
from experiments.explore.session import Session, act, fresh
from experiments.explore.table import table_section
from experiments.explore.views import END, Pupil, look
from experiments.explore.walk import ROOT, Settings, Walk
from tests.envs.models import save_tiny

NAN = math.nan
AnyInputError = (InputError, AgentInputError)
EVIL = "</script><script>alert('x')</script><b>&\""


@pytest.fixture(scope="module")
def desk() -> Desk:
    """The toy table with a small random student."""
    return Desk(ExploreConfig(teacher="table:toy", students=("tiny",), top_p=0.8, gamma=0.9, max_new_tokens=6, walks=8))


def begun(desk: Desk, prompt: str = "1") -> Session:
    return act(desk, fresh(desk), {"do": "open", "prompt": prompt})


def test_a_walk_is_a_tree_whose_branches_stay() -> None:
    walk = Walk((7,)).take(1).take(2)
    assert walk.reply() == (1, 2) and walk.undo().reply() == (1,)
    other = walk.undo().take(3)
    assert other.reply() == (1, 3) and len(other.nodes) == 3 and other.children(0) == (1, 2)
    assert other.undo().take(2) == replace(other, here=1), "a branch is entered again, not grown twice"
    assert other.go(1).reply() == (1, 2) and other.go(ROOT).undo() == other.go(ROOT)
    with pytest.raises(InputError, match="state 3 was not visited"):
        other.go(3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"alpha": 3.0}, "temperature = 3"),
        ({"gamma": 1.5}, "gamma"),
        ({"alpha": math.nan}, "nan"),
    ],
)
def test_settings_are_checked(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Settings(**wrong)


def test_a_state_by_hand() -> None:
    """After token 1 the toy has 30, 22, 1, 44, 2, 1 hundredths: p = .8 keeps 3, 0 and 1, mass .96.

    A student with logits log(.5, .2, .1, .2, 0+, 0+) and v = −2 there, v = −1 after 3 and v(1) = −2 after 1; α = .5.
    """
    student = TableStudent(6, 1)
    with torch.no_grad():
        student.z[1] = torch.tensor([0.5, 0.2, 0.1, 0.2, 1e-9, 1e-9], dtype=torch.float64).log()
        student.v[1], student.v[3] = -2.0, -1.0
    view = look(toy(), [Pupil("s", student)], Walk((1,)), Settings(0.8, 0.5, 0.9))
    inside = [candidate for candidate in view.candidates if candidate.inside]
    assert [candidate.token for candidate in inside] == [3, 0, 1] and [c.text for c in inside] == [" 3", END, " 1"]
    assert view.retained == pytest.approx(0.96) and view.lost == pytest.approx(0.04) and view.size == 3
    assert [candidate.reward for candidate in inside] == pytest.approx([math.log(x) for x in (0.44, 0.30, 0.22)])
    shares = [0.2 / 0.9, 0.5 / 0.9, 0.2 / 0.9]  # on the set
    q = [-2 + 0.5 * math.log(share) for share in shares]
    opinions = [candidate.opinions[0] for candidate in inside]
    beyond = [candidate.opinions[0] for candidate in view.candidates if not candidate.inside]
    assert beyond[1].logp == pytest.approx(math.log(0.1), abs=1e-5) and beyond[1].q is None
    assert [opinion.logp for opinion in opinions] == pytest.approx([math.log(x) for x in (0.2, 0.5, 0.2)], abs=1e-5)
    assert [opinion.q for opinion in opinions] == pytest.approx(q, abs=1e-5)
    assert [opinion.advantage for opinion in opinions] == pytest.approx([x + 2 for x in q], abs=1e-5)
    after = [0.9 * -1.0, 0.0, 0.9 * -2.0]  # nothing after the end
    errors = [math.log(x) + y - z for x, y, z in zip((0.44, 0.30, 0.22), after, q, strict=True)]
    assert [opinion.td_error for opinion in opinions] == pytest.approx(errors, abs=1e-5)
    assert view.values == pytest.approx((-2.0,)) and view.leaks == pytest.approx((0.1,), abs=1e-5)
    assert [c.token for c in view.candidates if not c.inside] == [4, 2, 5], "by probability; a tie by the lower id"


def test_a_table_says_what_is_exact(desk: Desk) -> None:
    """Q*(s, EOS) is its reward, and V* = α log Σ exp(Q*/α) of the set."""
    exact = desk.exact(desk.settings)
    view = look(desk.teacher, desk.pupils, desk.begin("2"), desk.settings, exact)
    known = {c.token: c.exact_q for c in view.candidates if c.inside}
    assert known[0] == pytest.approx(math.log(0.64)) and view.exact_value is not None
    assert view.exact_start == view.exact_value
    assert view.exact_value == pytest.approx(np.logaddexp.reduce([q for q in known.values() if q is not None]))


def test_steps_outside_the_set_are_marked(desk: Desk) -> None:
    """After 1 the token 2 has probability .01, outside; then 0 ends the text with .64."""
    walk = desk.begin("1").take(2).take(0)
    view = look(desk.teacher, desk.pupils, walk, desk.settings)
    assert [step.inside for step in view.steps] == [False, True] and view.ended == "terminated" and not view.candidates
    assert view.gained(0.9) == pytest.approx(math.log(0.01) + 0.9 * math.log(0.64), abs=1e-5)
    assert look(desk.teacher, [], desk.begin("1").follow((3,) * 6), desk.settings).ended == "truncated"


def test_an_outlook_by_hand() -> None:
    """Two walks with Π Z = .5 and .4: V* = log .45, and they weigh 5/9 and 4/9 among soft-optimal walks."""
    levels = torch.tensor([[0.5, 1.0], [0.8, 0.5]]).log()
    found = outlook(Walks(torch.tensor([[-1.0, 0.0], [-2.0, -3.0]]), levels), 1.0, 1.0)
    assert found.value == pytest.approx(math.log(0.45), abs=1e-6) and found.exact
    assert found.mean == pytest.approx((0.0, -13 / 9, -25 / 9), abs=1e-6)
    assert found.low == pytest.approx((0.0, -2.0, -5.0)) and found.high == pytest.approx((0.0, -1.0, -1.0))
    assert not outlook(Walks(torch.zeros(2, 1), torch.zeros(2, 1)), 1.0, 0.9).exact


@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_walks_find_the_soft_optimal_return(alpha: float, gamma: float) -> None:
    """From token 1, six tokens: V* of backward induction at γ = 1, between the myopic walker's and V* below it."""
    teacher, settings = toy(), Settings(0.8, alpha, gamma)
    exact = solve_finite(teacher, horizon=6, top_p=0.8, gamma=gamma, alpha=alpha).value[6][1]
    walks = walks_from(teacher, [1], 6, settings, 4000, 0)
    found = outlook(walks, alpha, gamma)
    if gamma == 1.0:
        assert abs(found.value - exact) < 4 * found.error < 0.1
        if alpha == 1.0:
            assert exact == pytest.approx(math.log(stay_probability(teacher, 0.8, 6)[6][1]))
    else:
        powers = gamma ** torch.arange(walks.levels.shape[1])
        assert float((powers * walks.levels).sum(1).mean()) < found.value < exact + 4 * found.error


def test_players_draw_from_their_own_softmax(desk: Desk) -> None:
    """At α = .1 the teacher's .44 after 1 outweighs .30 by (44/30)^10 = 46: 3 is drawn nearly always; seeds repeat."""
    cold, walk = replace(desk.settings, alpha=0.1), desk.begin("1")
    drawn = [next_token(desk.teacher, None, walk, cold, seed) for seed in range(200)]
    assert drawn.count(3) > 180 and set(drawn) <= {3, 0, 1}
    student = [next_token(desk.teacher, desk.pupils[0], walk, desk.settings, 5) for _ in range(2)]
    assert student[0] == student[1]


def test_clicks_walk_and_undo(desk: Desk) -> None:
    page = act(desk, begun(desk), {"do": "take", "token": "3"})
    assert page.walk is not None and page.walk.reply() == (3,) and not page.message
    page = act(desk, act(desk, page, {"do": "undo"}), {"do": "take", "token": 1})
    assert page.walk is not None and page.walk.reply() == (1,) and len(page.walk.nodes) == 2
    back = act(desk, page, {"do": "go", "node": "0"})
    assert back.walk is not None and back.walk.reply() == (3,)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ({"do": "open", "prompt": "  "}, "The prompt is empty"),
        ({"do": "open", "prompt": "1 9"}, "is no text of 'toy'"),
        ({"do": "open", "prompt": "1", "tokens": "1,x"}, "must be numbers"),
        ({"do": "open", "prompt": "1", "tokens": "1,77"}, "Token 77 is not of this teacher"),
        ({"do": "open", "prompt": "1", "tokens": "0,1"}, "goes on behind token 0"),
        ({"do": "open", "prompt": "1", "reply": "1 1 1 1 1 1 1"}, "has 7 tokens, the budget is 6"),
        ({"do": "open", "prompt": "1", "top_p": "2"}, "Top_p = 2.0 is outside"),
        ({"do": "take", "token": 2}, "Token 2 is no candidate here"),
        ({"do": "go", "node": 9}, "State 9 was not visited"),
        ({"do": "set", "name": "gamma", "value": None}, "Gamma is None; it must be a number"),
        ({"do": "set", "name": "seed", "value": 1}, "Setting 'seed' is none of"),
        ({"do": "step", "player": 9}, "There is no player 9"),
        ({"do": "enter", "reply": 0, "upto": 1}, "There is no reply 0"),
        ({"do": "student", "name": "tinny"}, "did you mean tiny"),
        ({"do": "student", "name": ""}, "No student was named"),
        ({"do": "learn", "agent": "minillm"}, "cannot be watched here"),
        ({"do": "fly"}, "The page asked for 'fly'"),
        ({}, "The page asked for None"),
    ],
)
def test_what_cannot_be_done_is_said_and_loses_nothing(desk: Desk, action: dict[str, Any], says: str) -> None:
    before = act(desk, begun(desk), {"do": "take", "token": 3})
    after = act(desk, before, action)
    assert says in after.message and after.message.endswith((".", "?"))
    assert replace(after, message="", turn=before.turn) == before


def test_students_of_other_tokens_are_refused_in_the_page(tmp_path: Path) -> None:
    desk = Desk(ExploreConfig(walks=2, folder=tmp_path))
    other = save_tiny("llama", tmp_path / "other")
    page = act(desk, begun(desk, "Hello, where is my order 482?"), {"do": "student", "name": str(other)})
    assert "Teacher and student have different tokenizers: token" in page.message and len(desk.pupils) == 1
    long = act(desk, page, {"do": "open", "prompt": "word " * 5000})
    assert "is the most that is read here; shorten it." in long.message and long.walk == page.walk
    reply = act(desk, page, {"do": "open", "prompt": "Hello, where is my order 482?", "reply": "Thanks so much"})
    assert reply.walk is not None and desk.teacher.decode(reply.walk.reply()) == "Thanks so much"


def test_episodes_are_played_and_compared(desk: Desk) -> None:
    page = act(desk, begun(desk), {"do": "play", "player": -1})
    for _ in range(8):
        page = act(desk, page, {"do": "tick"})
    assert page.walk is not None and not page.playing and not page.message
    assert page.walk.reply()[-1] == 0 or len(page.walk.reply()) == 6
    again = act(desk, begun(desk), {"do": "end", "player": "0"})
    assert again.walk is not None and again.player == 0
    assert "The reply is over" in act(desk, again, {"do": "step"}).message
    both = act(desk, again, {"do": "compare"})
    assert [reply.who for reply in both.replies] == ["teacher", "tiny"] and both.walk == again.walk
    entered = act(desk, both, {"do": "enter", "reply": 1, "upto": 1})
    assert entered.walk is not None and entered.walk.reply() == (both.replies[1].steps[0].token,)


def test_an_address_leads_back(desk: Desk) -> None:
    page = act(
        desk, act(desk, begun(desk, "1 2"), {"do": "take", "token": 2}), {"do": "set", "name": "alpha", "value": 0.5}
    )
    found = {name: values[0] for name, values in parse_qs(address(page).lstrip("?")).items()}
    assert found == {"prompt": "1 2", "tokens": "2", "top_p": "0.8", "alpha": "0.5", "gamma": "0.9"}
    again = act(desk, fresh(desk), {"do": "open", **found})
    assert again.walk == page.walk and again.settings == page.settings


def test_a_lesson_comes_to_what_is_exact(desk: Desk) -> None:
    page = act(desk, begun(desk), {"do": "learn", "agent": "soft_q"})
    assert page.learning and page.lesson is not None
    page.lesson.learn(240)
    page = act(desk, page, {"do": "tick"})
    assert not page.learning and page.lesson is not None
    (first, start), (last, end) = page.lesson.gaps[0], page.lesson.gaps[-1]
    assert (first, last) == (0, 250) and start.q > 0.5 and end.q < 0.01 and end.policy < 0.003
    assert np.nanmax(np.abs(page.lesson.learned() - page.lesson.solution.q)) == pytest.approx(end.q)
    _, html = app.answer(desk, page, {"do": "take", "token": 3})
    assert "soft_q, learning" in html and "250 of 250 updates" in html
    moved = act(desk, replace(page, player=1), {"do": "set", "name": "gamma", "value": 0.5})
    assert moved.lesson is None and moved.player == -1, "what was learned was of another MDP"


@pytest.mark.parametrize("name", ["bc", "q_learning", "sac", "bellman_distill"])
def test_agents_of_every_kind_can_be_watched(name: str) -> None:
    assert name in teachable() and "minillm" not in teachable()
    lesson = Lesson.begin(name, toy(), Settings(0.8, 1.0, 0.8), updates=3)
    lesson.learn(5)
    assert lesson.over and [updates for updates, _ in lesson.gaps] == [0, 3]
    assert all(math.isfinite(gap.policy) and math.isfinite(gap.q) for _, gap in lesson.gaps)
    assert name in table_section(lesson, False, 1)


def test_the_board_shows_the_state_and_no_content_becomes_markup(desk: Desk) -> None:
    session, html = app.answer(desk, None, {"do": "open", "prompt": "1"})
    assert html.count('class="cand"') == 3 and 'data-then="outlook"' in html and "retained" in html
    session, html = app.answer(desk, session, {"do": "outlook"})
    assert 'data-then="outlook"' not in html and 'class="band"' in html and "V* of the prompt" in html
    said = board(replace(app.scene(desk, session), session=replace(session, message=EVIL, prompt=EVIL), names=(EVIL,)))
    assert "<script" not in said and "<b>&" not in said
    assert "<script" not in panel(EVIL, [EVIL], Settings()) and "http" not in panel("t", ["p"], Settings())


def test_whatever_a_model_does_the_page_is_answered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = app.answer(desk, None, {"do": "open", "prompt": "1"})

    def broken(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("experiments.explore.app.act", broken)
    kept, html = app.answer(desk, session, {"do": "undo"})
    assert "RuntimeError, no memory; the page is where it was." in kept.message and kept.message in html
    assert kept.walk == session.walk


def test_figures_read_well() -> None:
    assert [chart.number(x) for x in (-1.5, 0.001, -0.001, math.inf, math.nan)] == ["−1.50", "0.00", "0.00", "∞", "–"]
    drawn = chart.tree(Walk((1,)).take(1).take(2).undo().take(3), ["1", "2", "<3>"])
    assert drawn.count('class="dot') == 4 and "&lt;3&gt;" in drawn and "<3>" not in drawn
    assert "−2.00 nats after 2 tokens" in chart.rewards([0.0, -1.0, -2.0], None)


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="give another --port"):
            app.port_of("127.0.0.1", taken.getsockname()[1])
    assert app.port_of("127.0.0.1", 0) > 0
    for words, says in (
        ({"walks": 1}, "walks = 1"),
        ({"port": -1}, "port = -1"),
        ({"students": ("nowhere",)}, "nowhere"),
    ):
        with pytest.raises(AnyInputError, match=says):
            Desk(ExploreConfig(teacher="table:toy", **words))
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["explore"]) == 2
    assert "pip install 'tdistill[explore]'" in capsys.readouterr().err


def test_a_page_reads_no_student_that_it_was_not_given(tmp_path: Path) -> None:
    """Directories below the folder and sizes; neither others, nor links out of it, nor the hub."""
    home = tmp_path / "home"
    desk = Desk(ExploreConfig(teacher="table:toy", walks=2, folder=home))
    build_student("tiny", tokenizer=None, vocab_size=6).save(home / "mine")
    build_student("tiny", tokenizer=None, vocab_size=6).save(tmp_path / "theirs")
    (home / "link").symlink_to(tmp_path / "theirs")
    page = begun(desk)
    for name in (str(tmp_path / "theirs"), "../theirs", "link", "someone/model", "~", "nowhere"):
        said = act(desk, page, {"do": "student", "name": name}).message
        assert f"is no directory below {home}" in said and "--students" in said, name
    assert "(did you mean tiny?)" in act(desk, page, {"do": "student", "name": "tinny"}).message
    page = act(desk, act(desk, page, {"do": "student", "name": "mine"}), {"do": "student", "name": "tiny"})
    assert not page.message and [pupil.name for pupil in desk.pupils] == ["mine", "tiny"]
    desk.pupils *= 3
    assert "6 students lie here already" in act(desk, page, {"do": "student", "name": "small"}).message


def test_a_reply_that_leaves_the_sets_has_no_soft_optimal_probability(tmp_path: Path) -> None:
    """π* lives on the sets: log π* of a reply with a token outside is −∞, whatever its rewards come to."""
    from envs.hf_teacher import HFTeacher
    from tests.envs.models import tiny_model, tiny_tokenizer

    desk = Desk(ExploreConfig(teacher="table:toy", walks=4, max_new_tokens=3, top_p=0.5))
    desk.teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="tiny")
    row = desk.teacher.score([desk.begin("5 9").prompt])[0, -1]
    for token, shown in ((int(row.argmax()), "<dd>≈ "), (int(row.argmin()), "<dd>−∞</dd>")):
        page = replace(begun(desk, "5 9"), walk=desk.begin("5 9").take(token))
        _, html = app.answer(desk, page, {"do": "outlook"})
        assert shown in html.split("<dt>log π*(this reply)</dt>")[1].split("</div>")[0]


def asked(path: str, headers: dict[str, str], parts: list[bytes] | None = None, host: str = "127.0.0.1") -> int:
    """The status of an answer, of an application that reads the whole body, behind the guard."""
    sent, waiting = list[Any](), list(parts or [b""])

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        more, status = True, 200
        while more:
            message = await receive()
            more = bool(message.get("more_body"))
            status = 400 if message["type"] == "http.disconnect" else status
        await send({"type": "http.response.start", "status": status})

    async def receive() -> dict[str, Any]:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(inner, host)({"type": "http", "path": path, "headers": raw}, receive, send))
    return int(sent[0]["status"])


def test_the_server_answers_this_page_and_requests_of_its_size() -> None:
    for name in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"):
        assert asked("/", {"Host": name}) == 200
    for name in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert asked("/", {"Host": name}) == 403, "another site's name that leads here"
    assert asked("/", {"Host": "my-machine:7860"}, host="0.0.0.0") == 200, "it was asked to be seen by others"
    here, most = {"Host": "127.0.0.1"}, MOST_BYTES
    assert asked("/gradio_api/upload", here) == 403
    assert asked("/gradio_api/queue/join", here | {"Content-Length": str(most)}) == 200
    assert asked("/gradio_api/queue/join", here | {"Content-Length": str(most + 1)}) == 413
    assert asked("/gradio_api/queue/join", here | {"Content-Length": "-1"}) == 413
    half = b"x" * (most // 2)
    assert asked("/gradio_api/queue/join", here, [half, half]) == 200
    assert asked("/gradio_api/queue/join", here, [half, half, b"x"]) == 400, "a body that never said how long it is"


def test_this_process_reaches_itself_past_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "here.example")
    monkeypatch.delenv("no_proxy", raising=False)
    past_proxies("127.0.0.1")
    assert os.environ["NO_PROXY"] == "here.example,localhost,127.0.0.1,::1"
    assert os.environ["no_proxy"] == "localhost,127.0.0.1,::1"
