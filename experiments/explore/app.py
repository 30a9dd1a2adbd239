"""The page: a thin Gradio app around `session.act` and `draw.board`, on loopback, that asks nothing of a network."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from envs.errors import InputError
from experiments.explore.desk import Desk, ExploreConfig
from experiments.explore.draw import Scene, board, panel
from experiments.explore.guard import Guard, past_proxies
from experiments.explore.session import Session, act, fresh, pupils_of, sentence, view_of
from experiments.explore.table import table_section
from experiments.explore.views import piece
from experiments.explore.walk import ROOT

HERE = Path(__file__).parent
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def scene(desk: Desk, session: Session) -> Scene:
    """What the page shows of a session."""
    walk = session.walk
    try:
        view = view_of(desk, session)
    except InputError as error:  # a model may refuse a text that the desk took
        session, view, walk = replace(session, message=sentence(error), walk=None), None, None
    pupils = pupils_of(desk, session)
    text = () if walk is None else walk.prompt
    pieces = [] if walk is None else [piece(desk.teacher, (*text, *walk.reply(n.parent)), n.token) for n in walk.nodes]
    state = (
        None
        if walk is None or view is None or view.ended or desk.table is None
        else desk.table.state_of([*text, *walk.reply()])
    )
    settings = session.settings
    return Scene(
        session=session,
        view=view,
        names=tuple(pupil.name for pupil in pupils),
        valued=tuple(pupil.valued for pupil in pupils),
        pieces=tuple(pieces),
        start=None if walk is None else desk.known_outlook(replace(walk, here=ROOT), settings),
        here=None if walk is None else desk.known_outlook(walk, settings),
        table="" if desk.table is None else table_section(session.lesson, session.learning, state),
    )


def answer(desk: Desk, session: Session | None, action: Mapping[str, Any]) -> tuple[Session, str]:
    """The session after an action, and its board."""
    before = session or fresh(desk)
    try:
        after = act(desk, before, action)
        with desk.lock, torch.no_grad():
            return after, board(scene(desk, after))
    except Exception as error:  # whatever a model does, the page must be answered, and goes on where it was
        traceback.print_exc()
        told = f"This did not work: {type(error).__name__}, {error}; the page is where it was"
        kept = replace(before, message=sentence(Exception(told)), turn=before.turn + 1, playing=False, learning=False)
        with desk.lock, torch.no_grad():
            return kept, board(scene(desk, kept))


def build(desk: Desk) -> Any:
    """The Gradio app.

    Raises: InputError: the extra is not installed.
    """
    gradio = imported()
    script = (HERE / "explore.js").read_text(encoding="utf-8")
    with gradio.Blocks(title="tdistill explore", analytics_enabled=False) as app:
        session = gradio.State(None)
        controls = gradio.HTML(
            panel(desk.teacher.name, desk.samples, desk.settings),
            js_on_load=f"{script}\nexplorePanel(element, (action) => trigger('act', action));",
            apply_default_css=False,
            elem_id="x-panel",
        )
        shown = gradio.HTML(
            "",
            js_on_load=f"{script}\nexploreBoard(element, (action) => trigger('act', action), watch);",
            apply_default_css=False,
            elem_id="x-board",
        )

        def on_act(known: Session | None, event: Any) -> tuple[Session, str]:
            return answer(desk, known, event._data or {})

        on_act.__annotations__ = {"event": gradio.EventData}  # by which Gradio knows what to hand over
        for one in (controls, shown):
            one.act(
                on_act,
                session,
                [session, shown],
                show_progress="hidden",
                trigger_mode="multiple",
                api_visibility="private",
            )
    return app


def imported() -> Any:
    """Gradio, told to be quiet. Raises: InputError: it is not installed."""
    os.environ.update(QUIET)
    try:
        import gradio
    except ImportError as error:
        raise InputError(
            f"tdistill explore needs {error.name or 'gradio'}, which is not installed: pip install 'tdistill[explore]'"
        ) from error
    return gradio


def serve(config: ExploreConfig, *, wait: bool = True) -> tuple[Any, str]:
    """Open the page and, with `wait`, stay until it is stopped; returns the app and where it is.

    Raises: InputError: as `Desk` and `build`, or a port that is taken.
    """
    gradio, port = imported(), port_of(config.host, config.port)  # before models are read
    from starlette.middleware import Middleware

    app = build(Desk(config))
    past_proxies(config.host)
    fonts = ["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"]
    _, address, _ = app.launch(
        server_name=config.host,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Guard, host=config.host)]},
        theme=gradio.themes.Base(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
        head=f"<style>{(HERE / 'explore.css').read_text(encoding='utf-8')}</style>",
    )
    print(f"tdistill explore: {address}  (Ctrl-C ends it)", flush=True)
    if wait:
        app.block_thread()
    return app, address


def port_of(host: str, port: int) -> int:
    """A port that this host has free: the one asked for, or any for 0.

    Raises: InputError: it is taken, or the host is none of this machine's.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
            found.bind((host, port))
            free: int = found.getsockname()[1]
            return free
    except OSError as error:
        raise InputError(
            f"port {port} of host {host!r} cannot be taken ({error.strerror or error}); give another --port, 0 for any "
            "that is free, or --host 127.0.0.1"
        ) from error
