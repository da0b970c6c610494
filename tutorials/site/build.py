"""Build the documentation site: ``python tutorials/site/build.py`` writes it to ``build/site/html``.

The tutorials are shown with the pictures of ``tutorials/images``; with ``--run`` every one of them is run instead, and
what it printed and drew is shown.  That takes about half an hour on two cores.
"""

import argparse
import os
import re
import shutil
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

from percent import TUTORIALS, gallery_script
from PIL import Image
from reference import write_reference
from sphinx.cmd.build import build_main

ROOT = TUTORIALS.parent
PAGES = ("*.rst", "conf.py", "percent.py")


def main() -> int:
    """Lay out the sources under ``build/site`` and run Sphinx, warnings being errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the tutorials")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier build kept")
    options = parser.parse_args()
    site = ROOT / "build" / "site"
    if options.fresh:
        shutil.rmtree(site, ignore_errors=True)
    source = site / "source"
    for pattern in PAGES:
        for path in Path(__file__).parent.glob(pattern):
            copy_if_new(path.read_text(encoding="utf-8"), source / path.name)
    shutil.copytree(Path(__file__).parent / "_static", source / "_static", dirs_exist_ok=True)
    shutil.copytree(TUTORIALS / "images", source / "images", dirs_exist_ok=True)
    write_gallery(site, run=options.run)
    for name, text in write_reference().items():
        copy_if_new(text, source / "reference" / f"{name}.rst")
    os.environ["ENERGYPPL_SITE_RUN"] = "1" if options.run else ""
    kept = site / ("doctrees-run" if options.run else "doctrees")
    failed = build_main(["-W", "--keep-going", "-q", "-b", "html", "-d", str(kept), str(source), str(site / "html")])
    broken = broken_links(site / "html")
    print(*(f"broken link in {page}: {url}" for page, url in broken), sep="\n", end="\n" if broken else "")
    print(site / "html" / "index.html")
    return failed or int(bool(broken))


def broken_links(folder: Path) -> list[tuple[str, str]]:
    """List the links of the built pages that lead to no file or to no place in it; those elsewhere are not followed."""
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    found = []
    for page, text in texts.items():
        for url in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"\w+:", url):
                continue
            path, _, place = unquote(unescape(url)).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists() or (place and target in places and place not in places[target]):
                found.append((page.relative_to(folder).as_posix(), url))
    return found


def write_gallery(site: Path, *, run: bool) -> None:
    """Write the scripts that sphinx-gallery reads, one for each tutorial that there is."""
    folder, source = site / "scripts", site / "source"
    pictures = {path.stem: f"/images/{path.name}" for path in sorted((TUTORIALS / "images").glob("*.png"))}
    names = sorted(path.name for path in TUTORIALS.glob("[0-9]*.py"))
    for old in folder.glob("*.py"):
        if old.name not in names:
            old.unlink()
    for name in names:
        shown = re.findall(rf"images/({name[:2]}_\w+)\.png", (TUTORIALS / "README.md").read_text(encoding="utf-8"))
        own = [*shown, *(picture for picture in pictures if picture.startswith(name[:3]))]
        thumbnail = cut(source / "images" / f"{own[0]}.png").relative_to(source).as_posix() if own else None
        text = (TUTORIALS / name).read_text(encoding="utf-8")
        copy_if_new(gallery_script(text, {} if run else pictures, thumbnail, str(int(name[:2]))), folder / name)
    header = (Path(__file__).parent / "gallery_header.txt").read_text(encoding="utf-8")
    copy_if_new(header + tutorial_map(), folder / "GALLERY_HEADER.rst")


def cut(picture: Path) -> Path:
    """Write the left or upper part of a long or tall picture beside it, for a thumbnail that can be made out."""
    target = picture.with_name(f"part_{picture.name}")
    with Image.open(picture) as whole:
        width, height = whole.size
        whole.crop((0, 0, min(width, 2 * height), min(height, width))).save(target)
    return target


def tutorial_map() -> str:
    """Return the map of ``tutorials/README.md`` as a table of reStructuredText, with links to the pages."""
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.*)\]\((.*)\.py\) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    lines = ["", ".. list-table::", "   :header-rows: 1", "   :widths: 30 50 20", ""]
    lines += ["   * - Tutorial", "     - what you learn", "     - you should know"]
    for title, name, learned, known in rows:
        lines += [f"   * - :doc:`{title} </gallery/{name}>`", f"     - {learned}", f"     - {known}"]
    return "\n".join(lines) + "\n"


def copy_if_new(text: str, path: Path) -> None:
    """Write a text unless the file holds it already, so that what depends on it is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
