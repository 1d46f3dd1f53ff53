"""ShapeWorld: can the oracle read, how well do the demo models draw, and does FABRIC steer them?

Every picture is drawn by the host's own KSampler in 20 steps and read by the oracle. Prompts and seeds are held out:
their scenes come from seeds that training never uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _figures import Figure, mean, save, share, show, single
from _world import REPO, Checkpoint, load_checkpoint, pack, rendered, start_host

start_host()
pack()

from _rounds import listening  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from _steering import rendered_circle  # noqa: E402
from assemble import EXPERTS  # noqa: E402
from shapeworld.oracle import look  # noqa: E402
from shapeworld.scene import random_scene  # noqa: E402
from shapeworld.trial import HELD_OUT, bound, dense_prompts, largest, one_object_prompts, oracle_hits  # noqa: E402

SHEETS = REPO / "bench" / "results"


def vae_psnr(checkpoint: Checkpoint, count: int) -> list[float]:
    """PSNR in dB of `count` rendered pictures after encoding and decoding."""
    scenes = [random_scene(np.random.default_rng([HELD_OUT, 1, i])) for i in range(count)]
    pictures = torch.stack([rendered(scene) for scene in scenes])
    back = torch.cat([checkpoint.vae.decode(checkpoint.vae.encode(part)) for part in pictures.split(20)])
    error = ((back.clamp(0, 1) - pictures) ** 2).mean((1, 2, 3))
    return (-10 * torch.log10(error)).tolist()


@dataclass(frozen=True)
class Drawn:
    """Pictures [N, 128, 128, 3] of one-object prompts of a style, and which show the colour, the shape, and all of
    colour, shape and style that were asked for."""

    pictures: torch.Tensor
    colour: list[bool]
    shape: list[bool]
    everything: list[bool]


def draw_one_object(checkpoint: Checkpoint, style: str, count: int) -> Drawn:
    prompts = one_object_prompts(count, style)
    pictures = checkpoint.draw([text for text, _ in prompts], HELD_OUT)
    pairs = [(largest(p.numpy()), d.things[0]) for p, (_, d) in zip(pictures, prompts, strict=True)]
    colour, shape = [s.colour == a.colour for s, a in pairs], [s.shape == a.shape for s, a in pairs]
    styles = [look(picture.numpy()).style == style for picture in pictures]
    return Drawn(pictures, colour, shape, [all(hits) for hits in zip(colour, shape, styles, strict=True)])


def draw_dense(checkpoint: Checkpoint, count: int) -> tuple[list[bool], torch.Tensor]:
    """For each thing of the dense prompts: is there one with its colour and its shape?"""
    prompts = dense_prompts(count)
    pictures = checkpoint.draw([text for text, _ in prompts], HELD_OUT)
    hits = [bound(picture.numpy(), d) for picture, (_, d) in zip(pictures, prompts, strict=True)]
    return [hit for row in hits for hit in row], pictures


def fabric(checkpoint: Checkpoint, count: int, colours: tuple[str, ...]) -> tuple[list[bool], list[bool], torch.Tensor]:
    """Asked for a circle of no named colour: how often has a picture the liked one's colour, before and after?

    Round 1 draws without feedback. One of its pictures (or a rendered one, if the colour never came) of each colour
    is liked in turn, and round 2 draws from new seeds.
    """
    prompt = "a large circle"
    first = checkpoint.draw([prompt] * count, HELD_OUT + 50)
    came = [largest(picture.numpy()).colour for picture in first]
    before, after, sheet = [], [], [first[:8]]
    for k, colour in enumerate(colours):
        liked = first[came.index(colour)] if colour in came else rendered_circle(colour, radius=0.27)
        second = checkpoint.draw([prompt] * count, HELD_OUT + 1000 * (k + 1), listening(checkpoint, [liked], []))
        before += [c == colour for c in came]
        after += [largest(picture.numpy()).colour == colour for picture in second]
        sheet.append(torch.cat([liked[None], second[:7]]))
    return before, after, torch.cat(sheet)


def gain(own: list[bool], base: list[bool]) -> float:
    """Points by which one share of hits is above another."""
    return 100 * (float(np.mean(own)) - float(np.mean(base)))


def measure(n: int, progress: Callable[[dict[str, Figure]], None], draw: bool) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}

    def note(**new: Figure) -> None:
        figures.update(new)
        progress(new)

    note(oracle_clean=share(oracle_hits(n, False)), oracle_noisy=share(oracle_hits(n, True)))
    base = load_checkpoint("base")
    note(vae_psnr_db=mean(vae_psnr(base, n), "dB"))
    flat = draw_one_object(base, "flat", n)
    note(base_colour=share(flat.colour), base_shape=share(flat.shape), base_flat=share(flat.everything))
    found, dense = draw_dense(base, n)
    note(base_dense_binding=share(found))
    gains, losses, experts = [], [], []
    for style in EXPERTS:
        expert = load_checkpoint(style)
        own, without = draw_one_object(expert, style, n), draw_one_object(base, style, n)
        elsewhere = draw_one_object(expert, "flat", n).everything
        gains.append(gain(own.everything, without.everything))
        losses.append(gain(flat.everything, elsewhere))
        experts += [without.pictures[:8], own.pictures[:8]]
        note(
            **{
                f"{style}_own": share(own.everything),
                f"base_{style}": share(without.everything),
                f"{style}_flat": share(elsewhere),
            }
        )
    note(expert_gain_min=single(min(gains), "points", n), expert_loss_min=single(min(losses), "points", n))
    before, after, steered = fabric(base, max(12, n * 48 // 200), ("red", "blue", "green", "yellow"))
    note(fabric_round1=share(before), fabric_round2=share(after))
    if draw:
        SHEETS.mkdir(exist_ok=True)
        for name, tensor in (
            ("base", flat.pictures[:32]),
            ("dense", dense[:32]),
            ("experts", torch.cat(experts)),
            ("fabric", steered),
        ):
            save_sheet(tensor, SHEETS / f"shapeworld_{name}.jpg")
    return figures


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    quick = parser.parse_args().quick
    figures = measure(12 if quick else 200, show, not quick)
    if not quick:
        print(f"wrote {save('shapeworld', figures)}")


if __name__ == "__main__":
    main()
