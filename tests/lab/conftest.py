"""One lab for all of this folder's tests: its parts are slow to start and quick to share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab, default_images
from lab.models.train import ensure_trained

TINY = Path(__file__).with_name("tiny_server.py")
SCRAPE_INTERVAL = 1.0


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with all its parts. Whoever breaks one puts it right again."""
    ensure_trained()
    images = {**default_images(), "lab/tiny": (sys.executable, str(TINY))}
    folder = tmp_path_factory.mktemp("lab")
    with Lab(folder, images=images, scrape_interval=SCRAPE_INTERVAL) as running:
        yield running
