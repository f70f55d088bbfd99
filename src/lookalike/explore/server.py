"""What the page asks for, and who may ask: only a page of this very server, by whoever was given its address."""

from __future__ import annotations

import base64
import csv
import hmac
import io
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.core.errors import UserError
from lookalike.core.files import cell
from lookalike.explore.atlas import ALONE, PAGE, SIDES
from lookalike.explore.decisions import VERDICTS
from lookalike.explore.session import Hits, Session, subset
from lookalike.train.embeddings import write_embeddings

MOST_UPLOADED, MOST_ASKED = 32 << 20, 8 << 20  # bytes of a picture, and of what else the page sends
_MOST_WORDS, _MOST_SHOWN, _MOST_NAMES = 1000, 500, 64

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_STATIC = {
    file.name: (file.read_bytes(), _KINDS[Path(file.name).suffix])
    for file in files("lookalike.explore").joinpath("static").iterdir()
    if Path(file.name).suffix in _KINDS
}
"""All files that are served, read once: a name is looked up here, and is never a path."""


class Gate:
    """Lets through what comes from a page of this server with its token, and sets the headers of every answer.

    A page of somebody else reaches 127.0.0.1 in three ways: by a name of its own that it points here (the Host is
    then not ours), by a request across origins (the Origin, or Sec-Fetch-Site, is not ours), and by a picture, script
    or form (no token: the cookie is SameSite=Strict, and other ports of this machine are told apart by the Origin).
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"lookalike-{port}"
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower().encode() for name in _HEADERS}
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in own]
                ours = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            answer: ASGIApp = PlainTextResponse(f"{refusal}\n", 403)
        else:
            answer = self._page() if self._given(request) else self._app
        await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> str | None:
        """Why not; None where all is well."""
        headers = Headers(scope=request.scope)
        host, origin = headers.getlist("host"), headers.get("origin")
        if len(host) != 1 or host[0] not in self._hosts:
            return "this server is 127.0.0.1 alone"
        if origin is None and request.method not in ("GET", "HEAD"):
            return "no page asks so"
        if origin is not None and origin != f"http://{host[0]}":
            return "no page of others may ask"
        first = self._given(request)
        if not first and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "no page of others may ask"
        token = request.query_params.get("token", "") if first else request.cookies.get(self._cookie, "")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return "open the address that lookalike explore has printed, with its token"
        return None

    def _given(self, request: Request) -> bool:
        """Whether it is the address that was printed: the only one whose token is not in a cookie."""
        return request.method == "GET" and request.url.path == "/" and "token" in request.query_params

    def _page(self) -> Response:
        answer = _file("page.html")
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer


def _file(name: str) -> Response:
    if name not in _STATIC:
        return JSONResponse({"error": "there is no such file"}, 404)
    return Response(_STATIC[name][0], media_type=_STATIC[name][1])


class TooLarge(Exception):
    """A body of more bytes than anything honest has."""


async def body(request: Request, most: int) -> bytes:
    """At most so many bytes; raises TooLarge, before it has them in memory."""
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


Answer: TypeAlias = Response | dict[str, Any]


def answering(
    session: Session, work: Callable[[Session, Any], Answer], most: int = MOST_ASKED, raw: bool = False
) -> Any:
    """The endpoint of work that takes what was sent: JSON, or bytes, or of a GET the numbers in its address."""

    async def endpoint(request: Request) -> Response:
        try:
            if request.method == "GET":
                asked: Any = {**request.path_params, **request.query_params}
            else:
                sent = await body(request, most)
                asked = sent if raw else json.loads(sent)
            answer = await run_in_threadpool(work, session, asked)
            return answer if isinstance(answer, Response) else JSONResponse(answer)
        except TooLarge:
            return JSONResponse({"error": f"more than {most >> 20} MB"}, 413)
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        except LookupError:
            return JSONResponse({"error": "there is no such thing"}, 404)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return JSONResponse({"error": "that means nothing"}, 400)

    return endpoint


def app(session: Session, token: str, port: int) -> Gate:
    """All addresses; everything else is 404, and nothing in an address is ever a path of a file."""

    async def file(request: Request) -> Response:
        return _file(request.path_params.get("name", "page.html"))

    def get(path: str, work: Callable[[Session, Any], Answer]) -> Route:
        return Route(path, answering(session, work), methods=["GET"])

    def post(path: str, work: Callable[[Session, Any], Answer], **how: Any) -> Route:
        return Route(path, answering(session, work, **how), methods=["POST"])

    routes = [
        Route("/", file),
        Route("/static/{name}", file),
        get("/about", about),
        get("/state", state),
        get("/points", points),
        get("/names", names),
        get("/pages/{side:int}/{number:int}", thumbnails),
        get("/picture/{side:int}/{row:int}", picture),
        get("/queue/{name}", queue),
        post("/near", near),
        post("/dropped", dropped, most=MOST_UPLOADED, raw=True),
        post("/named", named),
        post("/decide", decide),
        post("/undo", undo),
        post("/export", export),
    ]
    return Gate(Starlette(routes=routes), token, port)


# ---- what is asked, and what is answered ----


def about(session: Session, _: Any) -> Answer:
    """What does not change."""
    rows, table = session.table.rows, session.table
    splits, origin = list(dict.fromkeys(rows.split)), rows.origin
    return {
        "name": Path(table.name).name or table.name,
        "rows": len(rows),
        "features": int(rows.vectors.shape[1]),
        "classes": list(rows.classes),
        "splits": splits,
        "pictures": table.pictures is not None,
        "page": PAGE,
        "sides": list(SIDES),
        "sentences": origin is not None and "tokenizer" in origin.preprocessing,
        "model": "" if origin is None else f"{Path(origin.run).name}{f', step {origin.step:,}' if origin.step else ''}",
        "decisions": str(session.decisions.path),
    }


def state(session: Session, _: Any) -> dict[str, Any]:
    """What does."""
    return {
        "map": session.map.number,
        "drawn": session.map.name,
        "thumbnails": session.atlas is not None,
        "words": session.words,
        "queues": session.queues.about(),
        "decided": [[row, one.queue, one.verdict, one.label] for row, one in session.decided()],
        "live": session.live,
    }


def points(session: Session, _: Any) -> Answer:
    """In the order of the pages: places float32 (N, 2), rows uint32 (N,), labels int32 (N,), splits uint8 (N,)."""
    rows, now = session.table.rows, session.map
    number = {name: i for i, name in enumerate(dict.fromkeys(rows.split))}
    splits = np.asarray([min(number[name], 255) for name in rows.split], np.uint8)
    order, labels = now.order.astype("<u4"), rows.label[now.order].astype("<i4")
    parts = (now.places[now.order].astype("<f4"), order, labels, splits[now.order])
    whole = b"".join(part.tobytes() for part in parts)
    return Response(whole, media_type="application/octet-stream", headers={"X-Map": str(now.number)})


def names(session: Session, asked: Mapping[str, str]) -> Answer:
    """The paths, and the texts, of a few rows."""
    rows = session.table.rows
    chosen = rows_in([int(row) for row in asked["rows"].split(",")], len(rows), _MOST_SHOWN)
    return {"names": [[rows.path[row], rows.text[row][:_MOST_WORDS] if rows.text else None] for row in chosen]}


def thumbnails(session: Session, asked: Mapping[str, int]) -> Answer:
    """See ``Atlas.page``."""
    side, number, atlas = asked["side"], asked["number"], session.atlas
    if atlas is None or side not in SIDES or not number < atlas.pages(side):
        raise LookupError
    return Response(atlas.page(side, number), media_type="application/octet-stream")


def picture(session: Session, asked: Mapping[str, int]) -> Answer:
    """One of the pictures, as a JPEG."""
    if session.atlas is None or asked["side"] not in ALONE or not asked["row"] < len(session.table):
        raise LookupError
    return Response(session.atlas.picture(asked["row"], asked["side"]), media_type="image/jpeg")


def queue(session: Session, asked: Mapping[str, str]) -> Answer:
    """What was found, the surest first."""
    return {"items": [one._asdict() for one in session.queues.of[asked["name"]].findings]}


def near(session: Session, asked: Mapping[str, Any]) -> Answer:
    """Of rows, less others; or of a sentence."""
    if "text" in asked:
        return hits(session.near_query(str(asked["text"])[:_MOST_WORDS]))
    count = len(session.table)
    without = rows_in(asked.get("without", []), count)
    return hits(session.near(rows_in(asked["rows"], count, least=1), without))


def dropped(session: Session, data: bytes) -> Answer:
    """Of a picture file."""
    return hits(session.near_query(data))


def hits(found: Hits) -> Answer:
    """As JSON, the cosines of all rows as base64 of float32."""
    cosines = base64.b64encode(found.cosines.astype("<f4").tobytes()).decode()
    return {"hits": [[row, float(found.cosines[row])] for row in found.rows], "cosines": cosines}


def named(session: Session, asked: Mapping[str, Any]) -> Answer:
    """Kinds and scores of all rows, from a few that have names."""
    given = {
        str(name)[:_MOST_WORDS]: rows_in(rows, len(session.table), least=1) for name, rows in asked["named"].items()
    }
    if not 0 < len(given) <= _MOST_NAMES:
        raise ValueError
    guess = session.guess(given)
    packed = (base64.b64encode(part.tobytes()).decode() for part in (guess.kinds, guess.scores.astype("<f4")))
    return dict(zip(("kinds", "scores"), packed)) | {"names": list(given)}


def decide(session: Session, asked: Mapping[str, Any]) -> Answer:
    """Written before it is answered."""
    (row,) = rows_in([asked["row"]], len(session.table))
    label, verdict = asked.get("label"), asked["decision"]
    if verdict not in VERDICTS or (verdict == "relabel") != isinstance(label, str) or label == "":
        raise ValueError
    session.decide(str(asked["queue"])[:_MOST_WORDS], row, verdict, None if label is None else label[:_MOST_WORDS])
    return state(session, None)


def undo(session: Session, _: Any) -> Answer:
    """Takes back the newest."""
    taken = session.decisions.undo()
    return state(session, None) | {"undone": None if taken is None else [taken.queue, session.row(taken.path)]}


def export(session: Session, asked: Mapping[str, Any]) -> Answer:
    """The rows that were chosen, as a list of paths or as a table."""
    chosen = rows_in(asked["rows"], len(session.table), least=1)
    rows = session.table.rows
    if asked["kind"] == "parquet":
        with TemporaryDirectory(prefix="lookalike-") as folder:
            write_embeddings(subset(rows, chosen), out := Path(folder) / "selection.parquet")
            return Response(out.read_bytes(), media_type="application/vnd.apache.parquet")
    decided = dict(session.decided())
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["path", "split", "class", "decision", "new class"])
    for row in chosen:
        label, one = int(rows.label[row]), decided.get(row)
        name = rows.classes[label] if 0 <= label < len(rows.classes) else ""
        words = (rows.path[row], rows.split[row], name, one.verdict if one else "", (one and one.label) or "")
        lines.writerow(map(cell, words))
    return Response(text.getvalue().encode("utf-8", "surrogateescape"), media_type="text/csv; charset=utf-8")


def rows_in(value: object, count: int, most: int | None = None, least: int = 0) -> list[int]:
    """Numbers of rows of a table of ``count``; raises IndexError for others, ValueError for what is no list of them."""
    if not isinstance(value, list) or not least <= len(value) <= (count if most is None else most):
        raise ValueError
    if not all(type(row) is int for row in value):
        raise ValueError
    if not all(0 <= row < count for row in value):
        raise IndexError
    return value
