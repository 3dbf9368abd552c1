"""What the tests of this folder begin with."""

from __future__ import annotations

import pytest

from tests.unit.decision.world import World


@pytest.fixture
def world() -> World:
    """A healthy rollout of version 1 with version 2 just named."""
    return World().healthy().release("2")
