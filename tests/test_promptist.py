"""The policy: beam search and its ranking, tokenizers with and without merges, folders that load and that do not."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_policies as small
import torch
from atelier.llm.backend import Hooks
from atelier.llm.beam_search import Beam, beam_search
from atelier.llm.gpt2_files import PolicySetupError, derive_merges, read_tokenizer
from atelier.llm.promptist import SUFFIX, Policy, open_policy
from conftest import COMFYUI
from safetensors.torch import save_file
from torch import Tensor

QUIET = Hooks()


def opened(folder: Path, hooks: Hooks = QUIET) -> Policy:
    return open_policy(folder, lambda model: lambda: model, hooks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of random weights in the released layout."""
    return small.save_policy(tmp_path_factory.mktemp("policies") / "random")


# Beam search


def markov(size: int, seed: int) -> Tensor:
    """Log-probabilities [size, size, size] of the next token after the last two."""
    return torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


def search(table: Tensor, start: tuple[int, int], **settings: Any) -> list[Beam]:
    """Beam search over a table; its state is the last two tokens of each row."""
    state = torch.tensor([start])

    def step(rows: Tensor, words: Tensor) -> Tensor:
        nonlocal state
        state = torch.stack([state[rows, 1], words], dim=1)
        return table[state[:, 0], state[:, 1]]

    return beam_search(table[start], step, **settings)


def every_text(
    table: Tensor, start: tuple[int, int], longest: int, end: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Each text that can be written and its log-probability: it ends with `end`, or has the most tokens."""
    size = len(table)
    others = [token for token in range(size) if token != end]
    for length in range(longest + 1):
        for tokens in itertools.product(others, repeat=length):
            written = (*start, *tokens, *([end] if length < longest else []))
            total = sum(table[written[i - 2], written[i - 1], written[i]].item() for i in range(2, len(written)))
            yield tokens, total


@pytest.mark.parametrize("prompt_length", [2, 40])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_ranks_as_brute_force_does(prompt_length: int, seed: int) -> None:
    """300 beams see every text of up to 4 tokens of 3 letters. Score: sum times the length of prompt and text."""
    table = markov(4, seed)
    found = search(table, (1, 2), prompt_length=prompt_length, beams=300, longest=4, end=0)
    scores = {text: total * (prompt_length + len(text)) for text, total in every_text(table, (1, 2), 4, 0)}
    assert {beam.tokens: beam.score for beam in found} == pytest.approx(scores, rel=1e-5)
    ranked = [scores[beam.tokens] for beam in found]  # texts of the same pairs of letters tie
    assert ranked == pytest.approx(sorted(ranked, reverse=True), rel=1e-5)


def test_the_length_of_the_prompt_counts() -> None:
    """With the length of the new tokens alone, as later versions of transformers have it, another text is first."""
    differs = 0
    for seed in range(30):
        texts = list(every_text(markov(4, seed), (1, 2), 4, 0))
        (found, *_) = search(markov(4, seed), (1, 2), prompt_length=20, beams=300, longest=4, end=0)
        differs += found.tokens != max(texts, key=lambda one: one[1] * (len(one[0]) + 1))[0]
    assert differs > 5


def naive_search(
    following: Callable[[list[int]], Tensor], prompt: list[int], beams: int, longest: int, end: int
) -> list[tuple[list[int], float]]:
    """The rules of transformers 4.35, in lists, every text read anew; it never stops early."""
    running, done = [(0.0, list(prompt))], []
    for _ in range(longest):
        options = []
        for total, tokens in running:
            options += [(total + each, tokens, token) for token, each in enumerate(following(tokens).tolist())]
        options = sorted(options, key=lambda option: -option[0])[: 2 * beams]
        for place, (total, tokens, token) in enumerate(options):
            if token == end and place < beams:
                done.append((total * len(tokens), tokens[len(prompt) :]))
        running = [(total, [*tokens, token]) for total, tokens, token in options if token != end][:beams]
    done += [(total * len(tokens), tokens[len(prompt) :]) for total, tokens in running]
    return [(tokens, score) for score, tokens in sorted(done, key=lambda one: -one[0])[:beams]]


def test_a_narrow_beam_follows_the_published_rules() -> None:
    """Of many small languages, in most of which a text may end at any time."""
    lengths = set()
    for seed in range(60):
        table = markov(6, seed)
        table[:, :, 0] += seed % 3  # the end, more or less likely
        table = table.log_softmax(-1)
        wanted = naive_search(lambda tokens, table=table: table[tokens[-2], tokens[-1]], [1] * 5 + [2], 3, 8, 0)
        found = search(table, (1, 2), prompt_length=6, beams=3, longest=8, end=0)
        assert [list(beam.tokens) for beam in found] == [tokens for tokens, _ in wanted]
        assert [beam.score for beam in found] == pytest.approx([score for _, score in wanted], rel=1e-4)
        lengths |= {len(beam.tokens) for beam in found}
    assert len(lengths) > 4


def test_it_stops_when_nothing_better_can_come() -> None:
    """An end that is all but sure after one token: far fewer steps than tokens."""
    table = torch.full((4, 4, 4), 0.0)
    table[:, :, 0] = 5.0
    steps = 0

    def step(rows: Tensor, words: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return table.log_softmax(-1)[0, 0].expand(len(rows), 4)

    beam_search(table.log_softmax(-1)[0, 0], step, 10, 4, 75, 0)
    assert 0 < steps < 10


@pytest.mark.parametrize(
    ("seed", "config"),
    [
        (1, {}),
        (2, {}),
        (1, {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
        (2, {"scale_attn_weights": False, "n_inner": 40, "layer_norm_epsilon": 1e-2}),
    ],
)
def test_the_policy_searches_as_the_published_one_did(seed: int, config: dict[str, object], tmp_path: Path) -> None:
    """With a model that often ends, on what was kept of the tokens read, against the library on every text anew."""
    model = small.small_model(seed, n_positions=32, **config)
    with torch.no_grad():  # the end is likely after some tokens, unlikely after others
        model.transformer.ln_f.bias += 2.0 * model.transformer.wte.weight[-1]
    policy = opened(small.save_policy(tmp_path / "often", model))
    prompt = policy.tokenizer.encode("a fox" + SUFFIX).ids

    @torch.inference_mode()
    def following(tokens: list[int]) -> Tensor:
        return policy.ready()(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)

    wanted = naive_search(following, prompt, 4, policy.new_tokens, policy.end)
    first, step = policy._steps(prompt)
    found = beam_search(first, step, len(prompt), 4, policy.new_tokens, policy.end)
    assert [list(beam.tokens) for beam in found] == [tokens for tokens, _ in wanted]
    assert len({len(beam.tokens) for beam in found}) > 1
    assert [beam.score for beam in found] == pytest.approx([score for _, score in wanted], rel=1e-4)


def test_without_a_length_penalty_it_is_the_librarys_own_search(folder: Path) -> None:
    policy = opened(folder)
    prompt = policy.tokenizer.encode("a fox" + SUFFIX).ids
    settings = {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 20, "length_penalty": 0.0}
    rows = policy.ready().generate(
        torch.tensor([prompt]), do_sample=False, eos_token_id=policy.end, pad_token_id=policy.end, **settings
    )
    first, step = policy._steps(prompt)
    found = beam_search(first, step, len(prompt), 8, 20, policy.end, length_penalty=0.0)
    theirs = [[token for token in row[len(prompt) :].tolist() if token != policy.end] for row in rows]
    assert [list(beam.tokens) for beam in found] == theirs


# Tokenizers


def test_merges_follow_from_the_vocabulary() -> None:
    """Of a real byte-level encoding with 151,387 merges that the host carries, the first ones."""
    files = COMFYUI / "comfy" / "text_encoders" / "qwen25_tokenizer"
    vocabulary = json.loads((files / "vocab.json").read_text(encoding="utf-8"))
    listed = (files / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in listed if not line.startswith("#version")]
    derived = derive_merges({token: number for token, number in vocabulary.items() if number < 20_000}, -1)
    assert len(derived) == 20_000 - 256 and derived == merges[: len(derived)]


def test_every_form_of_the_tokenizer_reads_alike(folder: Path, tmp_path: Path) -> None:
    vocabulary, merges = small.pairs()
    assert derive_merges(vocabulary, vocabulary[small.END]) == merges
    text = json.dumps(vocabulary)
    for name in ("alone", "merges"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(text, encoding="utf-8")
    lines = "\n".join(" ".join(pair) for pair in merges)
    (tmp_path / "merges" / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    end = vocabulary[small.END]
    forms = [read_tokenizer(path, end) for path in (folder, tmp_path / "alone", tmp_path / "merges")]
    for said in (*small.CORPUS, "", "  two  blanks\n\tand tabs", "émoji 🎨👩‍🎨 e\u0301", "# not a comment", small.END):
        tokens = [form.encode(said, add_special_tokens=False).ids for form in forms]
        assert tokens[0] == tokens[1] == tokens[2] and forms[1].decode(tokens[0]) == said
        assert end not in tokens[0]
    assert len(forms[1].encode("a red fox in the snow").ids) < 10  # the merges are at work


# The policy


def test_it_gives_the_same_texts_twice_and_leaves_the_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again = (opened(folder).rephrase("a red fox") for _ in range(2))
    assert first == again and len(first) > 1
    assert [one.score for one in first] == sorted((one.score for one in first), reverse=True)
    assert torch.equal(torch.rand(1), expected)


def test_a_taught_policy_says_what_it_learnt() -> None:
    """The texts come out without the prompt in front of them, in the order of their scores."""
    policy = Policy("taught", small.tokenizer(), 256, small.pairs()[0][small.END], lambda: MODEL)
    found = policy.rephrase(f"  {small.PROMPT}\n")
    assert found[0].text == small.STYLED[0] and {one.text for one in found[:3]} == set(small.STYLED)
    assert found[0].score == pytest.approx(found[0].log_probability * FULL_LENGTH)


FULL_LENGTH = len(small.tokenizer().encode(f"{small.PROMPT} Rephrase: {small.STYLED[0]}").ids)
MODEL = small.taught_model()


def test_safetensors_and_the_bare_body_give_the_same(folder: Path, tmp_path: Path) -> None:
    model = opened(folder).ready()
    tied = small.save_policy(tmp_path / "tied")
    (tied / "pytorch_model.bin").unlink()
    save_file({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, tied / "model.safetensors")
    bare = small.save_policy(tmp_path / "bare")
    torch.save(model.transformer.half().state_dict(), bare / "pytorch_model.bin")
    wanted = [one.text for one in opened(folder).rephrase("a star")]
    assert [one.text for one in opened(tied).rephrase("a star")] == wanted
    assert all(weight.dtype == torch.float32 for weight in opened(bare).ready().parameters())


def test_an_untied_head_is_loaded(tmp_path: Path) -> None:
    model = small.small_model(tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(5))
    loaded = opened(small.save_policy(tmp_path / "untied", model)).ready()
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_the_prompt_may_hold_the_words_of_the_form(folder: Path) -> None:
    for prompt in ("a star Rephrase: a moon", " Rephrase:", f"a {small.END} star"):
        texts = opened(folder).rephrase(prompt)
        assert texts and not any(one.text.startswith(prompt.strip()) for one in texts)


def test_it_never_passes_its_positions(tmp_path: Path) -> None:
    policy = opened(small.save_policy(tmp_path / "short", small.small_model(n_positions=40)))
    assert policy.new_tokens == 20 and policy.read_tokens == 40 - 20 - policy.count(SUFFIX)
    longest = " a" * policy.read_tokens
    assert policy.count(longest) == policy.read_tokens and policy.rephrase(longest[1:])
    with pytest.raises(ValueError, match=f"reads {policy.read_tokens}"):
        policy.rephrase(longest + " a a a")


def test_it_is_cancelled_and_shows_progress_per_token(folder: Path) -> None:
    class Stop(BaseException):
        pass

    shown: list[int] = []

    def check() -> None:
        if len(shown) == 5:
            raise Stop

    with pytest.raises(Stop):
        opened(folder, Hooks(check, lambda total: shown.append)).rephrase("a star")
    assert shown == [1, 2, 3, 4, 5]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").unlink()


def without(folder: Path, name: str) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != name}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: halve(folder / "config.json"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read"),
        (lambda folder: rewrite(folder / "config.json", model_type="t5"), "of the type t5"),
        (lambda folder: rewrite(folder / "config.json", n_embd=48), "not those of its config.json"),
        (lambda folder: rewrite(folder / "config.json", n_head=5), "not those of its config.json"),
        (lambda folder: rewrite(folder / "config.json", eos_token_id=400000), "names no eos_token_id"),
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "no weights"),
        (lambda folder: halve(folder / "pytorch_model.bin"), "cannot be read as weights"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "cannot be read as weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read as weights"),
        (lambda folder: without(folder, "transformer.h.1.ln_1.weight"), "h.1.ln_1.weight"),
        (lambda folder: torch.save([1], folder / "pytorch_model.bin"), "more than the weights"),
        (lambda folder: torch.save(Evil(folder / "ran"), folder / "pytorch_model.bin"), "refused"),
        (no_tokenizer, "no tokenizer"),
        (lambda folder: halve(folder / "tokenizer.json"), "tokenizer in .* cannot be read"),
        (lambda folder: rewrite(folder / "config.json", vocab_size=300), "not those of its config.json"),
    ],
)
def test_a_folder_that_holds_no_policy_says_why(folder: Path, tmp_path: Path, spoil: Any, why: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(PolicySetupError, match=why):
        opened(copy)
    assert not (copy / "ran").exists()


def test_the_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(PolicySetupError, match="belong to different models"):
        opened(small.save_policy(tmp_path / "small", small.small_model(vocab_size=300, eos_token_id=299)))


def test_weights_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    model = small.small_model()
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(PolicySetupError, match="gives no numbers"):
        opened(small.save_policy(tmp_path / "nan", model)).rephrase("a star")


# In the host


def test_the_host_takes_a_policy_out_of_memory_and_back(folder: Path) -> None:
    import comfy.model_management as memory
    from atelier.llm.hosting import load_policy

    policy = load_policy(folder)
    wanted = policy.rephrase("a star")
    held = [loaded.model for loaded in memory.current_loaded_models if type(loaded.model.model).__name__ == "_Held"]
    assert held
    memory.unload_all_models()
    assert not any(loaded.model in held for loaded in memory.current_loaded_models)
    assert policy.rephrase("a star") == wanted


def test_policies_are_listed_beside_those_of_the_yaml_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from atelier.llm.hosting import POLICY_KEY, policy_folder, policy_names, register_folder

    shared, own = tmp_path / "shared", tmp_path / "models"
    shutil.copytree(folder, shared / "org" / "tiny")
    shutil.copytree(folder, own / POLICY_KEY / "mine")
    (own / POLICY_KEY / "mine" / "config.json").unlink()  # half-copied: listed, so that loading tells what is missing
    (shared / "empty").mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(own))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, POLICY_KEY, ([str(shared)], set()))  # as the yaml does
    register_folder(POLICY_KEY)
    register_folder(POLICY_KEY)
    assert folder_paths.get_folder_paths(POLICY_KEY) == [str(shared), str(own / POLICY_KEY)]
    assert all(name.endswith(".safetensors") for name in folder_paths.get_filename_list(POLICY_KEY))
    assert policy_names() == ["mine", "org/tiny"]
    assert policy_folder("org/tiny") == shared / "org" / "tiny"
    assert policy_folder("empty") is None and policy_folder("../shared") is None
