"""One lab for all of this folder's tests: its parts are slow to start and quick to share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.lab import Lab, default_images
from lab.models.train import ensure_trained
from lab.operator import Operator
from tests.lab.rollouts import TIMING, Stories, Story

TINY = Path(__file__).with_name("tiny_server.py")
SCRAPE_INTERVAL = 1.0


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with all its parts. Whoever breaks one puts it right again."""
    ensure_trained()
    images = {**default_images(), "lab/tiny": (sys.executable, str(TINY))}
    folder = tmp_path_factory.mktemp("lab")
    with Lab(folder, images=images, experimental=True, scrape_interval=SCRAPE_INTERVAL) as running:
        yield running


@pytest.fixture(scope="module")
def operator(lab: Lab) -> Iterator[Operator]:
    """An operator for a module's tests, with the rights that the chart gives it."""
    values = {"servers": [{"name": "default", "url": lab.prometheus_url}], "timing": TIMING}
    with Operator(lab, values=values) as running:
        yield running


@pytest.fixture(scope="module")
def started(operator: Operator) -> Iterator[dict[Callable[..., object], Stories]]:
    """The stories of each test of a module, once it began."""
    running: dict[Callable[..., object], Stories] = {}
    yield running
    for stories in running.values():
        stories.close()


@pytest.fixture
def play(
    request: pytest.FixtureRequest, lab: Lab, started: dict[Callable[..., object], Stories]
) -> Callable[[Story], None]:
    """Waits for the end of a story. The first one of a test starts all of that test's that were asked for."""
    test = request.function
    if test not in started:
        wanted = [item for item in request.session.items if getattr(item, "function", None) is test]
        started[test] = Stories(lab, [item.callspec.params["story"] for item in wanted])
    return started[test].result
