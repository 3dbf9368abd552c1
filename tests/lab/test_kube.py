"""The lab's client: what its users rely on when watches break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cluster import is_established
from lab.kube import Informer, KubeError, path_of

Object = dict[str, Any]


def pod(name: str, version: int) -> Object:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}}


class BrokenServer:
    """Lists and watches as told; when all is told it lets the informer wait."""

    def __init__(self, *answers: list[Object] | list[tuple[str, Object]] | Exception) -> None:
        self.answers = list(answers)
        self.finished = threading.Event()
        self.calls: list[str] = []

    def _next(self, call: str) -> Any:
        self.calls.append(call)
        if not self.answers:
            self.finished.set()
            raise KubeError(503, "ServiceUnavailable", "all is told")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list_with_version(self, path: str, **query: Any) -> tuple[list[Object], str]:
        return self._next("list"), "100"

    def watch(self, path: str, version: str, **query: Any) -> Any:
        answer = self._next(f"watch from {version}")

        class Events:
            def __iter__(self) -> Iterator[tuple[str, Object]]:
                return iter(answer)

            def close(self) -> None:
                pass

        return Events()


def seen_by_informer(server: BrokenServer) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    informer = Informer(server, "/pods", lambda kind, item: seen.append((kind, item["metadata"]["name"])))  # type: ignore[arg-type]
    informer.start()
    assert server.finished.wait(10)
    informer.stop()
    return seen


def test_what_vanished_while_the_watch_was_broken_is_told_as_deleted() -> None:
    gone = KubeError(410, "Expired", "too old resource version")
    server = BrokenServer([pod("a", 1), pod("b", 2)], gone, [pod("b", 7)])
    seen = seen_by_informer(server)
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("MODIFIED", "b")]


def test_a_watch_that_ends_is_continued_where_it_ended() -> None:
    server = BrokenServer([pod("a", 1)], [("MODIFIED", pod("a", 105)), ("BOOKMARK", pod("", 110))], [])
    seen = seen_by_informer(server)
    assert seen == [("ADDED", "a"), ("MODIFIED", "a")]
    assert server.calls[:3] == ["list", "watch from 100", "watch from 110"]


def test_an_object_that_did_not_change_is_not_told_twice() -> None:
    server = BrokenServer([pod("a", 1)], KubeError(500, "InternalError", "etcd is away"), [pod("a", 1)])
    assert seen_by_informer(server) == [("ADDED", "a")]


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("ADDED", [[pod("a", 1)], [pod("a", 1)]]),
        ("MODIFIED", [[pod("a", 1)], [("MODIFIED", pod("a", 105))], [pod("a", 105)]]),
        ("DELETED", [[pod("a", 1)], [("DELETED", pod("a", 106))], []]),
    ],
)
def test_a_change_whose_handling_failed_comes_again_with_the_next_list(
    kind: str, answers: list[list[Any]]
) -> None:
    told: list[str] = []

    def handle(what: str, _: Object) -> None:
        told.append(what)
        if what == kind and told.count(kind) == 1:
            raise KubeError(503, "ServiceUnavailable", "the API server goes down")

    server = BrokenServer(*answers)
    informer = Informer(server, "/pods", handle)  # type: ignore[arg-type]
    informer.start()
    assert server.finished.wait(10)
    informer.stop()
    assert told[-2:] == [kind, kind]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("v1", "pods"), "/api/v1/pods"),
        (("v1", "namespaces", None, "shop"), "/api/v1/namespaces/shop"),
        (
            ("apps/v1", "deployments", "shop", "web", "scale"),
            "/apis/apps/v1/namespaces/shop/deployments/web/scale",
        ),
    ],
    ids=["all of the core group", "one without namespace", "a subresource of a named group"],
)
def test_path_of(arguments: tuple[str, ...], path: str) -> None:
    assert path_of(*arguments) == path


@pytest.mark.parametrize(
    ("status", "established"),
    [
        (None, False),
        ({"conditions": None}, False),
        ({"conditions": [{"type": "NamesAccepted", "status": "True"}]}, False),
        ({"conditions": [{"type": "Established", "status": "False"}]}, False),
        ({"conditions": [{"type": "Established", "status": "True"}]}, True),
    ],
    ids=["without status", "just created", "names accepted only", "refused", "served"],
)
def test_is_established(status: Object | None, established: bool) -> None:
    assert is_established({"kind": "CustomResourceDefinition", "status": status}) == established
