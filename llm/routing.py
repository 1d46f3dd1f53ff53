"""Picks a model for a wish: walks the tree, weighs the ratings, asks the voices, and tells why.

The choice is always one of the installed models of the opened leaves, or the fallback. It widens to the neighbouring
leaves only where every model of the opened ones was rated badly for prompts like this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .embeddings import Encoder
from .lora import bases_for, best_base, no_base
from .ranking import FLOOR, LEAD, LIMIT, PRIOR, History, Standing, standings
from .records import Library, ModelRecord
from .tree import UNCLASSIFIED, ModelTree, Node, bind, leaves, model_key, tree_from_tags
from .tree_search import Search, search_notes
from .voting import Panel

MARGIN = 0.01
"""A lead in nearness below this is no decision: two wordings of one wish differ by as much."""

SHORTLIST = 12
"""Models that are put before the voices, the nearest ones."""


@dataclass(frozen=True)
class Ranked:
    """A model, its place in the ranking by a reason, and for a LoRA the checkpoint that it is put on."""

    model: ModelRecord
    reason: str
    base: ModelRecord | None = None

    @property
    def checkpoint(self) -> ModelRecord:
        """The checkpoint to load."""
        return self.base or self.model


@dataclass(frozen=True)
class Choice:
    """The model picked, why in a sentence or two, and the whole evidence as plain JSON data.

    `ranking` has the choice first and then the runners-up, as many as were asked for and are there.
    """

    model: ModelRecord
    reason: str
    trace: dict[str, Any]
    ranking: tuple[Ranked, ...] = ()


@dataclass
class _Field:
    """The models to choose from, with what speaks for each."""

    search: Search
    standing: Mapping[str, Standing]
    models: dict[str, ModelRecord] = field(default_factory=dict)
    near: dict[str, float] = field(default_factory=dict)

    def add(self, nodes: Iterable[Node]) -> None:
        """Add the models of these leaves."""
        for model in (model for node in nodes for model in node.models):
            key = model_key(model)
            if key not in self.models:
                self.models[key] = model
                self.near[key] = self.search.nearness(model)

    def mean(self, key: str) -> float:
        return self.standing[key].mean if key in self.standing else PRIOR

    def by_nearness(self) -> list[str]:
        return sorted(self.models, key=lambda key: (-self.near[key], key))

    def leading(self) -> list[str]:
        """The models that ratings do not tell from the best one, the nearest first."""
        bar = max(self.mean(key) for key in self.models) - LEAD
        return [key for key in self.by_nearness() if self.mean(key) >= bar]

    def all_disliked(self) -> bool:
        return all(self.mean(key) < PRIOR - LEAD for key in self.models)

    def known_of(self, key: str) -> str:
        return f" Known of it: {self.standing[key].in_words()}." if key in self.standing else ""


def choose(
    library: Library,
    wish: str,
    encoder: Encoder,
    fallback: ModelRecord | None = None,
    *,
    tree: ModelTree | None = None,
    panel: Panel | None = None,
    history: History | None = None,
    count: int = 1,
) -> Choice:
    """Pick the model that suits the wish best, or the fallback when the best has no clear lead.

    Args:
        library: checkpoints and LoRAs that can be chosen. A LoRA needs a compatible checkpoint among them.
        tree: how they are sorted; their tags as they are if None.
        panel: the voices to ask; similarity alone decides if None.
        history: how models did on similar prompts.
        count: length of the ranking. The runners-up may come from leaves that were not opened.

    Raises:
        ValueError: the wish or the library is empty.
    """
    if not wish.strip():
        raise ValueError("The wish is empty. Write what you want to see.")
    models, skipped = _usable(library)
    if not models:
        raise ValueError("There is no model to choose from.")
    panel = panel or Panel(None)
    root, notes, made_by = _root(tree, models)
    search = Search(wish, encoder, panel)
    past, note = _recall(history, wish)
    notes += [note] if note else []
    scene = _Field(search, past)
    opened = search.walk(root)
    scene.add(opened)
    widened = _widen(scene, root, opened)
    pick, why, votes = _pick(scene, fallback)
    ranked = _rank(scene, pick, root, count, why)
    reason = " ".join([f"{pick.name}:", *(step["why"] for step in search.steps), *widened, why])
    if ranked[0].base is not None:
        reason += f" It is put on {ranked[0].base.name}."
    trace = {
        "chosen": model_key(pick),
        "reason": reason,
        "path": search.steps,
        "widened": widened,
        "candidates": [_candidate(scene, key) for key in scene.by_nearness()],
        "selection": {"why": why, "votes": votes},
        "ranking": [_as_json(place) for place in ranked],
        "skipped": skipped,
        "llm": {"name": panel.llm.name if panel.llm else None, "calls": panel.calls, "errors": panel.errors},
        "tree": made_by,
        "notes": notes + search_notes(wish, scene.models.values(), encoder),
    }
    return Choice(pick, reason, trace, ranked)


def _usable(library: Library) -> tuple[list[ModelRecord], dict[str, str]]:
    """The models that can be loaded, and the files that cannot, with the reason."""
    checkpoints = [model for model in library.models if model.kind == "checkpoint"]
    usable, skipped = list(checkpoints), dict(library.skipped)
    for lora in (model for model in library.models if model.kind == "lora"):
        if bases_for(lora, checkpoints):
            usable.append(lora)
        else:
            skipped[model_key(lora)] = no_base(lora)
    return usable, skipped


def _root(tree: ModelTree | None, models: Sequence[ModelRecord]) -> tuple[Node, list[str], str]:
    """The tree to walk, notes, and what made it. One that sorts none of the models gives way to their tags."""
    notes: list[str] = []
    if tree is not None:
        root, notes = bind(tree, models)
        sorts_any = any(child.name != UNCLASSIFIED for child in root.children)
        if sorts_any or not any(model.classified for model in models):
            return root, notes, tree.made_by
        notes.append("The tree sorts none of the models that can be chosen, so their tags are used instead.")
    tags = tree_from_tags(models)
    return bind(tags, models)[0], notes, tags.made_by


def _recall(history: History | None, wish: str) -> tuple[dict[str, Standing], str]:
    """What is known of each model on prompts like this one, or why nothing is."""
    if history is None:
        return {}, ""
    try:
        return standings(history.similar(wish, FLOOR, LIMIT)), ""
    except Exception as error:  # a database has many ways to fail, and none of them may stop the picture
        return {}, f"Ratings were not used: {error}"


def _widen(scene: _Field, root: Node, opened: Sequence[Node]) -> list[str]:
    """Open the neighbouring leaves, then all, as long as every model so far was rated badly. Says what it did."""
    subjects = [child for child in root.children if any(leaf in opened for leaf in leaves(child))]
    said = []
    for nodes, name in ((subjects, " and ".join(f'"{node.name}"' for node in subjects)), ([root], "the tree")):
        wider = [leaf for node in nodes for leaf in leaves(node)]
        if scene.all_disliked() and any(model_key(m) not in scene.models for leaf in wider for m in leaf.models):
            scene.add(wider)
            said.append(f"The models there were disliked for such prompts, so all of {name} is looked at.")
    return said


def _pick(scene: _Field, fallback: ModelRecord | None) -> tuple[ModelRecord, str, list[dict[str, Any]]]:
    """The model to take, why, and the votes. Nobody is asked where there is nothing to choose."""
    leading = scene.leading()
    first = scene.models[leading[0]]
    if len(scene.models) == 1:
        return first, f"It is the only model there.{scene.known_of(leading[0])}", []
    if len(leading) == 1:
        known = scene.standing.get(leading[0])
        why = f"It did best: {known.in_words()}." if known else "All others were disliked for such prompts."
        return first, why, []
    if not scene.search.panel.ready:
        return *_nearest(scene, leading, fallback, ""), []
    listed = leading[:SHORTLIST]
    options = [(f"{scene.models[key].title or key} [{key}]", _about(scene, key)) for key in listed]
    ballot = scene.search.panel.vote("tree_pick", scene.search.wish, options, none=False)
    votes = ballot.as_json()
    elected = [key for key, (name, _) in zip(listed, options, strict=True) if name in ballot.winners]
    if len(elected) == 1:
        return scene.models[elected[0]], f"{ballot.share()} chose it among {len(listed)} models.", votes
    said = "The voices were tied. " if elected else "No voice gave a usable vote. "
    return *_nearest(scene, elected or leading, fallback, said), votes


def _nearest(scene: _Field, keys: Sequence[str], fallback: ModelRecord | None, said: str) -> tuple[ModelRecord, str]:
    """The first of the keys, which is the nearest, if it leads clearly, else the fallback; and why."""
    model, second = scene.models[keys[0]], scene.models[keys[1]]
    near, next_near = scene.near[keys[0]], scene.near[keys[1]]
    why = f"{said}It is nearest to the wish ({near:.3f}; next {second.name}, {next_near:.3f})."
    if near - next_near >= MARGIN:
        return model, why
    if fallback is None:
        return model, f"{why} The lead is below {MARGIN}; no fallback is set, so the nearest is taken."
    return fallback, f"{said}The fallback is taken, because {model.name} leads by less than {MARGIN}."


def _rank(scene: _Field, pick: ModelRecord, root: Node, count: int, why: str) -> tuple[Ranked, ...]:
    """The pick and the runners-up: those that lead, those rated worse, and at last those of unopened leaves."""
    leading = scene.leading()
    behind = [key for key in scene.by_nearness() if key not in set(leading)]
    behind.sort(key=lambda key: -scene.mean(key))
    everywhere = _Field(scene.search, scene.standing, dict(scene.models), dict(scene.near))
    if count > len(scene.models):
        everywhere.add(leaves(root))
    order = [model_key(pick), *leading, *behind, *everywhere.by_nearness()]
    ranked = [_with_base(pick, why, scene, root)]
    for key in list(dict.fromkeys(order))[1 : max(1, count)]:
        reason = f"Nearness {everywhere.near[key]:.3f}.{scene.known_of(key)}"
        reason += "" if key in scene.models else " It is outside the opened leaves."
        ranked.append(_with_base(everywhere.models[key], reason, scene, root))
    return tuple(ranked)


def _with_base(model: ModelRecord, reason: str, scene: _Field, root: Node) -> Ranked:
    if model.kind != "lora":
        return Ranked(model, reason)
    checkpoints = {m.name: m for leaf in leaves(root) for m in leaf.models if m.kind == "checkpoint"}
    return Ranked(model, reason, best_base(bases_for(model, [*checkpoints.values()]), scene.search.nearness))


def _about(scene: _Field, key: str) -> str:
    """What a voice is told of a model."""
    model = scene.models[key]
    parts = [", ".join((*model.subject_tags[:6], *model.style_tags[:6])), model.description[:120]]
    parts += [f"example: {model.example_prompts[0][:100]}"] if model.example_prompts else []
    parts += [scene.standing[key].in_words()] if key in scene.standing else []
    return "; ".join(part for part in parts if part)


def _candidate(scene: _Field, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": key, "score": round(scene.near[key], 4)}
    if key in scene.standing:
        found["feedback"] = scene.standing[key].as_json()
    return found


def _as_json(place: Ranked) -> dict[str, Any]:
    found = {"name": model_key(place.model), "reason": place.reason}
    return found | ({"base": place.base.name} if place.base else {})
