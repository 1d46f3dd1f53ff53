"""Training of edit models: the loop, the loss of InstructPix2Pix, the host's models, and the node over the API."""

from __future__ import annotations

import math
import resource
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models
import numpy as np
import pytest
import safetensors.torch
import torch
from atelier.nodes.train import check_free, places
from atelier.training.curve import draw_curve, draw_progress
from atelier.training.edit_shards import Drawn, EditSample, ShardWriter
from atelier.training.host_edit import EditRun, Watch, encode_instructions, encode_pictures, train_edits
from atelier.training.host_unet import edit_unet, open_edit_checkpoint, opens_alike
from atelier.training.instruct_pix2pix import FIRST, EditLatents, dropped, edit_loss
from atelier.training.loop import Plan, train
from comfy_api_client import ComfyClient, GraphError
from shapeworld.edit import apply_edit, random_edit, write_edit
from shapeworld.render import render
from shapeworld.scene import random_scene
from small_unets import (
    SMALL_UNET,
    TEXT_TOKENS,
    TEXT_WIDTH,
    Patcher,
    SmallSD15,
    filled,
    normal,
    sd15,
    sdxl,
)
from torch import Tensor, nn

# --- the loop ----------------------------------------------------------------------------------------------

START = {"weight": torch.tensor([[0.5, -0.25, 0.75]]), "bias": torch.tensor([0.125])}


class Stop(BaseException):
    """As the host's interrupt: no Exception."""


def small() -> nn.Linear:
    module = nn.Linear(3, 1)
    module.load_state_dict(START)
    return module


def squares(module: nn.Linear, batch: int = 2) -> Any:
    """The squared error of `batch` random points, with noise of torch's own generator."""

    def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
        x = torch.from_numpy(rng.standard_normal((batch, 3))).float()
        wanted = x.sum(1, keepdim=True) + 0.1 * torch.randn(batch, 1)
        return {"loss": ((module(x) - wanted) ** 2).mean()}

    return loss_at


def run(folder: Path, plan: Plan, stop_at: int | None = None, **more: Any) -> dict[str, Tensor]:
    def each_step(step: int, loss: float) -> None:
        if step == stop_at:
            raise Stop

    module = small()
    return train(module, squares(module), plan, folder, each_step=each_step, **more)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, accumulate: int, stop_at: int
) -> None:
    plan = Plan(9, 1e-2, seed=4, accumulate=accumulate, warmup=3, save_every=4)
    whole = run(tmp_path / "whole", plan)
    with pytest.raises(Stop):
        run(tmp_path / "cut", plan, stop_at)
    assert state_of(tmp_path / "cut")["step"] == stop_at
    assert equal(run(tmp_path / "cut", plan), whole)
    assert equal(state_of(tmp_path / "cut")["module"], state_of(tmp_path / "whole")["module"])
    assert not equal(whole, START)


def test_a_training_that_is_done_gives_its_result_again(tmp_path: Path) -> None:
    plan = Plan(3, 1e-2)
    done, before = run(tmp_path, plan), (tmp_path / "state.pt").read_bytes()
    assert equal(run(tmp_path, plan), done)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_two_batches_of_one_teach_the_same_as_one_of_two(tmp_path: Path) -> None:
    def exact(module: nn.Linear, batch: int) -> Any:
        def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
            x = torch.from_numpy(rng.standard_normal((batch, 3))).float()
            return {"loss": ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()}

        return loss_at

    one, two = small(), small()
    train(one, exact(one, 2), Plan(5, 1e-2, warmup=1), tmp_path / "one")
    train(two, exact(two, 1), Plan(5, 1e-2, warmup=1, accumulate=2), tmp_path / "two")
    assert torch.allclose(one.weight, two.weight, atol=1e-6)


def test_the_average_is_the_exponential_one(tmp_path: Path) -> None:
    module, seen = small(), []
    plan = Plan(8, 1e-2, warmup=1, average=0.4)
    result = train(
        module, squares(module), plan, tmp_path, each_step=lambda *_: seen.append(module.weight.detach().clone())
    )
    mean = START["weight"].double()
    for step, weight in enumerate(seen):
        decay = min(0.4, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(result["weight"].double(), mean, atol=1e-6)
    assert not torch.allclose(mean, seen[-1].double(), atol=1e-4)


def test_a_full_disk_leaves_the_earlier_state_and_the_training_goes_on(tmp_path: Path) -> None:
    plan = Plan(8, 1e-2, save_every=4)
    whole = run(tmp_path / "whole", plan)
    with pytest.raises(Stop):
        run(tmp_path / "full", plan, 3)
    before = (tmp_path / "full" / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"state\.pt cannot be written.*Make room"):
            run(tmp_path / "full", plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "full" / "state.pt").read_bytes() == before
    assert list((tmp_path / "full").glob("*.part")) == []
    assert equal(run(tmp_path / "full", plan), whole)


def not_finite(kind: str, module: nn.Linear, calls: list[int]) -> Tensor:
    loss = (module.weight**2).sum()
    if len(calls) == 5:  # the first of the two batches of the third step
        return loss * math.nan if kind == "loss" else loss + (0 * module.bias).abs().sqrt().sum()
    return loss


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_training_before_they_do_harm(tmp_path: Path, kind: str) -> None:
    module, calls = small(), []

    def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
        calls.append(1)
        return {"loss": not_finite(kind, module, calls)}

    with pytest.raises(ValueError, match=f"The {kind} of step 3 is not a finite number"):
        train(module, loss_at, Plan(9, 1e-2, accumulate=2), tmp_path)
    state = state_of(tmp_path)
    assert state["step"] == 2
    assert all(weight.isfinite().all() for weight in [*state["module"].values(), *state["mean"].values()])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"learning_rate": 2e-2}, {"accumulate": 2}, {"average": 0.5}, {"about": "other data"}]
)
def test_a_folder_with_another_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, Plan(2, 1e-2), about="data")
    before = (tmp_path / "state.pt").read_bytes()
    about = change.pop("about", "data")
    with pytest.raises(ValueError, match="holds a training with other settings"):
        run(tmp_path, Plan(**{"steps": 2, "learning_rate": 1e-2, **change}), about=about)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert run(tmp_path, Plan(3, 1e-2), about="data")  # more steps go on


@pytest.mark.parametrize("bad", [{"steps": 0}, {"accumulate": 0}, {"learning_rate": 0.0}, {"learning_rate": math.inf}])
def test_a_plan_without_work_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs 1 step|above 0"):
        Plan(**{"steps": 1, "learning_rate": 1e-3, **bad})


def test_scaled_gradients_that_overflow_change_nothing_and_the_scale_is_kept(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def go(folder: str, stop_at: int | None = None) -> dict[str, Tensor]:
        def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
            return {"loss": 1000 * squares(module)(rng)["loss"]}

        def each_step(step: int, loss: float) -> None:
            seen.append(module.weight.detach().clone())
            if step == stop_at:
                raise Stop

        module, scaler = small(), torch.amp.GradScaler("cpu", init_scale=2.0**127)
        plan = Plan(30, 1e-2, warmup=1)
        return train(module, loss_at, plan, tmp_path / folder, each_step=each_step, scaler=scaler)

    whole = go("whole")
    assert torch.equal(seen[0], START["weight"]) and not torch.equal(seen[-1], START["weight"])
    assert 1 < state_of(tmp_path / "whole")["scaler"]["scale"] < 2.0**127
    with pytest.raises(Stop):
        go("cut", 4)
    assert equal(go("cut"), whole)


# --- the loss ----------------------------------------------------------------------------------------------

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
"""Of Stable Diffusion (arXiv 2112.10752), from which the host's noise levels must come."""
BAR = torch.from_numpy(np.cumprod(1 - BETAS)).float()


def host_sampling(kind: type) -> nn.Module:
    return type("S", (comfy.model_sampling.ModelSamplingDiscrete, kind), {})()


def noise_of(latent: Tensor, noise: Tensor, bar: Tensor) -> Tensor:
    """What a model of noise learns (arXiv 2006.11239, algorithm 1)."""
    return noise


def velocity_of(latent: Tensor, noise: Tensor, bar: Tensor) -> Tensor:
    """What a model of velocities learns (arXiv 2202.00512, section 4)."""
    return bar.sqrt() * noise - (1 - bar).sqrt() * latent


class Recorder(nn.Module):
    """A UNet that answers with `answer`, and keeps what it was shown."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.answer = answer

    def forward(self, shown: Tensor, timesteps: Tensor, texts: list[str]) -> Tensor:
        self.shown, self.timesteps, self.texts = shown, timesteps, texts
        return self.answer(self) + self.anchor


@pytest.mark.parametrize(
    ("kind", "truth"), [(comfy.model_sampling.EPS, noise_of), (comfy.model_sampling.V_PREDICTION, velocity_of)]
)
def test_the_loss_is_that_of_what_the_model_predicts(kind: type, truth: Any) -> None:
    latent, image, batch = normal(1, 4, 6, 6, seed=1), normal(1, 4, 6, 6, seed=2) * 5, 32
    torch.manual_seed(7)
    noise = torch.randn(batch, 4, 6, 6)

    def right(unet: Recorder) -> Tensor:
        return truth(latent, noise, BAR[unet.timesteps.long()].view(-1, 1, 1, 1))

    def loss(answer: Any) -> tuple[float, Recorder]:
        unet, rng = Recorder(answer), np.random.default_rng(3)
        torch.manual_seed(7)
        data = EditLatents(image, latent, ["make it red"])
        values = edit_loss(unet, host_sampling(kind), data, lambda texts: {"texts": texts}, rng, batch, None)
        return values["loss"].item(), unet

    value, unet = loss(right)
    bar = BAR[unet.timesteps.long()].view(-1, 1, 1, 1)
    assert value < 1e-6
    assert loss(lambda unet: right(unet) + 1.0)[0] > 0.1
    assert torch.allclose(unet.shown[:, :4], bar.sqrt() * latent + (1 - bar).sqrt() * noise, atol=1e-4)
    assert len(unet.timesteps.unique()) > batch // 2


def test_what_is_lost_is_neither_told_nor_shown() -> None:
    image, batch = normal(1, 4, 6, 6, seed=2), 400
    unet = Recorder(lambda unet: torch.zeros(batch, 4, 6, 6))
    data = EditLatents(image, image, ["make it red"])
    edit_loss(unet, host_sampling(comfy.model_sampling.EPS), data, lambda texts: {"texts": texts},
              np.random.default_rng(3), batch, None)  # fmt: skip
    rng = np.random.default_rng(3)
    rng.integers(0, 1, batch)
    no_text, no_image = dropped(rng, batch)
    assert unet.texts == ["" if lost else "make it red" for lost in no_text]
    for row, lost in zip(unet.shown[:, 4:], no_image, strict=True):
        assert torch.equal(row, torch.zeros_like(row) if lost else image[0])
    assert no_text.any() and no_image.any()


def test_of_all_samples_five_percent_lose_each_and_both() -> None:
    count = 400_000
    text, image = dropped(np.random.default_rng(0), count)
    for lost, share in ((text & ~image, 0.05), (image & ~text, 0.05), (text & image, 0.05), (~text & ~image, 0.85)):
        # Four standard errors: one test in 16,000 fails by chance, and this one has a seed.
        assert abs(lost.mean() - share) < 4 * math.sqrt(share * (1 - share) / count)


# --- the host's models -------------------------------------------------------------------------------------


class SmallEdit15(comfy.supported_models.SD15_instructpix2pix):
    unet_config = {**comfy.supported_models.SD15_instructpix2pix.unet_config, "context_dim": TEXT_WIDTH,
                   "model_channels": 32}  # fmt: skip


class SmallEditXL(comfy.supported_models.SDXL_instructpix2pix):
    unet_config = {"model_channels": 32, "use_linear_in_transformer": True, "context_dim": TEXT_WIDTH, "in_channels": 8,
                   "adm_in_channels": TEXT_WIDTH + 6 * 256, "use_temporal_attention": False}  # fmt: skip


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host knows edit models of the small layouts."""
    small_ones = [SmallEdit15, SmallEditXL]
    monkeypatch.setattr(comfy.supported_models, "models", small_ones + comfy.supported_models.models)


def velocity_xl(**settings: Any) -> Patcher:
    """A small SDXL like CosXL, or one with zero terminal SNR."""
    model = sdxl()
    model.model.model_sampling = (
        type("S", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION), {})(**settings)
        if settings
        else type("S", (comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION), {})()
    )
    return model


class FakeClip:
    """Texts as random numbers that depend on the text, `length` tokens for each 20 letters."""

    def __init__(self, width: int = TEXT_WIDTH) -> None:
        self.width = width

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, text: str, return_dict: bool) -> dict[str, Tensor]:
        seed, tokens = sum(map(ord, text)), TEXT_TOKENS * (1 + len(text) // 20)
        return {"cond": normal(1, tokens, self.width, seed=seed), "pooled_output": normal(1, TEXT_WIDTH, seed=seed)}


class FakeVae:
    """Means of 8 x 8 pixels as 4 channels."""

    def __init__(self, channels: int = 4, nan_above: float = 2.0) -> None:
        self.channels, self.nan_above = channels, nan_above

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).mean(1, keepdim=True)
        return means.where(means <= self.nan_above, math.nan).expand(-1, self.channels, -1, -1) * 8 - 4

    def decode(self, latent: Tensor) -> Tensor:
        return nn.functional.interpolate(latent[:, :3], scale_factor=8).movedim(1, -1)


def edits(count: int = 5, height: int = 64, width: int = 64) -> Iterator[EditSample]:
    rng = np.random.default_rng(9)
    for number in range(count):
        pictures = [rng.integers(0, 200, (height, width, 3), np.uint8) for _ in range(2)]
        yield EditSample(f"{number:06d}", *pictures, "a scene", f"make it look like number {number}", "it", number, 0.5)


@pytest.mark.parametrize("make", [sd15, sdxl, velocity_xl, lambda: velocity_xl(zsnr=True)])
def test_at_the_start_the_edit_model_draws_what_the_model_drew(known: None, make: Any) -> None:
    model = make()
    edit = edit_unet(model)
    y = {"y": normal(2, TEXT_WIDTH + 6 * 256, seed=4)} if "xl" in type(model.model).__name__.lower() else {}
    x, image, told = normal(2, 4, 8, 8, seed=1), normal(2, 4, 8, 8, seed=2), normal(2, TEXT_TOKENS, TEXT_WIDTH, seed=3)
    steps = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        drawn = edit.base.diffusion_model(torch.cat([x, image], 1), steps, context=told, **y)
        assert torch.equal(drawn, model.model.diffusion_model(x, steps, context=told, **y))
    assert isinstance(edit.base, comfy.model_base.IP2P)
    assert opens_alike(edit)


def test_loras_are_part_of_the_start(known: None) -> None:
    model = sd15()
    key = "diffusion_model.middle_block.1.proj_in.weight"
    bare = edit_unet(model).start
    model.add_patches({key: (normal(128, 128, 1, 1, seed=8),)}, 0.5)
    wanted = model.model.state_dict()[key] + 0.5 * normal(128, 128, 1, 1, seed=8)
    edit = edit_unet(model)
    assert torch.equal(edit.base.state_dict()[key], wanted) and edit.start != bare
    model.patch_model()  # as it is when the host has it loaded
    assert edit_unet(model).start == edit.start
    model.unpatch_model()
    assert edit_unet(sd15()).start == bare


def test_an_edit_model_is_taken_as_it_is(known: None) -> None:
    model = filled(comfy.model_base.SD15_instructpix2pix(SmallSD15({**SMALL_UNET, "in_channels": 8}), device="cpu"))
    edit = edit_unet(model)
    assert torch.equal(edit.base.diffusion_model.state_dict()[FIRST], model.model.diffusion_model.state_dict()[FIRST])


def sampled_by(kind: type, base: type = comfy.model_sampling.ModelSamplingDiscrete) -> Patcher:
    model = sd15()
    model.add_object_patch("model_sampling", type("S", (base, kind), {})())
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sd15(in_channels=9), "takes 9 channels.*Inpainting"),
        (lambda: sd15(in_channels=8), "takes 8 channels"),
        (lambda: sampled_by(comfy.model_sampling.X0), "predicts something else"),
        (lambda: sampled_by(comfy.model_sampling.CONST), "predicts something else"),
        (
            lambda: sampled_by(comfy.model_sampling.EDM, comfy.model_sampling.ModelSamplingContinuousEDM),
            "something els",
        ),
    ],
)
def test_models_that_cannot_become_edit_models_are_refused(known: None, make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        edit_unet(make())


def test_a_layout_of_which_the_host_has_no_edit_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SD1\.5 and SDXL layouts only"):
        edit_unet(sd15())


def test_continuous_noise_levels_go_by_number(known: None) -> None:
    edit = edit_unet(velocity_xl())
    sampling = edit.sampling(torch.device("cpu"))
    numbers = torch.tensor([0, 500, 999])
    assert torch.equal(sampling.sigma(numbers), edit.host_sampling.sigmas[numbers])
    assert sampling.sigma(numbers)[2] == pytest.approx(120.0)
    assert sorted(edit.marks) == ["edm_vpred.sigma_max", "edm_vpred.sigma_min"]


def test_pictures_are_shown_as_the_host_shows_them(known: None) -> None:
    samples = list(edits(3))
    raw = FakeVae().encode(torch.stack([torch.from_numpy(s.before).float() / 255 for s in samples]))
    after = FakeVae().encode(torch.stack([torch.from_numpy(s.after).float() / 255 for s in samples]))
    for make, shown, scale in ((sd15, 1.0, 0.18215), (sdxl, 1.0, 0.13025), (velocity_xl, 0.13025, 0.13025)):
        found = encode_pictures(edit_unet(make()), FakeVae(), samples).latents
        assert torch.allclose(found.before.float(), raw * shown, rtol=2e-3)
        assert torch.allclose(found.after.float(), after * scale, rtol=2e-3)


def test_a_data_set_is_known_by_its_pictures_and_words(known: None) -> None:
    edit, samples = edit_unet(sd15()), list(edits(3))

    def known_as(*changed: EditSample) -> str:
        return encode_pictures(edit, FakeVae(), [*changed, *samples[len(changed) :]]).digest

    first = samples[0]
    other = EditSample("other", first.before, first.after, "", "make it blue", "", 0, 0.0)
    turned = EditSample("other", first.after, first.before, "", first.instruction, "", 0, 0.0)
    assert known_as() == known_as(EditSample("other", first.before, first.after, "", first.instruction, "", 1, 0.1))
    assert len({known_as(), known_as(other), known_as(turned)}) == 3


def test_instructions_are_told_as_the_host_tells_them(known: None) -> None:
    edit, clip = edit_unet(sdxl()), FakeClip()
    latents = torch.zeros(2, 4, 16, 8)
    long = "turn everything into a very long story"
    encode = encode_instructions(edit, clip, EditLatents(latents, latents, [long, "red"]))
    told = encode(["red", "", long])
    answer = clip.encode_from_tokens("red", True)
    sizes = {"width": 64, "height": 128, "device": torch.device("cpu")}
    y = edit.base.encode_adm(pooled_output=answer["pooled_output"], **sizes)
    assert torch.allclose(told["y"][:1], y, atol=2e-3) and told["y"].shape == (3, TEXT_WIDTH + 6 * 256)
    assert told["context"].shape == (3, 2 * TEXT_TOKENS, TEXT_WIDTH)
    assert torch.allclose(told["context"][0], answer["cond"][0].repeat(2, 1), atol=2e-3)


@pytest.mark.parametrize(
    ("samples", "vae", "says"),
    [
        ([], FakeVae(), "holds no edit"),
        ([*edits(1), *edits(1, width=72)], FakeVae(), "000000 has pictures of 72x64 and 72x64.*first edit has 64x64"),
        (list(edits(1, 4, 4)), FakeVae(), "below 8x8"),
        (list(edits(2)), FakeVae(nan_above=0.3), "000000 into NaN"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(known: None, samples: Any, vae: FakeVae, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_pictures(edit_unet(sd15()), vae, samples)


def learn(folder: Path, steps: int = 3, clip: Any = None, vae: Any = None, make: Any = sd15, **watch: Any) -> Any:
    run = EditRun(edits(), Plan(steps, 1e-3, seed=2, warmup=1), 2, "fp32", folder)
    return train_edits(make(), clip or FakeClip(), vae or FakeVae(), run, Watch(**watch))


@pytest.mark.parametrize("make", [sd15, velocity_xl])
def test_an_interrupt_in_a_step_loses_nothing(known: None, tmp_path: Path, make: Any) -> None:
    pictures, steps = [], []
    _, whole = learn(tmp_path / "whole", make=make, show=pictures.append)
    assert [picture.mode for picture in pictures] == ["RGB"]

    def interrupt(step: int, loss: float) -> None:
        steps.append(step)
        if step == 2:
            comfy.model_management.interrupt_current_processing(True)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn(tmp_path / "cut", make=make, each_step=interrupt)
    assert steps == [1, 2]
    _, again = learn(tmp_path / "cut", make=make, each_step=lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3] and equal(again, whole)
    start = edit_unet(make()).base.diffusion_model.state_dict()
    assert not any(torch.equal(whole[name], start[name]) for name in whole if name.endswith("weight"))


@pytest.mark.parametrize(
    ("fakes", "says"),
    [
        ({"clip": FakeClip(width=32)}, "CLIP gives 32 numbers"),
        ({"vae": FakeVae(channels=16)}, "works with 4 channels"),
    ],
)
def test_encoders_of_another_model_are_refused(known: None, tmp_path: Path, fakes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        learn(tmp_path, **fakes)


def test_sd15_cannot_say_that_it_predicts_the_velocity_so_its_model_is_told(known: None, tmp_path: Path) -> None:
    model = sampled_by(comfy.model_sampling.V_PREDICTION)
    edit = edit_unet(model)
    assert not opens_alike(edit)
    state = {f"model.diffusion_model.{name}": w for name, w in edit.base.diffusion_model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    opened = open_edit_checkpoint(tmp_path / "x.safetensors", edit)
    assert isinstance(opened.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)
    assert not isinstance(opened.model.model_sampling, comfy.model_sampling.V_PREDICTION)


# --- the pictures ------------------------------------------------------------------------------------------


def test_the_curve_falls_where_the_loss_falls() -> None:
    rows = [{"step": step, "loss": 1.0 - 0.009 * step} for step in range(20, 101, 20)]
    blue = np.array(draw_curve("a training", rows))[48:, :, :] == (0x17, 0x69, 0xD2)
    ys, xs = np.nonzero(blue.all(-1))
    assert ys[xs.argmin()] < ys[xs.argmax()]
    assert draw_curve("nothing yet", []).size == draw_curve("", rows).size
    first = next(edits(1))
    assert draw_progress("x" * 500, {"before": first.before, "after": first.after}, rows).mode == "RGB"
    assert draw_curve("", [{"step": 20, "loss": 0.0}]).mode == "RGB"


# --- the node over the API ---------------------------------------------------------------------------------

SMALL_RUN = {"steps": 2, "batch_size": 2, "accumulate": 1, "learning_rate": 1e-3, "seed": 3, "precision": "fp32"}


def graph(dataset: str, name: str, **changes: Any) -> dict[str, Any]:
    parts = {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2]}
    inputs = {**parts, "dataset": dataset, "name": name, **SMALL_RUN, **changes}
    return {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "train": {"class_type": "AtelierTrainInstructPix2Pix", "inputs": inputs},
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["train", 2]}},
    }


def using(loader: dict[str, Any], model: list[Any], picture: str) -> dict[str, Any]:
    """An edit by stock nodes alone."""
    return {
        "load": loader,
        "picture": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "make it blue"}},
        "told": {
            "class_type": "InstructPixToPixConditioning",
            "inputs": {"positive": ["text", 0], "negative": ["text", 0], "vae": ["load", 2], "pixels": ["picture", 0]},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {"model": model, "positive": ["told", 0], "negative": ["told", 1], "latent_image": ["told", 2],
                       "seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal",
                       "denoise": 1.0},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip


def shapeworld_edits(count: int) -> Iterator[EditSample]:
    number = 0
    while count:
        rng, number = np.random.default_rng([5, number]), number + 1
        scene = random_scene(rng, 2)
        edit = random_edit(scene, rng)
        try:
            after = apply_edit(scene, edit, rng)
        except ValueError:
            continue
        count -= 1
        pictures = [np.array(render(one)) for one in (scene, after)]
        yield EditSample(f"{number:06d}", *pictures, "a scene", write_edit(edit), "a scene", number, 0.5)


def write(folder: Path, samples: list[EditSample]) -> str:
    with ShardWriter(folder, {"of": "tests"}, len(samples)) as writer:
        for sample in samples:
            writer.add(Drawn([sample], 1))
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("edits") / "data", list(shapeworld_edits(5)))


def test_a_model_is_trained_and_the_stock_loader_opens_it(server: ComfyClient, dataset: str) -> None:
    seen = []
    queued = graph(dataset, "garden edits")
    queued["name"] = {"class_type": "PreviewAny", "inputs": {"source": ["train", 1]}}
    entry = server.queue(queued, on_progress=seen.append)
    assert [step.value for step in seen if step.node_type == "AtelierTrainInstructPix2Pix"][-1] == 2
    assert entry["outputs"]["name"]["text"] == ["garden edits.safetensors"]
    assert server.images(entry, "curve")[0].size == (768, 432)

    output = server.base / "output"
    saved = safetensors.torch.load_file(output / "checkpoints" / "garden edits.safetensors")
    state = state_of(output / "atelier_training" / "garden edits")
    for name, weight in state["mean"].items():
        assert torch.equal(saved[f"model.diffusion_model.{name}"], weight.half())
    assert saved[f"model.diffusion_model.{FIRST}"].shape[1] == 8
    assert {weight.dtype for weight in saved.values() if weight.is_floating_point()} == {torch.float16, torch.float32}
    with safetensors.safe_open(output / "checkpoints" / "garden edits.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1-edit"
        assert file.metadata()["modelspec.predict_key"] == "v"

    picture = server.upload(render(random_scene(np.random.default_rng(1), 1)), "edit me.png")
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "garden edits.safetensors"}}
    (opened,) = server.images(server.queue(using(loader, ["load", 0], picture)), "show")
    whole = {**graph(dataset, "garden edits"), **using(queued["load"], ["train", 0], picture)}
    (passed_on,) = server.images(server.queue(whole), "show")
    assert opened.tobytes() == passed_on.tobytes()
    assert opened.size == (128, 128) and len(opened.getcolors(maxcolors=2**20)) > 10


def test_an_interrupted_training_goes_on_when_it_is_queued_again(server: ComfyClient, dataset: str) -> None:
    seen, stops = [], []
    folder = server.base / "output" / "atelier_training" / "long one"

    def stop(step: Any) -> None:
        if step.value >= 3 and not stops:  # the host leaves some steps out
            stops.append(threading.Thread(target=server.post, args=("/interrupt", {})))
            stops[0].start()

    with pytest.raises(GraphError, match="was interrupted"):
        server.queue(graph(dataset, "long one", steps=500), on_progress=stop)
    stops[0].join()
    reached = state_of(folder)["step"]
    assert 3 <= reached < 500
    assert not (server.base / "output" / "checkpoints" / "long one.safetensors").exists()
    server.queue(graph(dataset, "long one", steps=reached + 2), on_progress=seen.append)
    values = [step.value for step in seen if step.node_type == "AtelierTrainInstructPix2Pix"]
    assert values[0] == reached + 1 and values[-1] == reached + 2
    assert state_of(folder)["step"] == reached + 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": ""}, "There is no data set"),
        ({"dataset": "nothing here"}, r"There is no data set in .*nothing here"),
        ({"name": "../away"}, "is no name for a checkpoint"),
        ({"name": "shapeworld-base"}, r"There is a checkpoint shapeworld-base\.safetensors already"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"precision": "int8"}, "precision"),
        ({"clip": ["load", 0]}, "clip"),
    ],
)
def test_bad_input_is_refused_by_name(server: ComfyClient, dataset: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        server.queue(graph(**{"dataset": dataset, "name": "refused", **changes}))
    assert not (server.base / "output" / "checkpoints" / "refused.safetensors").exists()


def test_a_training_of_other_settings_or_a_file_without_one_is_not_overwritten(
    server: ComfyClient, dataset: str
) -> None:
    server.queue(graph(dataset, "mine"))
    file = server.base / "output" / "checkpoints" / "mine.safetensors"
    before = file.read_bytes()
    with pytest.raises(GraphError, match="holds a training with other settings"):
        server.queue(graph(dataset, "mine", seed=4))
    (server.base / "output" / "atelier_training" / "mine" / "state.pt").unlink()
    with pytest.raises(GraphError, match="is there already, and its training is not in"):
        server.queue(graph(dataset, "mine", seed=5))
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a.", ".hidden", "con:", "-x"])
def test_names_that_are_no_file_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a checkpoint"):
        places(name)


def test_a_name_may_have_its_ending(tmp_path: Path) -> None:
    file, folder = places(" größe 2.safetensors ")
    assert (file.name, folder.name) == ("größe 2.safetensors", "größe 2")
    check_free(tmp_path / "none", tmp_path)
