"""Model routing on ShapeWorld: is the best expert chosen, are the pictures better for it, and what does it cost?

The embedded default routes: rules, sentence embeddings, no language model. A figure's `sample` says what it was
measured on:

- held out: scenes that nothing was trained or chosen by, in wordings that the rules were not written with. The words
  for a style are the grammar's, which the experts' headers name too, and the bars of the search were chosen on wishes
  of this grammar. So this says how well a wish is read whose style is named; `accuracy_other_words` says how well one
  whose style is described.
- in-sample: the wordings of the parser's tests.
- generated: files or rows made up for a measurement of time.

Times are only worth something on a machine that does nothing else.

A picture is drawn by the host's own KSampler in 20 steps from the prompt that the parser reads, the same in all arms,
and from the same noise. Its score is the oracle's: the share of what the caption says that the picture shows. The arms:
the base alone; a random model, as the mean over all of them; the model that the router picks; the same with ratings.
The ratings are of other wishes. For each the three best models are drawn side by side; of these three, those with the
highest score are liked and those with the lowest disliked, as somebody would do who compares.

Where each leaf has one model and no header lies, ratings can change little: tags say all. So there are two more
libraries.

- doubles: each expert has a double, a model with the same tags that is the mean of the expert and the base, as many
  merges are. This is the case that the method was made for, a leaf with several models. Nothing but ratings tells the
  two apart, so each wish is routed twice, the second time with their names swapped, and the mean is taken.
- liar: the base under another name, which says that it is the best at chalk. 30 ratings of chalk wishes must take
  those away from it, and leave the others as they were.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, difference, mean, save, share, show, single
from _library import scan_figures
from _store import store_query
from _world import HOME, pack, start_host

start_host()
pack()

from _gallery import Gallery, Order  # noqa: E402
from _routes import MODELS, Ratings, Routes, file_of, prompt_of, record_of  # noqa: E402
from _scripted import Scripted  # noqa: E402
from _wishes import NEW, Wish, held_out, in_other_words, in_sample, rated, timed  # noqa: E402
from assemble import EXPERTS  # noqa: E402
from atelier.llm import embeddings  # noqa: E402
from atelier.llm.ask import answer_cache  # noqa: E402
from atelier.llm.extend import extend  # noqa: E402
from atelier.llm.llm_parser import read_wish  # noqa: E402
from atelier.llm.records import Library  # noqa: E402
from atelier.llm.routing import choose  # noqa: E402
from atelier.llm.voting import Panel  # noqa: E402
from atelier.nodes.installed import read_library  # noqa: E402
from atelier.nodes.parse import AtelierPromptParser as Parser  # noqa: E402
from atelier.nodes.route import AtelierModelTreeRouter as RouterNode  # noqa: E402

COUNT, FEWEST, RATED, RATINGS = 120, 16, 64, 30
PATTERN = "shapeworld-*"
LIAR, LIED_ABOUT = "shapeworld-liar.safetensors", "chalk"
SCORE = "score"


def best_for(wish: Wish) -> str:
    """The file of the expert for the wish's style; the base draws what is flat."""
    return file_of(wish.style if wish.style in EXPERTS else "base")


def accuracy(routes: Routes, wishes: Sequence[Wish]) -> list[bool]:
    return [name == best_for(wish) for name, wish in zip(routes.names(wishes), wishes, strict=True)]


def routing(routes: Routes, wishes: Sequence[Wish]) -> dict[str, Figure]:
    """Share of wishes that go to the best expert, by form and by sample."""
    hits, known, other = accuracy(routes, wishes), in_sample(len(wishes)), in_other_words(max(1, len(wishes) // 2))
    forms = {form: share([hit for hit, wish in zip(hits, wishes, strict=True) if wish.form == form]) for form in NEW}
    kinds = share([read_wish(wish.text).kind == wish.form for wish in wishes])
    return (
        of("held out", accuracy=share(hits), **{f"accuracy_{form}": figure for form, figure in forms.items()})
        | of("held out", accuracy_other_words=share(accuracy(routes, other)), form_read=kinds)
        | of("in-sample", accuracy_known_wordings=share(accuracy(routes, known)))
    )


def pictures(routes: Routes, wishes: Sequence[Wish], ratings: Ratings, gallery: Gallery) -> dict[str, Figure]:
    """The arms: mean score of each, and the differences of pairs."""
    by_model = [gallery.scores(routes.orders(wishes, [file_of(model)] * len(wishes))) for model in MODELS]
    rated_names = routes.names(wishes, ratings.history)
    arms = {
        "base": by_model[0],
        "random": np.mean(by_model, axis=0).tolist(),
        "tree": gallery.scores(routes.orders(wishes, routes.names(wishes))),
        "tree_feedback": gallery.scores(routes.orders(wishes, rated_names)),
        "extended": gallery.scores([extended(routes, *pair) for pair in zip(wishes, rated_names, strict=True)]),
        "best_of_all": np.max(by_model, axis=0).tolist(),
    }
    pairs = (
        ("tree", "base"), ("tree", "random"), ("tree_feedback", "base"), ("tree_feedback", "tree"),
        ("extended", "tree_feedback"),
    )  # fmt: skip
    gaps = {f"{ours}_minus_{theirs}": difference(arms[ours], arms[theirs], SCORE) for ours, theirs in pairs}
    moved = share([a != b for a, b in zip(rated_names, routes.names(wishes), strict=True)])
    return of(
        "held out",
        **{f"score_{arm}": mean(scores, SCORE) for arm, scores in arms.items()},
        **gaps,
        feedback_moved=moved,
    )


def extended(routes: Routes, wish: Wish, name: str) -> Order:
    """The picture from the prompt as it is extended for its model."""
    return routes.order(wish, name, extend(prompt_of(wish), "", record_of(routes.library, name), None).prompt)


def doubled(library: Library, swapped: bool) -> Routes:
    """The library in which each expert has a double, under names of which neither says which is which."""
    models, drawn_by = list(library.models), {}
    for style in EXPERTS:
        honest, name = record_of(library, file_of(style)), file_of(f"{style}-2")
        models.append(replace(honest, name=name))
        expert, mean_of_two = (name, honest.name) if swapped else (honest.name, name)
        drawn_by |= {expert: style, mean_of_two: f"{style}+base"}
    return Routes(replace(library, models=tuple(models)), drawn_by)


def doubles(library: Library, wishes: Sequence[Wish], folder: Path, gallery: Gallery) -> dict[str, Figure]:
    """The arms where ratings alone tell two models apart. A score is the mean over both ways to name the models."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for swapped in (False, True):
        routes = doubled(library, swapped)
        ratings = Ratings(folder, f"doubles-{swapped}", routes)
        ratings.compare(rated(max(1, RATED * len(wishes) // COUNT)), gallery)
        found["tree"].append(gallery.scores(routes.orders(wishes, routes.names(wishes))))
        found["tree_feedback"].append(gallery.scores(routes.orders(wishes, routes.names(wishes, ratings.history))))
        ratings.close()
        found["random"] += [
            gallery.scores(routes.orders(wishes, [model.name] * len(wishes))) for model in routes.library.models
        ]
    arms = {name: np.mean(scores, axis=0).tolist() for name, scores in found.items()}
    gap = difference(arms["tree_feedback"], arms["tree"], SCORE)
    scores = {f"doubles_score_{arm}": mean(values, SCORE) for arm, values in arms.items()}
    return of("held out", **scores, doubles_feedback_minus_tree=gap)


def lie(library: Library) -> Library:
    """The library with the liar: the record of the expert that it lies about, under a name and title of its own."""
    honest = record_of(library, file_of(LIED_ABOUT))
    liar = replace(honest, name=LIAR, title=f"Best, {honest.trigger_words[0]}")
    return replace(library, models=(*library.models, liar))


def lying(library: Library, wishes: Sequence[Wish], folder: Path, gallery: Gallery) -> dict[str, Figure]:
    """What ratings do about the liar: how often it is chosen before and after, and the tree's two arms with it."""
    routes = Routes(lie(library), {LIAR: "base"})
    ratings = Ratings(folder, "liar", routes)
    most = RATINGS if len(wishes) >= RATED else RATINGS // 3
    about = [wish for wish in rated(2 * most + 32) if wish.style == LIED_ABOUT]  # each gives two ratings or more
    ratings.compare(about, gallery, most)
    before, after = routes.names(wishes), routes.names(wishes, ratings.history)
    ratings.close()
    asked = [number for number, wish in enumerate(wishes) if wish.style == LIED_ABOUT]
    others = [number for number, wish in enumerate(wishes) if wish.style != LIED_ABOUT]
    tree, feedback = (gallery.scores(routes.orders(wishes, names)) for names in (before, after))
    return of(
        "held out",
        liar_before=share([before[number] == LIAR for number in asked]),
        liar_after=share([after[number] == LIAR for number in asked]),
        liar_others_unchanged=share([before[number] == after[number] for number in others]),
        liar_ratings=single(ratings.count, "ratings"),
        liar_score_tree=mean(tree, SCORE),
        liar_score_tree_feedback=mean(feedback, SCORE),
        liar_feedback_minus_tree=difference(feedback, tree, SCORE),
        liar_gain_where_it_lies=difference([feedback[n] for n in asked], [tree[n] for n in asked], SCORE),
    )


def added_time(ratings: Ratings, wishes: Sequence[Wish]) -> dict[str, Figure]:
    """Milliseconds that parser and router add to a queue whose wish is new: the models' texts and most words of the
    grammar are remembered, the wish is not. `warm_repeat_ms`: the wish is remembered too. `warm_new_words_ms`: no word
    of it is."""
    os.environ["ATELIER_DATABASE_URL"] = ratings.url
    inputs = {"candidates": PATTERN, "loras": "", "feedback": True}

    def milliseconds(text: str) -> float:
        start = time.perf_counter()
        prompt, negative = Parser.execute(text).args[:2]
        RouterNode.fingerprint_inputs(**inputs)
        RouterNode.execute(prompt, fallback="none", negative=negative, **inputs)
        return 1000 * (time.perf_counter() - start)

    def with_new_words(text: str) -> float:
        embeddings._known.cache_clear()
        milliseconds("a large circle")
        return milliseconds(text)

    milliseconds("a large circle")
    new, again = ([milliseconds(wish.text) for wish in wishes] for _ in range(2))
    strange = [with_new_words(wish.text) for wish in wishes[: len(wishes) // 2]]
    return of(
        "held out",
        warm_ms=mean(new, "ms"),
        warm_p95_ms=single(float(np.percentile(new, 95)), "ms", len(new)),
        warm_repeat_ms=mean(again, "ms"),
        warm_new_words_ms=mean(strange, "ms"),
    )


def calls(routes: Routes, wishes: Sequence[Wish]) -> dict[str, Figure]:
    """Calls to a language model for a wish that it has not seen, by what they are for; and for the same wish again."""
    answer_cache().clear()
    counted: dict[str, list[float]] = defaultdict(list)
    for wish in wishes:
        llm = Scripted(wish)
        for when in ("cold", "again"):
            read = read_wish(wish.text, llm, "stop")
            panel = Panel(llm, strict=True)
            choice = choose(routes.library, read.prompt, routes.encoder, tree=routes.tree, panel=panel)
            written = extend(read.prompt, read.negative, choice.model, llm, strict=True)
            spent = {"parse": read.asked.calls, "route": panel.calls, "extend": written.calls}
            for what, number in spent.items():
                counted[f"llm_calls_{what}" if when == "cold" else "llm_calls_again"].append(number)
    answer_cache().clear()
    return of("held out", **{key: mean(numbers, "calls") for key, numbers in counted.items()})


def of(sample: str, /, **figures: Figure) -> dict[str, Figure]:
    """The figures, each with what it was measured on."""
    return {key: figure | {"sample": sample} for key, figure in figures.items()}


def measure(
    count: int, quick: bool, folder: Path, progress: Callable[[dict[str, Figure]], None], times_only: bool = False
) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}

    def note(new: dict[str, Figure]) -> None:
        figures.update(new)
        progress(new)

    gallery, wishes = Gallery(), held_out(count)
    routes = Routes(read_library(PATTERN, ""))
    ratings = Ratings(folder, "ratings", routes)
    ratings.compare(rated(max(1, RATED * count // COUNT)), gallery)
    note(of("held out", feedback_ratings=single(ratings.count, "ratings")))
    if times_only:
        note(added_time(ratings, timed(count)))
        ratings.close()
        return figures
    note(routing(routes, wishes))
    note(pictures(routes, wishes, ratings, gallery))
    note(doubles(routes.library, wishes, folder, gallery))
    note(lying(routes.library, wishes, folder, gallery))
    note(of("held out", picture_s=single(gallery.seconds / gallery.drawn, "s", gallery.drawn)))
    note(added_time(ratings, timed(count)))
    note(calls(routes, wishes[: max(1, count // 3)]))
    ratings.close()
    note(of("generated", **scan_figures(count=200 if quick else 2000)))
    note(of("generated", **store_query(count=10_000 if quick else 100_000, queries=50 if quick else 200)))
    return figures


def use_demo_models(folder: Path) -> None:
    """Have the host list the demo checkpoints, and write what is private into a folder of this run."""
    import folder_paths

    folder_paths.add_model_folder_path("checkpoints", str(HOME / "base" / "models" / "checkpoints"), is_default=True)
    folder_paths.set_user_directory(str(folder))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    parser.add_argument("--count", type=int, help=f"number of held-out wishes; any but {COUNT} writes nothing")
    parser.add_argument("--times", action="store_true", help="only what parser and router add; the rest stays as it is")
    options = parser.parse_args()
    count = options.count or (FEWEST if options.quick else COUNT)
    if count < FEWEST:
        parser.error(f"--count must be {FEWEST} or more, to have each style in each form")
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as folder:
        use_demo_models(Path(folder))
        figures = measure(count, options.quick, Path(folder), show, options.times)
    if count == COUNT and not options.quick:
        print(f"wrote {save('router', figures, keep=options.times)}")


if __name__ == "__main__":
    main()
