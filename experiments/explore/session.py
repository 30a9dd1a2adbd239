"""What one page knows, and what becomes of it when something is clicked: a reducer over frozen sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agents.errors import DivergedError
from agents.errors import InputError as AgentInputError
from envs.errors import InputError
from experiments.explore.desk import Desk, is_number
from experiments.explore.lesson import Lesson
from experiments.explore.play import next_token, whole_reply
from experiments.explore.views import Pupil, Taken, View, end_of, judged, look
from experiments.explore.walk import ROOT, Settings, Walk

TEACHER = -1  # among players


@dataclass(frozen=True)
class Reply:
    """A whole reply of someone to the prompt."""

    who: str
    steps: tuple[Taken, ...]
    ended: str


@dataclass(frozen=True)
class Session:
    """The state of a page."""

    settings: Settings
    prompt: str = ""
    walk: Walk | None = None
    message: str = ""
    """What went wrong with the last action, as a sentence; everything else is as it was before."""
    player: int = TEACHER
    playing: bool = False
    draws: int = 0
    """How often something was drawn: the next draw is another one, and a page that starts anew draws the same."""
    replies: tuple[Reply, ...] = ()
    lesson: Lesson | None = None
    learning: bool = False
    turn: int = 0
    """Actions so far, so that no two boards are alike and the page sees that it was answered."""


def fresh(desk: Desk) -> Session:
    """A page as it opens."""
    return Session(desk.settings)


def pupils_of(desk: Desk, session: Session) -> list[Pupil]:
    """The students of the desk, and the one that learns in this page."""
    return [*desk.pupils, *([session.lesson.pupil] if session.lesson else [])]


def view_of(desk: Desk, session: Session) -> View | None:
    """The state in which a page stands; None before a prompt."""
    if session.walk is None:
        return None
    return look(desk.teacher, pupils_of(desk, session), session.walk, session.settings, desk.exact(session.settings))


def act(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """The session after an action of the page: `do` names it, the rest are its values.

    What cannot be done leaves everything as it was, playing stopped, with a sentence that says why.
    """
    name, session = action.get("do"), replace(session, turn=session.turn + 1)
    try:
        if name not in ACTIONS:
            raise InputError(f"the page asked for {name!r}, which is none of {', '.join(ACTIONS)}; reload it")
        with desk.lock:
            found = ACTIONS[name](desk, replace(session, message=""), action)
        gone = found.player >= len(pupils_of(desk, found))  # a student that learned is forgotten with its lesson
        return replace(found, player=TEACHER) if gone else found
    except (InputError, AgentInputError, DivergedError) as error:
        return replace(session, message=sentence(error), playing=False, learning=False)


def sentence(error: Exception) -> str:
    """An error as a sentence of the page."""
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _whole(action: Mapping[str, Any], name: str) -> int:
    value = action.get(name)
    try:
        return int(str(value))
    except ValueError:
        raise InputError(f"{name} is {value!r}; it must be a whole number") from None


def _open(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """A page from its address, or from what was typed: prompt, and where to stand."""
    settings = session.settings
    given = dict[str, Any]()
    for name in ("top_p", "alpha", "gamma"):
        if action.get(name) not in (None, ""):
            given[name] = _number(action, name)
    settings = replace(settings, **given, context_limit=desk.settings.context_limit)
    prompt = str(action.get("prompt") or "")
    if not prompt and action.get("first"):
        prompt = desk.samples[0]
    desk.exact(settings)
    walk = desk.begin(prompt)
    if action.get("tokens"):
        try:
            tokens = [int(word) for word in str(action["tokens"]).split(",")]
        except ValueError:
            raise InputError(f"tokens are {action['tokens']!r}; they must be numbers with commas between") from None
        walk = walk.follow(desk.check_tokens(tokens))
    elif action.get("reply"):
        walk = desk.recite(walk, str(action["reply"]))
    lesson = session.lesson if settings == session.settings else None
    return replace(session, settings=settings, prompt=prompt, walk=walk, replies=(), playing=False, lesson=lesson)


def _number(action: Mapping[str, Any], name: str) -> float:
    value = action.get(name)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{name} is {value!r}; it must be a number") from None
    if not is_number(value):
        raise InputError(f"{name} is {value!r}; it must be a number")
    assert isinstance(value, int | float)
    return float(value)


def _walking(session: Session) -> Walk:
    if session.walk is None:
        raise InputError("there is no prompt yet; write one, or pick a sample")
    return session.walk


def _take(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    walk, token, settings = _walking(session), _whole(action, "token"), session.settings
    if end_of(desk.teacher, walk.prompt, walk.reply(), settings):
        raise InputError("the reply is over; go back to take another way")
    view = view_of(desk, session)
    assert view is not None
    if not any(candidate.token == token and candidate.inside for candidate in view.candidates):
        raise InputError(f"token {token} is no candidate here; click one of those shown")
    return replace(session, walk=walk.take(token), playing=False)


def _undo(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    return replace(session, walk=_walking(session).undo(), playing=False)


def _go(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    return replace(session, walk=_walking(session).go(_whole(action, "node")), playing=False)


def _set(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """Another MDP: the walk stays, what was learned of the old one does not."""
    name = str(action.get("name"))
    if name not in ("top_p", "alpha", "gamma"):
        raise InputError(f"setting {name!r} is none of top_p, alpha, gamma")
    changed: dict[str, Any] = {name: _number({name: action.get("value")}, name)}
    settings = replace(session.settings, **changed)
    if settings == session.settings:
        return session
    desk.exact(settings)
    return replace(session, settings=settings, playing=False, learning=False, lesson=None)


def _player(desk: Desk, session: Session, number: int) -> Pupil | None:
    pupils = pupils_of(desk, session)
    if not TEACHER <= number < len(pupils):
        raise InputError(f"there is no player {number}; -1 is the teacher, students are 0 to {len(pupils) - 1}")
    return None if number == TEACHER else pupils[number]


def _step(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """One token of the player."""
    walk, number = _walking(session), _whole(action, "player") if "player" in action else session.player
    pupil = _player(desk, session, number)
    if end_of(desk.teacher, walk.prompt, walk.reply(), session.settings):
        if not session.playing:
            raise InputError("the reply is over; go back, or choose another prompt, to play on")
        return replace(session, playing=False)
    token = next_token(desk.teacher, pupil, walk, session.settings, _seed(desk, session))
    walk = walk.take(token)
    goes_on = session.playing and not end_of(desk.teacher, walk.prompt, walk.reply(), session.settings)
    return replace(session, walk=walk, player=number, playing=goes_on, draws=session.draws + 1)


def _seed(desk: Desk, session: Session) -> int:
    return desk.config.seed * 1_000_003 + session.draws


def _play(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    return _step(desk, replace(session, playing=True), action)


def _pause(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    return replace(session, playing=False, learning=False)


def _end(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """All that is left of the player's episode."""
    walk, number = _walking(session), _whole(action, "player") if "player" in action else session.player
    reply = whole_reply(
        desk.teacher, _player(desk, session, number), walk, session.settings, _seed(desk, session) + 7919
    )
    return replace(session, walk=walk.follow(reply), player=number, playing=False, draws=session.draws + 1)


def _compare(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """Whole replies of the teacher and of every student to the prompt, all drawn with the same seed."""
    walk, settings, found = replace(_walking(session), here=ROOT), session.settings, list[Reply]()
    seed = _seed(desk, session) + 104_729
    for pupil in (None, *pupils_of(desk, session)):
        reply = whole_reply(desk.teacher, pupil, walk, settings, seed)
        who = "teacher" if pupil is None else pupil.name
        steps = judged(desk.teacher, walk.prompt, reply, settings)
        found.append(Reply(who, steps, end_of(desk.teacher, walk.prompt, reply, settings)))
    return replace(session, replies=tuple(found), playing=False, draws=session.draws + 1)


def _enter(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """Walk along a compared reply, up to one of its tokens."""
    number, upto = _whole(action, "reply"), _whole(action, "upto")
    if not 0 <= number < len(session.replies):
        raise InputError(f"there is no reply {number} to enter; compare again")
    tokens = tuple(step.token for step in session.replies[number].steps[: max(0, upto)])
    return replace(session, walk=replace(_walking(session), here=ROOT).follow(tokens), playing=False)


def _student(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    desk.admit(str(action.get("name") or ""))
    settings = replace(session.settings, context_limit=desk.settings.context_limit)
    return replace(session, settings=settings, replies=(), lesson=None, learning=False)


def _learn(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """A lesson begins, or goes on."""
    table = desk.table
    if table is None:
        raise InputError("only table teachers can be solved exactly; start with --teacher table:toy to watch learning")
    name = str(action.get("agent") or (session.lesson.name if session.lesson else "soft_q"))
    lesson = session.lesson
    if lesson is None or lesson.name != name or lesson.over:
        lesson = Lesson.begin(name, table, session.settings)
    lesson.learn()
    return replace(session, lesson=lesson, learning=not lesson.over)


def _forget(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    return replace(session, lesson=None, learning=False)


def _outlook(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    walk = _walking(session)
    desk.look_ahead(replace(walk, here=ROOT), session.settings)
    if desk.table is None:  # where the values of a state are not known
        desk.look_ahead(walk, session.settings)
    return session


def _tick(desk: Desk, session: Session, action: Mapping[str, Any]) -> Session:
    """What goes on by itself: an episode that is played, a student that learns."""
    if session.learning:
        session = _learn(desk, session, {})
    return _step(desk, session, {}) if session.playing else session


ACTIONS: dict[str, Callable[[Desk, Session, Mapping[str, Any]], Session]] = {
    "open": _open,
    "take": _take,
    "undo": _undo,
    "go": _go,
    "set": _set,
    "step": _step,
    "play": _play,
    "pause": _pause,
    "end": _end,
    "compare": _compare,
    "enter": _enter,
    "student": _student,
    "learn": _learn,
    "forget": _forget,
    "outlook": _outlook,
    "tick": _tick,
}
