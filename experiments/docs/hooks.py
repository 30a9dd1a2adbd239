"""What mkdocs does besides: the README is the first page, and files beside the pages are found where links say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = "experiments/docs/pages/"
FIGURE = re.compile(r"(!\[[^\]]*\]\()(?P<place>[^)]+\.png)\)")
MARK = re.compile(r"^<!-- runs: .*? -->\n", re.M)


def readme() -> str:
    """The README as a page: its links to pages lose their folder."""
    return (ROOT / "README.md").read_text(encoding="utf-8").replace(f"]({PAGES}", "](")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as index.md, and every figure that a page shows as figures/NAME."""
    files.append(File.generated(config, "index.md", content=readme()))
    texts = [(ROOT, readme())] + [
        (Path(file.abs_src_path).parent, Path(file.abs_src_path).read_text(encoding="utf-8"))
        for file in files.documentation_pages()
        if file.abs_src_path
    ]
    for folder, text in texts:
        for found in FIGURE.finditer(text):
            picture = (folder / found["place"]).resolve()
            name = f"figures/{picture.name}"
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Figures lie under figures/; the marks that say when a block is tested are for tests."""
    depth = "../" * page.file.src_uri.count("/")
    return MARK.sub("", FIGURE.sub(lambda found: f"{found[1]}{depth}figures/{Path(found['place']).name})", markdown))
