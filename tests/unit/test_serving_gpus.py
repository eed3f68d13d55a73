"""A GPU is never with two students, and never lost: whatever starts, stops, fails, is killed, and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labrig.serving.gpus import Pool

IDS = ("GPU-a", "GPU-b", "GPU-c")
NAMES = tuple(f"jupyter-{name}" for name in ("ada", "grace", "alan", "edsger", "barbara"))


@dataclass
class Spawn:
    """A server on its way: what was reserved when the engine was asked, its answer, and what was made of it."""

    held: frozenset[str]
    running: dict[str, str] | None = None
    gpu: str | None = None


@dataclass
class Engine:
    """What runs: containers with their GPU. A container takes it when it starts."""

    running: dict[str, str] = field(default_factory=dict)


class Hubs(RuleBasedStateMachine):
    """One hub after another over one engine. Each step of a spawn is a rule, so that steps of others come between."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.pool = Pool()
        self.spawns: dict[str, Spawn] = {}

    @rule(name=st.sampled_from(NAMES))
    def begin(self, name: str) -> None:
        """A student starts a server; the hub starts none beside one that it knows, nor beside one on its way."""
        if name not in self.spawns and name not in self.pool.reserved:
            self.spawns[name] = Spawn(self.pool.held())

    @rule(name=st.sampled_from(NAMES))
    def answer(self, name: str) -> None:
        """The engine's answer is made; it may be used later."""
        if (spawn := self.spawns.get(name)) and spawn.running is None:
            spawn.running = dict(self.engine.running)

    @rule(name=st.sampled_from(NAMES))
    def pick(self, name: str) -> None:
        if not (spawn := self.spawns.get(name)) or spawn.running is None or spawn.gpu:
            return
        before = self.pool.held()
        spawn.gpu = self.pool.take(name, IDS, spawn.running, spawn.held)
        if spawn.gpu is None:  # only where there is a reason for each
            others = {gpu for who, gpu in spawn.running.items() if who != name}
            assert set(IDS) <= others | before | spawn.held
            self.pool.give_back(name)
            del self.spawns[name]

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        """The container is made, in the place of one of that name, and runs: the spawn is done."""
        if (spawn := self.spawns.get(name)) and spawn.gpu:
            self.engine.running.pop(name, None)
            self.engine.running[name] = spawn.gpu
            del self.spawns[name]

    @rule(name=st.sampled_from(NAMES), runs_on=st.booleans())
    def fail(self, name: str, runs_on: bool) -> None:
        """A spawn fails; it may leave a container that runs, which the hub could not stop."""
        if spawn := self.spawns.pop(name, None):
            if spawn.gpu and runs_on:
                self.engine.running[name] = spawn.gpu
            self.pool.give_back(name)

    @rule(name=st.sampled_from(NAMES), runs_on=st.booleans())
    def stop(self, name: str, runs_on: bool) -> None:
        """A server is stopped, or it is not, and the hub gives up on it."""
        if name in self.spawns:
            return
        if not runs_on:
            self.engine.running.pop(name, None)
        self.pool.give_back(name)

    @rule(name=st.sampled_from(NAMES))
    def die(self, name: str) -> None:
        """A container ends by itself, and the hub has not seen it yet."""
        self.engine.running.pop(name, None)

    @rule()
    def killed(self) -> None:
        """The hub is killed and comes back; what was on its way is forgotten, what runs is not."""
        self.pool, self.spawns = Pool(), {}

    @precondition(lambda self: not self.spawns)
    @rule()
    def nothing_is_lost(self) -> None:
        """Once everything has stopped, every GPU can be had."""
        self.engine.running.clear()
        for name in NAMES:
            self.pool.give_back(name)
        taken = {self.pool.take(name, IDS, {}, frozenset()) for name in NAMES[: len(IDS)]}
        assert taken == set(IDS)
        assert self.pool.take(NAMES[-1], IDS, {}, frozenset()) is None
        for name in NAMES:
            self.pool.give_back(name)
        assert self.pool.held() == frozenset()

    @invariant()
    def no_gpu_is_with_two(self) -> None:
        """What runs, and what will run, counted together, but for a student's own former container."""
        coming = {name: spawn.gpu for name, spawn in self.spawns.items() if spawn.gpu}
        has = [*coming.values(), *(gpu for name, gpu in self.engine.running.items() if name not in coming)]
        assert len(has) == len(set(has)), (coming, self.engine.running)


TestHubs = Hubs.TestCase
TestHubs.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_a_student_gets_the_gpu_again_that_their_lost_container_has() -> None:
    pool = Pool()
    assert pool.take("jupyter-ada", ("0",), {"jupyter-ada": "0"}, frozenset()) == "0"
    assert pool.take("jupyter-grace", ("0",), {"jupyter-ada": "0"}, frozenset()) is None


def test_an_id_that_was_given_back_while_the_engine_was_asked_is_not_taken_from_an_old_answer() -> None:
    pool = Pool()
    pool.take("jupyter-ada", ("0",), {}, frozenset())
    held, old = pool.held(), {}  # grace asks now; ada's container starts a moment later,
    pool.give_back("jupyter-ada")  # and the hub gives up on it, while it runs
    assert pool.take("jupyter-grace", ("0",), old, held) is None
    assert pool.take("jupyter-grace", ("0",), {"jupyter-ada": "0"}, pool.held()) is None
    assert pool.take("jupyter-grace", ("0",), {}, pool.held()) == "0"


def test_without_gpus_nobody_gets_one() -> None:
    assert Pool().take("jupyter-ada", (), {}, frozenset()) is None


def test_a_gpu_of_other_containers_is_no_reason_for_an_error() -> None:
    """The list of ids may have changed since a container started."""
    assert Pool().take("jupyter-ada", ("0",), {"jupyter-ada": "7", "jupyter-grace": "8"}, frozenset()) == "0"


def test_a_student_who_takes_an_image_for_other_gpus_gets_one_of_those() -> None:
    pool = Pool()
    assert pool.take("jupyter-ada", ("0", "1"), {}, frozenset()) == "0"
    assert pool.take("jupyter-grace", ("1",), {}, pool.held()) == "1"
    assert pool.take("jupyter-grace", ("0", "2"), {"jupyter-ada": "0"}, pool.held()) == "2"
    assert pool.held() == {"0", "2"}
