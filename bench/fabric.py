"""FABRIC: does it do what the paper says, does it steer, what does it cost, and is any rating lost?

Five parts, each with figures of its own:

- parity: small UNets of the SD1.5 and SDXL layouts against an implementation written from the paper.
- sessions: the paper's two protocols on ShapeWorld, three rounds of four pictures, one like and one dislike for each
  round. "preference": a person who asks for a shape and has a taste in colours and grounds. "target": a person who has
  a picture in mind, of which the prompt says only the shape. Arms: without feedback; with it, in the first half of
  sampling; without dislikes; in the second half; with one picture of each batch that does not listen; and the node's
  default, where the noise on the rated pictures does not depend on the seed.
- steering: one like or one dislike, and what the next round shows where the prompt leaves it open.
- store: ratings that are lost when the server is killed while many people rate.
- costs: whole runs against the plain model. Only worth something on a machine that does nothing else.

With --part, the figures of the other parts stay in the result file as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import ratings
import torch
from _figures import RESULTS, Figure, save, show, single
from _world import load_checkpoint, pack, start_host

start_host()
pack()

from _fabric_cost import CHANNELS, COST_STEPS, REPEATS, costs  # noqa: E402
from _fabric_parity import parity  # noqa: E402
from _people import embedder  # noqa: E402
from _rounds import ARMS, Arm  # noqa: E402
from _session_figures import likeness_figures, plot, score_figures  # noqa: E402
from _sessions import STEPS, play_sessions  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from _steering import EACH, steering  # noqa: E402

SESSIONS = 100
PROTOCOLS: dict[str, tuple[Arm, ...]] = {"preference": ARMS, "target": ARMS[:1]}
Note = Callable[[dict[str, Figure]], None]


def parity_part(options: argparse.Namespace, note: Note) -> None:
    found = parity()
    note({"parity_max": single(max(found), "relative", len(found))})


def sessions_part(options: argparse.Namespace, note: Note) -> None:
    count, played = 2 if options.quick else SESSIONS, {}
    for protocol, arms in PROTOCOLS.items():
        played[protocol] = play_sessions(protocol, count, arms, options.resume, options.quick)
        note(score_figures(protocol, played[protocol]))
        note(likeness_figures(protocol, played[protocol], embedder()))
    if not options.quick:
        plot(played, RESULTS / "fabric_sessions.png")


def steering_part(options: argparse.Namespace, note: Note) -> None:
    checkpoint = load_checkpoint("base")
    checkpoint.steps = STEPS
    pictures = steering(checkpoint, 4 if options.quick else EACH, note)
    if not options.quick:
        save_sheet(pictures, RESULTS / "fabric_steering.jpg")


def store_part(options: argparse.Namespace, note: Note) -> None:
    note(ratings.measure(options.quick))


def costs_part(options: argparse.Namespace, note: Note) -> None:
    costs(*((1, 4, 32) if options.quick else (REPEATS, COST_STEPS, CHANNELS)), note)


PARTS = {
    "parity": parity_part, "sessions": sessions_part, "steering": steering_part, "store": store_part,
    "costs": costs_part,
}  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--resume", action="store_true", help="use the sessions that an earlier run has played")
    options = parser.parse_args()
    figures: dict[str, Figure] = {}

    def note(new: dict[str, Figure]) -> None:
        figures.update(new)
        show(new)

    for name in options.part or PARTS:
        PARTS[name](options, note)
    if not options.quick:
        print(f"wrote {save('fabric', figures, keep=options.part is not None)}")


if __name__ == "__main__":
    main()
