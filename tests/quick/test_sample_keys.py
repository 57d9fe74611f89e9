"""With a key for each sample, dropout and stochastic depth depend only on the key, the layer and the channel.

Rates and independence are held to six standard errors of the number of draws that was taken.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nfnet_ray.models import create_model
from nfnet_ray.models.draws import Stream, keyed_uniforms
from nfnet_ray.models.layers import Dropout, StochasticDepth
from nfnet_ray.models.nfnet import NFNet

KEYS = torch.arange(4096, dtype=torch.int64) * 1_000_003 - 2**62  # close to each other, and of both signs


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def regularised_network(**settings: float) -> NFNet:
    torch.manual_seed(0)
    rates = {"dropout": 0.4, "stochastic_depth": 0.5} | settings
    model = create_model("nfnet_pico", 10, overrides={"depth": [1, 2, 2, 1]}, **rates).double()
    for block in model.blocks:
        torch.nn.init.constant_(block.skip_gain, 0.7)  # at 0, dropping a branch would change nothing
    return model.train()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def splitmix64(state: int) -> int:
    """SplitMix64's next number after `state`, in whole numbers of any size."""
    word = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & word
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & word
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & word
    return state ^ state >> 31


@pytest.mark.parametrize("stream", Stream)
def test_uniforms_are_the_upper_bits_of_splitmix64(stream: Stream) -> None:
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 123_456_789]
    expected = [
        [(splitmix64(splitmix64(splitmix64(key) + stream) + place) >> 40) / 2**24 for place in range(5)]
        for key in keys
    ]
    uniforms = keyed_uniforms(torch.tensor(keys), stream, 5)
    assert uniforms.dtype == torch.float32
    assert uniforms.tolist() == expected


def test_uniforms_are_uniform_and_independent() -> None:
    depth, dropout = (keyed_uniforms(KEYS, stream, 64).double() for stream in Stream)
    count = depth.numel()
    for uniforms in (depth, dropout):
        assert uniforms.min() >= 0
        assert uniforms.max() < 1
        assert uniforms.mean().item() == pytest.approx(0.5, abs=6 * math.sqrt(1 / 12 / count))
        shares = torch.histc(uniforms, bins=16, min=0, max=1) / count
        assert (shares - 1 / 16).abs().max() < 6 * math.sqrt(1 / 16 / count)
    # Neighbours along keys, along layers or channels, and the two streams at the same place.
    for name, left, right in (
        ("keys", depth[1:], depth[:-1]),
        ("layers", depth[:, 1:], depth[:, :-1]),
        ("streams", depth, dropout),
    ):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1].item()
        assert abs(correlation) < 6 / math.sqrt(left.numel()), name


def test_two_layers_of_a_network_drop_different_samples() -> None:
    uniforms = keyed_uniforms(KEYS, Stream.STOCHASTIC_DEPTH, 3)
    x = torch.ones(len(KEYS), 1)
    layers = [StochasticDepth(rate) for rate in (0.25, 0.5, 0.5)]
    stays = torch.stack([layer(x, uniforms[:, index])[:, 0] for index, layer in enumerate(layers)], 1)
    rates = torch.tensor([layer.drop_rate for layer in layers])
    standard_errors = (rates * (1 - rates) / len(KEYS)).sqrt()
    assert ((1 - stays.mean(0) - rates).abs() < 6 * standard_errors).all()
    both = (stays[:, 1] * stays[:, 2]).mean().item()
    assert both == pytest.approx(0.25, abs=6 * math.sqrt(0.25 * 0.75 / len(KEYS)))


def test_dropout_drops_each_channel_on_its_own_and_rescales() -> None:
    x = torch.randn(len(KEYS), 64) + 10
    y = Dropout(0.3)(x, keyed_uniforms(KEYS, Stream.DROPOUT, 64))
    stays = y != 0
    torch.testing.assert_close(y[stays], x[stays] / 0.7)
    assert stays.double().mean().item() == pytest.approx(0.7, abs=6 * math.sqrt(0.21 / x.numel()))
    both = (stays[:, 0] & stays[:, 1]).double().mean().item()
    assert both == pytest.approx(0.49, abs=6 * math.sqrt(0.49 * 0.51 / len(KEYS)))


def test_dropout_without_numbers_draws_at_the_same_rate() -> None:
    torch.manual_seed(0)
    y = Dropout(0.3)(torch.ones(4096, 64))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / y.numel()))


def test_a_sample_meets_the_same_masks_in_every_batch() -> None:
    model, x, keys = regularised_network(), images(24), KEYS[:24]
    whole = model(x, keys)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    # float64, for a kernel may add in another order when the batch has another size.
    torch.testing.assert_close(model(x[order], keys[order]), whole[order], rtol=0, atol=1e-12)
    parts = torch.cat([model(x[rows], keys[rows]) for rows in torch.arange(24).split([1, 7, 16])])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert not torch.allclose(model(x, KEYS[24:48]), whole, atol=1e-6)


def test_keys_leave_the_generator_alone_and_its_state_does_not_matter() -> None:
    model, x, keys = regularised_network(), images(8), KEYS[:8]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model(x, keys)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(model(x, keys), first)
    assert not torch.allclose(model(x), first, atol=1e-6)  # without keys the generator decides


def test_nothing_is_drawn_in_evaluation() -> None:
    model, x = regularised_network().eval(), images(8)
    before = torch.get_rng_state()
    assert torch.equal(model(x, KEYS[:8]), model(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_layer_and_both_regularisers_take_part() -> None:
    x, keys = images(16), KEYS[:16]
    for settings in ({"dropout": 0.0}, {"stochastic_depth": 0.0}):
        model = regularised_network(**settings)
        training = model(x, keys)
        assert not torch.allclose(training, model.eval()(x), atol=1e-6), settings
        if "dropout" in settings:
            # Of the blocks with a rate, each is dropped for some of the samples and kept for others.
            uniforms = keyed_uniforms(keys, Stream.STOCHASTIC_DEPTH, len(model.blocks))
            dropped = uniforms < torch.tensor([block.stochastic_depth.drop_rate for block in model.blocks])
            expected = []
            for sample, image in enumerate(x):
                gains = [block.skip_gain.item() for block in model.blocks]
                for block, is_dropped in zip(model.blocks, dropped[sample], strict=True):
                    torch.nn.init.constant_(block.skip_gain, 0.0 if is_dropped else 0.7)
                expected.append(model(image[None])[0])
                for block, gain in zip(model.blocks, gains, strict=True):
                    torch.nn.init.constant_(block.skip_gain, gain)
            torch.testing.assert_close(training, torch.stack(expected), rtol=0, atol=1e-12)


def test_keys_and_the_generator_agree_in_distribution() -> None:
    model = regularised_network().float()
    image = images(1).float().expand(512, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        keyed = torch.cat([model(image, keys) for keys in KEYS.split(512)])
        drawn = torch.cat([model(image) for _ in range(8)])
    standard_error = ((keyed.var(0) + drawn.var(0)) / len(KEYS)).sqrt()
    assert ((keyed.mean(0) - drawn.mean(0)).abs() < 6 * standard_error).all()
    # Of the deviations: 1 / sqrt(2 n) each for a normal, which has lighter tails than these, hence the 2.
    assert ((keyed.std(0) / drawn.std(0)).log().abs() < 2 * 6 / math.sqrt(len(KEYS))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_work_in_one_type(dtype: torch.dtype) -> None:
    model, x = regularised_network().to(dtype), images(4).to(dtype)
    logits = model(x, KEYS[:4])
    assert logits.dtype == dtype
    exact = regularised_network()(images(4), KEYS[:4])
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()  # the same masks


def test_bfloat16_autocast_meets_the_same_masks() -> None:
    model, x = regularised_network().float(), images(4).float()
    exact = model(x, KEYS[:4])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, KEYS[:4])
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()  # a second compilation would take sizes for variables, and a minute
    model, x, keys = regularised_network(), images(4), KEYS[:4]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, keys), model(x, keys))
    compiled(x, keys).sum().backward()
