"""Looks through a built site: each link leads somewhere, each anchor is there, and no page loads from elsewhere.

MkDocs itself checks the links in Markdown; this sees those in HTML, in generated parts and in the theme, too.
"""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, where it stands.
_LOADED = {("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "srcset"), ("iframe", "src")}
_LOADED |= {("source", "src"), ("video", "src"), ("object", "data"), ("link", "href"), ("image", "href")}


@dataclass
class _Page(HTMLParser):
    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[tuple[str, bool]] = field(default_factory=list)  # where to, and whether a browser fetches it by itself

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif value and ((tag, name) in _LOADED or (tag, name) == ("a", "href")):
                parts = value.split(",") if name == "srcset" else [value]
                self.links += [(part.split()[0], tag != "a") for part in parts if part.strip()]


def problems(site: Path) -> list[str]:
    """One line for each link of a page that leads nowhere, and for each thing that it loads from elsewhere."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link, loaded in page.links:
            if problem := _problem(site, pages, path, link, loaded):
                found.append(f"{path.relative_to(site)}: {link}: {problem}")
    return list(dict.fromkeys(found))


def _problem(site: Path, pages: dict[Path, _Page], path: Path, link: str, loaded: bool) -> str | None:
    parts = urlsplit(link)
    if parts.scheme == "data":
        return None
    if parts.scheme or parts.netloc:
        return "loaded from elsewhere" if loaded else None
    # The page for addresses that aren't there is served at any of them, so its links begin at the root.
    begin = site / parts.path.lstrip("/") if parts.path.startswith("/") else path.parent / parts.path
    target = path if not parts.path else Path(unquote(str(begin))).resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "leads nowhere"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "no such anchor"
    return None
