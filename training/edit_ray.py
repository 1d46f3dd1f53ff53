"""Draws edit data in several Ray workers. Needs the package ray.

A task is one triplet, and doing it again gives the same pairs, so the task of a worker that was killed goes to the
worker that takes its place. Results are given in the order of the numbers.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from .edit_data import Pairs
from .edit_shards import EditDataError

RETRIES = 3
"""How often a task is put back, after a fault of its own or the loss of its worker."""
AHEAD = 2
"""Tasks that each worker has or has done before their results are wanted: more would only fill the memory."""
POLL = 0.5
"""Seconds between two looks at whether the user interrupts."""

Task = Callable[[int], Pairs]


def drawn_by_ray(
    make_task: Callable[[], Task],
    workers: int,
    check: Callable[[], None] = lambda: None,
    packages: Sequence[str] = (),
) -> Callable[[Iterable[int]], Iterator[Pairs]]:
    """An engine that draws in `workers` processes, on the Ray cluster of RAY_ADDRESS or else on this machine.

    Args:
        make_task: called in each worker, which then draws with what it returns.
        check: raises when the user interrupts.
        packages: names of packages that each worker loads first, beside this one: they may have registered models.

    Raises:
        EditDataError: The package ray is missing. While it runs: a task failed again and again.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise EditDataError(
            f"Several workers need the package {error.name}. Run in ComfyUI's Python environment: pip install ray. Or "
            "set workers to 1."
        ) from None

    def results(numbers: Iterable[int]) -> Iterator[Pairs]:
        own = not ray.is_initialized()
        if own:
            quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
            ray.init(os.environ.get("RAY_ADDRESS"), **(quiet if "RAY_ADDRESS" not in os.environ else {}))
        actors = [_actor(ray, make_task, workers, packages) for _ in range(workers)]
        try:
            yield from _in_order(ray, actors, numbers, check)
        finally:
            for actor in actors:
                ray.kill(actor)
            if own:
                ray.shutdown()

    return results


def _actor(ray: Any, make_task: Callable[[], Task], workers: int, packages: Sequence[str]) -> Any:
    """A worker that Ray starts again when it dies."""
    pickle = ray.cloudpickle
    this = sys.modules[__name__]
    pickle.register_pickle_by_value(this)  # a worker cannot import the pack before `Worker` has told it how
    try:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
        kind = ray.remote(max_restarts=-1, max_task_retries=RETRIES, num_cpus=0, num_gpus=gpus)(Worker)
        pack = __name__.removesuffix(".training.edit_ray")
        places = {name: sys.modules[name].__file__ for name in packages if name != pack}
        host = [place for place in sys.path if (Path(place) / "comfy" / "sd.py").is_file()]
        home = (pack, str(Path(__file__).parents[1]))
        return kind.remote(host, home, places, _on_cpu(), pickle.dumps(make_task))
    finally:
        pickle.unregister_pickle_by_value(this)


def _on_cpu() -> bool:
    from comfy.cli_args import args

    return args.cpu


def _in_order(ray: Any, actors: Sequence[Any], numbers: Iterable[int], check: Callable[[], None]) -> Iterator[Pairs]:
    """The results, with a few tasks under way."""
    left, turns = iter(numbers), cycle(actors)
    running = deque((number, next(turns)) for number in islice(left, AHEAD * len(actors)))
    pending = deque((number, actor, actor.draw.remote(number)) for number, actor in running)
    while pending:
        number, actor, promise = pending.popleft()
        yield _result(ray, number, actor, promise, check)
        for following in islice(left, 1):
            pending.append((following, actor, actor.draw.remote(following)))


def _result(ray: Any, number: int, actor: Any, promise: Any, check: Callable[[], None]) -> Pairs:
    for tries in range(RETRIES + 1):
        while not ray.wait([promise], timeout=POLL)[0]:
            check()
        check()
        try:
            return ray.get(promise)
        except ray.exceptions.RayError as error:
            if tries == RETRIES or isinstance(error, ray.exceptions.ActorDiedError):
                raise EditDataError(
                    f"Triplet {number} could not be drawn by a worker ({str(error).strip().splitlines()[-1]}). What is "
                    "written stays; queue again to go on, with fewer workers if memory is short."
                ) from error
            promise = actor.draw.remote(number)
    raise AssertionError


class Worker:
    """A process that draws. It is pickled with this module, so it imports the pack only when it knows where it is."""

    def __init__(
        self, host: Sequence[str], pack: tuple[str, str], packages: dict[str, str], cpu: bool, make_task: bytes
    ) -> None:
        import importlib.util
        import pickle
        import sys
        import types
        from pathlib import Path

        sys.path[:0] = [place for place in host if place not in sys.path]
        from comfy.cli_args import args

        args.cpu = cpu
        name, folder = pack
        sys.modules[name] = types.ModuleType(name)  # without its nodes, which nobody needs here
        sys.modules[name].__path__ = [folder]
        for name, file in packages.items():
            spec = importlib.util.spec_from_file_location(
                name, file, submodule_search_locations=[str(Path(file).parent)]
            )
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        self.task = pickle.loads(make_task)()

    def draw(self, number: int) -> Pairs:
        import torch

        with torch.inference_mode():
            return self.task(number)
