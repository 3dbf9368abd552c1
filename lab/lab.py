"""One lab: all its parts, up and down, in one folder.

A folder belongs to one process at a time, which holds a lock on it for life: that a number in a file still names the
same process is never assumed. Tests own their lab; `python -m lab up` leaves it to a supervisor in the background, and
another process may attach to that one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from lab import build
from lab.cluster import ControlPlane, install_crds, serviceaccount_kubeconfig
from lab.kube import KubeClient, Objects, path_of
from lab.models.train import ensure_trained
from lab.monitoring import Monitoring
from lab.node import Images, NodeAgent
from lab.process import Keeper, LabError, Process, is_alive, wait_until

if TYPE_CHECKING:
    from lab.gateway import Gateway

ROOT = Path(__file__).resolve().parent.parent
# A cold build on a slow machine is part of it; a failure is noticed at once.
UP_SECONDS = 3600.0

Say = Callable[[str], None]


def default_images() -> dict[str, Sequence[str] | None]:
    """The node's table: the model server, a Python for Jobs, and a pause image that is only reported Ready."""
    python = sys.executable
    return {"lab/model": (python, "-m", "lab.models.server"), "lab/python": (python,), "lab/pause": None}


def default_folder(name: str = "default") -> Path:
    return build.cache_folder() / "lab" / name


class Lab:
    """A Kubernetes with a node, a gateway and Prometheus, whose state is in `folder`.

    `up` starts what is missing, or attaches to the process that runs the lab in this folder already; then only what
    other processes can do is there: URLs, kubeconfigs, the client, pids. `experimental`: its HTTPRoutes are those of the Gateway
    API's experimental channel, which have `sessionPersistence`.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        prometheus: bool = True,
        gateway: bool = True,
        node: bool = True,
        crowd: bool = False,
        experimental: bool = False,
        scrape_interval: float = 2.0,
        images: Images | None = None,
        say: Say | None = None,
        supervised: bool = False,
    ) -> None:
        self.folder = (folder or default_folder()).resolve()
        self._with = {"prometheus": prometheus, "gateway": gateway, "node": node or crowd}
        self._crowd = crowd
        self._experimental = experimental
        self._interval = scrape_interval
        self._images = images if images is not None else default_images()
        self._say: Say = say or (lambda line: None)
        self._supervised = supervised
        self._lock: IO[str] | None = None
        self._keeper: Keeper | None = None
        self._control_plane: ControlPlane | None = None
        self._monitoring: Monitoring | None = None
        self._node: NodeAgent | None = None
        self._gateway: Gateway | None = None
        self._client: KubeClient | None = None
        self._clients = ExitStack()

    # Up and down

    def up(self) -> Self:
        """Start all parts and wait until they serve. Raises LabError with one sentence and the end of a log."""
        if self._control_plane is not None or self._client is not None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _claim(self.folder, {"pid": os.getpid(), "supervised": self._supervised})
        if self._lock is None:
            return self._attach()
        began = time.monotonic()
        try:
            self._start()
        except BaseException:
            self.down()
            raise
        self._say(f"lab is up after {time.monotonic() - began:.1f} s")
        return self

    def down(self, *, forget: bool = False) -> None:
        """Stop all that this lab started; with `forget` its data go too, but not its logs.

        A lab that another process supervises is told to go down. Raises LabError if its owner is no supervisor.
        """
        if self._lock is None:
            self._clients.close()
            self._client = None
            stop_detached(self.folder)
        else:
            self._stop()
        if forget:
            for part in ("etcd", "prometheus", "gateway", "pods"):
                shutil.rmtree(self.folder / part, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self.down()
        else:
            self._clients.close()
            self._client = None

    def _start(self) -> None:
        programs = {"controlplane": build.program("controlplane", self._say)}
        if self._with["prometheus"]:
            programs["prometheus"] = build.program("prometheus", self._say)
        # What is there already is not replaced by what comes later.
        crds = [build.experimental_http_route(self._say).parent] if self._experimental else []
        crds.append(build.gateway_crds(self._say))
        if self._with["gateway"]:
            crds.append(build.pool_crds(self._say))
        if self._with["node"] and not self._crowd:
            ensure_trained()  # or the first pods would all train at once, each for itself
        self._keeper = Keeper()
        plane = ControlPlane(self.folder, program=programs["controlplane"], keeper=self._keeper)
        self._control_plane = plane
        with self._part(f"control plane {build.KUBERNETES} at {plane.server}"):
            plane.start()
        self._client = self._connect(plane.kubeconfig())
        if self._with["prometheus"]:
            self._monitoring = Monitoring(
                self.folder / "prometheus",
                program=programs["prometheus"],
                kubeconfig=plane.kubeconfig("prometheus"),
                interval=self._interval,
                keeper=self._keeper,
            )
            self._monitoring.start()
        with self._part("Gateway API"):
            for folder in crds:
                install_crds(self._client, folder)
        if self._with["node"]:
            with self._part("node"):
                self._start_node(plane, self._keeper)
        if self._with["gateway"]:
            with self._part("gateway"):
                self._start_gateway(plane, self._keeper)
        if self._monitoring:
            with self._part(f"Prometheus at {self._monitoring.url}"):
                self._monitoring.wait_ready()
        self._write_state()

    def _connect(self, kubeconfig: Path) -> KubeClient:
        client = KubeClient(kubeconfig)
        self._clients.callback(client.close)
        return client

    def _start_node(self, plane: ControlPlane, keeper: Keeper) -> None:
        client = self._connect(plane.kubeconfig("node"))
        self._node = NodeAgent(client, self.folder / "pods", self._images, keeper=keeper, crowd=self._crowd)
        self._node.start()

    def _start_gateway(self, plane: ControlPlane, keeper: Keeper) -> None:
        # Imported here: a lab without it needs no Envoy.
        from lab.gateway import Gateway

        self._gateway = Gateway(plane.kubeconfig("gateway"), self.folder / "gateway", keeper=keeper)
        self._gateway.start()

    def _stop(self) -> None:
        parts: list[tuple[str, Callable[[], None]]] = []
        if self._gateway is not None:
            parts.append(("gateway", self._gateway.stop))
        if self._node is not None:
            parts.append(("node", self._node.stop))
        if self._monitoring is not None:
            parts.append(("Prometheus", self._monitoring.stop))
        if self._control_plane is not None:
            parts.append(("control plane", self._control_plane.stop))
        failures = []
        for name, stop in parts:
            try:
                stop()
            except Exception as error:  # noqa: BLE001 - the other parts must go down all the same
                failures.append(f"{name}: {error}")
        self._clients.close()
        if self._keeper is not None:
            self._keeper.close()
        (self.folder / "state.json").unlink(missing_ok=True)
        self._gateway = self._node = self._monitoring = self._control_plane = self._client = self._keeper = (
            None
        )
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if failures:
            raise LabError(f"going down, these parts failed: {'; '.join(failures)}")

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(f"{name}: {time.monotonic() - began:.1f} s")

    # Other processes

    def _attach(self) -> Self:
        wait_until(
            (self.folder / "state.json").exists,
            timeout=UP_SECONDS,
            what=f"the start of the lab in {self.folder}",
        )
        self._client = self._connect(self.kubeconfig)
        self._say(f"lab is up already: process {self._state()['owner']['pid']} runs it")
        return self

    def _state(self) -> dict[str, Any]:
        state = read_state(self.folder)
        if state is None:
            raise LabError(f"no lab is up in {self.folder}: start it with `python -m lab up`")
        return state

    def _write_state(self) -> None:
        state = {
            "server": self._plane.server,
            "kubeconfig": str(self.kubeconfig),
            "prometheus": self._monitoring.url if self._monitoring else None,
            "gateway": self._own_gateway_url(),
            "audit_log": str(self.audit_log),
            "processes": {process.name: process.pid for process in self._processes()},
        }
        unfinished = self.folder / "state.json.new"
        unfinished.write_text(json.dumps(state, indent=2) + "\n")
        unfinished.replace(self.folder / "state.json")

    def _processes(self) -> list[Process]:
        monitoring = [self._monitoring.process] if self._monitoring else []
        gateway = [self._gateway.envoy.process] if self._gateway else []
        return [*self._plane.processes, *monitoring, *gateway]

    # What tests and the demo use

    @property
    def _plane(self) -> ControlPlane:
        if self._control_plane is None:
            raise LabError("only the process that started this lab can do that")
        return self._control_plane

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfigs" / "admin.yaml"

    @property
    def client(self) -> KubeClient:
        """A client with all rights."""
        if self._client is None:
            raise LabError(f"the lab in {self.folder} is not up: call up() first")
        return self._client

    @property
    def prometheus_url(self) -> str:
        return self._url("prometheus", self._monitoring.url if self._monitoring else None)

    @property
    def gateway_url(self) -> str:
        """The proxy's listener for the Gateway `public` in namespace `gateways`."""
        return self._url("gateway", self._own_gateway_url())

    @property
    def gateway(self) -> Gateway:
        """The gateway itself, for tests that break it. Raises LabError where another process runs it, or none does."""
        if self._gateway is None:
            raise LabError("this process runs no gateway of its own")
        return self._gateway

    def _own_gateway_url(self) -> str | None:
        return f"http://127.0.0.1:{self._gateway.port}" if self._gateway is not None else None

    def _url(self, part: str, own: str | None) -> str:
        url: str | None = own if self._lock is not None else self._state()[part]
        if url is None:
            raise LabError(f"this lab runs without {part}")
        return url

    @property
    def audit_log(self) -> Path:
        """JSON lines, one per finished request (level Metadata, stage ResponseComplete)."""
        return self.folder / "logs" / "audit.jsonl"

    def audit_events(self) -> Objects:
        """The audit log so far, in the order of its lines."""
        with self.audit_log.open() as log:
            return [json.loads(line) for line in log if line.endswith("\n")]

    def kubeconfig_for(self, namespace: str, serviceaccount: str) -> Path:
        """A kubeconfig with the token of a ServiceAccount. Raises LabError if there is none such."""
        return serviceaccount_kubeconfig(self.kubeconfig, namespace, serviceaccount)

    def stop_apiserver(self, *, grace: float = 2.0) -> None:
        """Stop the API server (`grace` 0: kill it at once); etcd goes on."""
        self._plane.stop_apiserver(grace=grace)

    def start_apiserver(self) -> None:
        """Start the API server again and wait until it is ready."""
        self._plane.start_apiserver()
        self._write_state()

    def restart_etcd(self) -> None:
        """Stop etcd and start it again with the same data."""
        self._plane.etcd.stop()
        self._plane.start_etcd()
        self._write_state()

    def stop_prometheus(self) -> None:
        self._own_monitoring.stop()

    def start_prometheus(self) -> None:
        self._own_monitoring.start()
        self._own_monitoring.wait_ready()
        self._write_state()

    def prometheus_targets(self) -> list[dict[str, Any]]:
        """Prometheus' active targets: labels, health, lastError."""
        return self._own_monitoring.targets()

    @property
    def _own_monitoring(self) -> Monitoring:
        if self._monitoring is None:
            raise LabError("this lab runs no Prometheus of its own")
        return self._monitoring

    def pids(self, namespace: str, pod: str) -> list[int]:
        """The process ids of a pod's running containers, for tests that kill or stop them."""
        statuses = (
            self.client.get(path_of("v1", "pods", namespace, pod))["status"].get("containerStatuses") or []
        )
        prefix = "process://"
        ids = [status.get("containerID", "") for status in statuses if "running" in status["state"]]
        return [int(one.removeprefix(prefix)) for one in ids if one.startswith(prefix)]

    def kill_pod(self, namespace: str, pod: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a pod's processes, as a crash would; the pod stays and its containers start again."""
        for pid in self.pids(namespace, pod):
            os.kill(pid, number)


def _try_lock(folder: Path) -> IO[str] | None:
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _claim(folder: Path, owner: dict[str, Any]) -> IO[str] | None:
    """The lock, with the owner written into it; None if another process has it.

    Whoever only asks holds the lock for a moment, so one refusal says little.
    """
    for _ in range(5):
        if lock := _try_lock(folder):
            # What a killed owner said of its lab is no longer true.
            (folder / "state.json").unlink(missing_ok=True)
            lock.truncate(0)
            lock.write(json.dumps(owner))
            lock.flush()
            return lock
        time.sleep(0.05)
    return None


def read_owner(folder: Path) -> dict[str, Any] | None:
    """The process that runs the lab in a folder (`pid`, `supervised`), also while it starts; None if there is none."""
    file = folder / "lock"
    if not file.exists():
        return None
    if lock := _try_lock(folder):
        lock.close()
        return None
    try:
        owner: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        # It was locked this moment and not written yet, or somebody else only asked.
        return None
    return owner


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the lab in a folder says of itself, or None unless it is up."""
    owner = read_owner(folder)
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    return state | {"owner": owner} if owner else None


def start_detached(folder: Path, arguments: Sequence[str] = (), *, say: Say = print) -> None:
    """Start a supervisor in the background, pass on what it says, return when the lab is up.

    Raises LabError if it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if read_state(folder) is not None:
        say(f"lab is up already in {folder}")
        return
    log = folder / "supervisor.log"
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "lab", "supervise", "--folder", str(folder), *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT)])},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with log.open() as said:
        deadline = time.monotonic() + UP_SECONDS
        while time.monotonic() < deadline:
            ended, state = supervisor.poll() is not None, read_state(folder)
            for line in said:
                say(line.rstrip("\n"))
            if ended:
                raise LabError(f"the lab did not come up, see {log}")
            if state is not None:
                return
            time.sleep(0.1)
    raise LabError(f"the lab was not up after {UP_SECONDS:.0f} s, see {log}")


def stop_detached(folder: Path, *, timeout: float = 60.0) -> bool:
    """End the supervised lab in a folder; False if none runs. Raises LabError if a test or demo owns it."""
    owner = read_owner(folder)
    if owner is None:
        return False
    if not owner["supervised"]:
        raise LabError(
            f"process {owner['pid']} runs the lab in {folder} for itself: it ends with that process"
        )
    os.kill(owner["pid"], signal.SIGTERM)
    wait_until(lambda: _unlocked(folder), timeout=timeout, what=f"the end of the lab in {folder}")
    # It let go of the folder as the last thing it did; it may still take a moment to be gone.
    deadline = time.monotonic() + 5.0
    while is_alive(owner["pid"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return True


def _unlocked(folder: Path) -> bool:
    lock = _try_lock(folder)
    if lock:
        lock.close()
    return lock is not None
