"""The page at /: files of the package, each at one fixed path."""

from importlib import resources

from fastapi import FastAPI, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Routes for what lies in http/web/, read once; index.html is at / too."""
    for file in sorted((resources.files("ddm_rt.serve.http") / "web").iterdir(), key=lambda file: file.name):
        ending = file.name[file.name.rfind(".") :]
        if ending in _TYPES:
            _add(app, f"/{file.name}", file.read_bytes(), _TYPES[ending])
            if file.name == "index.html":
                _add(app, "/", file.read_bytes(), _TYPES[ending])


def _add(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    app.add_api_route(path, file, include_in_schema=False)
