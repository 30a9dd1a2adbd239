"""The page: a thin Gradio app around `session.act` and `draw.board`, on loopback, that asks nothing of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from envs.errors import InputError
from experiments.explore.desk import Desk, ExploreConfig
from experiments.explore.draw import Scene, board, panel
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
    state = None if walk is None or desk.table is None else desk.table.state_of([*text, *walk.reply()])
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
    session = act(desk, session or fresh(desk), action)
    with desk.lock, torch.no_grad():
        found = scene(desk, session)
    return session, board(found)


def build(desk: Desk) -> Any:
    """The Gradio app.

    Raises: InputError: the extra is not installed.
    """
    os.environ.update(QUIET)
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

        def on_act(known: Session | None, event: gradio.EventData) -> tuple[Session, str]:
            return answer(desk, known, event._data or {})

        on_act.__annotations__ = {"event": gradio.EventData}
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
    """Gradio. Raises: InputError: it is not installed."""
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
    imported()  # before models are read
    desk = Desk(config)
    app = build(desk)
    gradio = imported()
    fonts = ["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"]
    try:
        _, address, _ = app.launch(
            server_name=config.host,
            server_port=config.port or free_port(config.host),
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            theme=gradio.themes.Base(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
            head=f"<style>{(HERE / 'explore.css').read_text(encoding='utf-8')}</style>",
        )
    except OSError as error:
        raise InputError(
            f"port {config.port} of {config.host} cannot be taken ({error}); give another --port"
        ) from error
    print(f"tdistill explore: {address}  (Ctrl-C ends it)", flush=True)
    if wait:
        app.block_thread()
    return app, address


def free_port(host: str) -> int:
    """A port that nothing listens on now. Raises: InputError: a host that is not of this machine."""
    import socket

    try:
        with socket.socket() as found:
            found.bind((host, 0))
            port: int = found.getsockname()[1]
            return port
    except OSError as error:
        raise InputError(f"host {host!r} is none of this machine's ({error}); 127.0.0.1 is the usual one") from error
