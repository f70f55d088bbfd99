"""``lookalike explore``: opens what is to be explored, serves the page on 127.0.0.1 until Ctrl-C, and says where."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from lookalike.core.errors import IO, UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.table import open_table
from lookalike.data.source import Data, Say, name_of
from lookalike.explore.decisions import Decisions
from lookalike.explore.live import Live, training
from lookalike.explore.server import app
from lookalike.explore.session import Session
from lookalike.train.run import is_run
from lookalike.train.trained import unsaid


def explore(
    where: str | Path,
    data: Data | None = None,
    port: int = 0,
    browser: bool = True,
    decisions: Path | None = None,
    model: str | None = None,
    download: bool = False,
    progress: Progress = silent,
    say: Say = unsaid,
) -> None:
    """Serve the page of a table, or of a run, until SIGINT or SIGTERM. Raises UserError."""
    folder, file = beside(where, data)
    kept = Decisions(decisions or file)
    try:
        with listen(port) as listening:
            if data is None and training(str(where)):
                live = Live(Path(where))
                session = Session(live.table(), kept)
                work = _start(live.follow, session)
            else:
                # A table beside which the map is kept names its model itself; another is a model that embeds the data.
                named = None if Path(where).suffix == ".parquet" else model
                table = open_table(where, data, named, download, progress=progress, say=say)
                session = Session(table, kept, folder=folder, model=model, download=download)
                work = _start(Session.draw, session)
            try:
                serve(session, listening, browser, say)
            finally:  # a thread that still computes while the interpreter ends brings down the process
                session.ended.set()
                work.join()
    finally:
        kept.close()
    say(f"decisions: {kept.path}" if kept.path.is_file() else "no decisions were made")


def beside(where: str | Path, data: Data | None) -> tuple[Path | None, Path]:
    """The folder of what is kept of the map, and the file of decisions: beside a table, inside a run, else here."""
    path = Path(where)
    if is_run(path):
        return path / "explore", path / "decisions.jsonl"
    if path.suffix == ".parquet":
        return path.with_suffix(".explore"), path.with_suffix(".decisions.jsonl")
    return None, Path(f"{Path(name_of(data or where)).name or 'explore'}.decisions.jsonl")


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1 alone; port 0 is any free one. Raises UserError."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # whoever is told the address before the server runs waits, and is not refused
    except OSError as error:
        listening.close()
        raise UserError(f"port {port} cannot be used ({error.strerror}): leave out --port for a free one", IO) from None
    return listening


def serve(session: Session, listening: socket.socket, browser: bool, say: Say) -> None:
    """Until a signal comes."""
    token, port = secrets.token_urlsafe(32), listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}/?token={token}"
    settings = uvicorn.Config(
        app(session, token, port),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(settings)
    say(f"{url}\nCtrl-C ends it")
    if browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with suppress(KeyboardInterrupt):  # which uvicorn raises again after it has ended well
        server.run(sockets=[listening])


def _start(work: Callable[[Session], None], session: Session) -> threading.Thread:
    """In a thread: an end in between is no error, and what fails is said on the page."""

    def quietly() -> None:
        try:
            work(session)
        except InterruptedError:
            pass
        except UserError as error:
            session.words = str(error)

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread
