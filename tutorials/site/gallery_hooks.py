"""What sphinx-gallery calls where it runs the tutorials; see ``sphinx_gallery_conf`` in ``conf.py``."""

import os
import shutil
from pathlib import Path

import torch
from sphinx_gallery.scrapers import figure_rst

PICTURES = Path(__file__).resolve().parents[2] / "build" / "site" / "pictures"
MADE = PICTURES.with_name("made")  # all of them, by name: ``make pictures`` copies those that the repository keeps


def new_pictures(block, block_vars, gallery_conf):
    """Show what a cell has put into the folder of pictures since the last one."""
    names = []
    for path in sorted(PICTURES.glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
        target = next(block_vars["image_path_iterator"])
        shutil.copy(path, target)
        MADE.mkdir(exist_ok=True)
        shutil.move(path, MADE / path.name)
        names.append(target)
    return figure_rst(names, gallery_conf["src_dir"])


def clean_start(gallery_conf, fname):
    """Begin each tutorial without leftovers of the one before."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    os.environ["ENERGYPPL_PICTURES"] = str(PICTURES)
    torch.set_num_threads(1)
