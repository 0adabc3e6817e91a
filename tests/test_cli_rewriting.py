"""`convert`, `resize`, `merge`, `compare` and `nearest` as a person with many files uses them."""

from __future__ import annotations

import errno
import json
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.cli.console import INTERRUPTED
from lol_core.cli.rewriting import Job, Width
from lol_core.core.geometry import same_function
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import read
from lol_core.formats.writing import write
from lol_core.insight.merging import merge
from lol_core.insight.rewriting import ranks_of_energy
from tests.builders import random_lora, write_peft
from tests.test_formats_libraries import randomised
from tests.test_formats_writing import diffusion_lora


def output(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else result.output


def deltas(lora: LoRA) -> dict[str, Tensor]:
    return {layer.name: layer.delta(torch.float64) for layer in lora.layers}


@given(
    ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    weights=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    scale=st.floats(0.1, 3),
)
@settings(max_examples=30, deadline=None)
def test_a_merge_is_the_weighted_sum(ranks: list[int], weights: list[float], scale: float) -> None:
    loras = [
        random_lora([("a", 7, 6, rank), ("b", 5, 8, rank)], seed, torch.float32, scale)
        for seed, rank in enumerate(ranks)
    ]
    merged = merge(loras, weights[: len(loras)])
    for name, delta in deltas(merged.lora).items():
        expected = sum(weight * deltas(lora)[name] for weight, lora in zip(weights, loras, strict=False))
        torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-5)
    assert all(layer.rank <= min(layer.n, layer.m) for layer in merged.lora.layers)


def test_a_merge_does_not_see_the_factors_and_keeps_modules_that_one_lacks() -> None:
    first, second = random_lora(seed=1), random_lora(seed=2)
    fewer = LoRA(second.layers[:1], second.dialect)
    generator = torch.Generator().manual_seed(0)
    turned = first.act(
        {
            layer.name: torch.randn(layer.rank, layer.rank, generator=generator, dtype=torch.float64)
            for layer in first.layers
        }
    )
    plain, gauged = merge([first, fewer], [1, 1]).lora, merge([turned, fewer], [1, 1]).lora
    assert set(plain.names) == set(first.names)
    assert same_function(plain, gauged, 1e-5)


def test_a_merge_is_what_peft_adds(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 7, bias=False), nn.Linear(8, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    torch.manual_seed(0)
    base = Two()
    before = {name: weight.detach().clone() for name, weight in base.state_dict().items()}
    for name, rank, rslora in (("one", 2, False), ("two", 3, True)):
        config = LoraConfig(r=rank, lora_alpha=5, target_modules=["a", "b"], use_rslora=rslora, init_lora_weights=False)
        fresh = Two()
        fresh.load_state_dict(before)
        get_peft_model(fresh, config).save_pretrained(tmp_path / name)
    wearing: Any = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    wearing.load_adapter(str(tmp_path / "two"), adapter_name="two")
    wearing.base_model.set_adapter(["one", "two"])
    merged = wearing.merge_and_unload().state_dict()
    report = output("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "sum", "--dtype", "float32")
    assert report["form"] == "PEFT" and report["lost"] == 0
    for name, delta in deltas(read(tmp_path / "sum")).items():
        expected = (merged[f"{name}.weight"] - before[f"{name}.weight"]).double()
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)


def test_a_merge_is_what_lycoris_adds(tmp_path: Path) -> None:
    """Of three algorithms, each with a weight of its own."""
    modules = pytest.importorskip("lycoris.modules", reason="lycoris, a development tool, is not installed")
    torch.manual_seed(0)
    base, expected, paths, weights = nn.Linear(8, 6, bias=False), torch.zeros(6, 8), [], (0.5, -1.0, 2.0)
    for kind, weight in zip((modules.LoConModule, modules.LohaModule, modules.LokrModule), weights, strict=True):
        module = kind("lora_unet_x", base, 1.0, lora_dim=2, alpha=3)
        randomised(module)
        paths.append(tmp_path / f"{kind.__name__}.safetensors")
        save_file(
            {f"lora_unet_x.{key}": value.contiguous() for key, value in module.custom_state_dict().items()}, paths[-1]
        )
        if kind is modules.LoConModule:
            added = module.get_merged_weight()[0] - base.weight
        else:  # whose get_merged_weight applies the scale a second time
            added = module.get_weight(base.weight.shape)
        expected += weight * added.detach()
    options = [text for weight in weights for text in ("--weight", str(weight))]
    report = output("merge", *paths, *options, "--out", tmp_path / "sum.safetensors", "--dtype", "float32")
    assert report["lost"] == pytest.approx(0, abs=1e-6)
    (delta,) = deltas(read(tmp_path / "sum.safetensors")).values()
    torch.testing.assert_close(delta.float(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_sum_is_refused(tmp_path: Path) -> None:
    first = random_lora([("a", 7, 6, 2)], 0)
    with pytest.raises(LoRAFormatError, match="different base models"):
        merge([first, random_lora([("a", 6, 6, 2)], 1)], [1, 1])
    write(first, tmp_path / "one", "PEFT")
    said = CliRunner().invoke(app, ["merge", str(tmp_path / "one"), "--weight", "1", "--weight", "2", "--out", "x"])
    assert said.exit_code == 1 and "1 LoRAs and 2 weights" in said.output


def test_a_folder_is_converted_whole_and_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loras = {f"{k}/{k}": diffusion_lora(k, (2, 3), 0.5) for k in range(3)}
    for name, lora in loras.items():
        write(lora, tmp_path / "from" / f"{name}.safetensors", "diffusers", torch.float32)
    (tmp_path / "from" / "broken.safetensors").write_bytes(b"no header")
    to = ("--to", "kohya", "--out", tmp_path / "to", "--dtype", "float32")
    report = output("convert", tmp_path / "from", *to)
    assert {row["lora"] for row in report["written"]} == set(loras) and report["finished"]
    back = {name: read(tmp_path / "to" / f"{name}.safetensors") for name in loras}
    for name, lora in loras.items():
        assert back[name].dialect.startswith("kohya")
        for a, b in zip(sorted(deltas(back[name]).items()), sorted(deltas(lora).items()), strict=True):
            torch.testing.assert_close(a[1], b[1], rtol=1e-6, atol=1e-6)
    before = {path: path.read_bytes() for path in (tmp_path / "to").rglob("*.safetensors")}
    again = output("convert", tmp_path / "from", *to, code=1)
    assert len(again["refused"]) == 3 and "there already" in again["refused"][0]["refused"]
    assert {path: path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file()} == before
    monkeypatch.setattr("lol_core.cli.rewriting.SHOWN", 1)
    shown = CliRunner().invoke(app, ["convert", str(tmp_path / "from"), *map(str, to)]).output
    assert shown.count("there already") == 1 and "… and 2 more" in shown
    assert len(output("convert", tmp_path / "from", *to, "--force")["written"]) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_converted_lora_keeps_its_numbers_unless_others_are_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    lora = random_lora([("lora_unet_x", 8, 6, 2)], dtype=torch.float32)
    write(lora, tmp_path / "one.safetensors", "kohya", dtype)
    output("convert", tmp_path / "one.safetensors", "--to", "kohya", "--out", tmp_path / "own")
    (before,), (after,) = (
        read(path).layers for path in (tmp_path / "one.safetensors", tmp_path / "own" / "one.safetensors")
    )
    assert after.U.dtype == dtype and torch.equal(after.U, before.U) and torch.equal(after.V, before.V)
    for command, *options in (("resize", "--rank", 1), ("merge", tmp_path / "one.safetensors")):
        made = tmp_path / command / "one.safetensors"
        output(command, tmp_path / "one.safetensors", *options, "--out", made if command == "merge" else made.parent)
        assert read(made).layers[0].U.dtype == dtype
    output("convert", tmp_path / "one.safetensors", "--to", "kohya", "--out", tmp_path / "half", "--dtype", "float16")
    assert read(tmp_path / "half" / "one.safetensors").layers[0].dtype == "float16"


@pytest.mark.parametrize("command", [("merge",), ("resize", "--rank", 2), ("convert", "--to", "PEFT")])
def test_nothing_is_made_of_no_lora(command: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    result = CliRunner().invoke(app, [*map(str, command), str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and f"There is no LoRA in {tmp_path / 'none'}." in result.stderr.replace("\n", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["", "*"])
def test_what_is_written_within_its_own_input_is_not_read_again(pattern: str, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write(random_lora(seed=seed, dtype=torch.float32), tmp_path / "all" / name, "PEFT")
    place, small = tmp_path / "all" / pattern, tmp_path / "all" / "small"
    for again in ((), ("--force",)):
        made = output("resize", place, "--rank", 1, "--out", small / "one", *again)
        assert [row["lora"] for row in made["written"]] == ["one", "two"] and not made["refused"]
    for again in ((), ("--force",)):
        merged = output("merge", place, "--out", tmp_path / "all" / "both", *again)["merged"]
        assert len(merged) == 4 and "both" not in merged
    one, both = (str(tmp_path / "all" / name) for name in ("one", "both"))
    result = CliRunner().invoke(app, ["merge", one, both, "--out", both, "--force"])
    assert result.exit_code == 1 and "is read and would be written" in result.stderr


def test_a_folder_is_not_called_as_a_file(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two.safetensors", 2)):
        write(random_lora(seed=seed, dtype=torch.float32), tmp_path / name, "PEFT")
    both = [str(tmp_path / "one"), str(tmp_path / "two.safetensors")]
    result = CliRunner().invoke(app, ["merge", *both, "--out", str(tmp_path / "m.safetensors")])
    assert result.exit_code == 1 and "the form PEFT is a folder" in result.stderr
    assert not (tmp_path / "m.safetensors").exists()
    made = output("resize", *both, "--rank", 1, "--out", tmp_path / "small")["written"]
    assert {Path(row["written"]).name for row in made} == {"one", "two"}


def test_what_is_no_part_of_a_product_is_not_lost_in_silence(tmp_path: Path) -> None:
    write(random_lora([("lora_unet_x", 8, 6, 2)], dtype=torch.float32), tmp_path / "plain.safetensors", "kohya")
    tensors = load_file(tmp_path / "plain.safetensors") | {"lora_unet_norm.w_norm": torch.ones(8)}
    save_file(tensors, tmp_path / "norms.safetensors")
    (tmp_path / "plain.safetensors").unlink()
    for arguments in (["resize", tmp_path, "--rank", 1], ["merge", *[tmp_path / "norms.safetensors"] * 2]):
        out = tmp_path.with_name(f"{arguments[0]}.safetensors")
        result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out)])
        assert "no part of a low-rank product and left out: w_norm (1), such as lora_unet_norm.w_norm" in result.output
        made = output(*arguments, "--out", out, "--force")
        row = made if "merged" in made else made["written"][0]
        assert row["left out"] == ["lora_unet_norm.w_norm"]


def test_a_scale_that_is_not_known_is_told_wherever_it_is_used(tmp_path: Path) -> None:
    write(random_lora(dtype=torch.float32), tmp_path / "one", "PEFT")
    (tmp_path / "one" / "adapter_config.json").unlink()
    weights = tmp_path / "one" / "adapter_model.safetensors"
    for command in ("convert", "merge"):
        arguments = [command, str(weights), "--out", str(tmp_path / command)]
        result = CliRunner().invoke(app, [*arguments, *(["--to", "PEFT"] if command == "convert" else [])])
        assert result.exit_code == 0 and "the scale is unknown and taken as 1" in result.stderr, command


@pytest.mark.parametrize("kind", ["pattern", "archive"])
def test_patterns_and_archives_are_inputs(kind: str, tmp_path: Path) -> None:
    for k in range(2):
        write(diffusion_lora(k, (2, 3), 0.5), tmp_path / f"style-{k}.safetensors", "kohya")
    inputs = tmp_path / "style-*.safetensors"
    if kind == "archive":
        inputs = tmp_path / "styles.zip"
        with zipfile.ZipFile(inputs, "w") as archive:
            for k in range(2):
                archive.write(tmp_path / f"style-{k}.safetensors", f"style-{k}.safetensors")
    workers = 2 if kind == "archive" else 1
    report = output("resize", inputs, "--rank", "1", "--out", tmp_path / "small", "--workers", workers)
    assert [row["rank"] for row in report["written"]] == ["1", "1"]
    assert read(tmp_path / "small" / "style-0.safetensors").ranks == (1,)


def test_a_share_of_the_energy_is_kept_and_no_rank_more(tmp_path: Path) -> None:
    lora = random_lora([("model.a", 9, 8, 6), ("model.b", 7, 9, 6)], 3, torch.float32)
    write(lora, tmp_path / "whole", "PEFT", torch.float32)
    for share in (0.5, 0.9, 1.0):
        ranks = ranks_of_energy(lora, share)
        output(
            "resize", tmp_path / "whole", "--energy", share, "--out", tmp_path / "cut", "--dtype", "float32", "--force"
        )
        cut = read(tmp_path / "cut" / "whole")
        for layer in lora.layers:
            energy = torch.linalg.svdvals(layer.delta(torch.float64)).square()
            kept = torch.linalg.svdvals(cut[layer.name].delta(torch.float64)).square().sum() / energy.sum()
            assert cut[layer.name].rank == ranks[layer.name] and kept >= share * (1 - 1e-6)
            assert energy[: ranks[layer.name] - 1].sum() < share * energy.sum()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), "Free some disk space"),
        (OSError(errno.EROFS, "", "there"), "there: Read-only file system. Choose a place that you may write to"),
    ],
)
def test_a_disk_that_takes_nothing_is_a_sentence_and_nothing_is_left(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise error

    write(diffusion_lora(0, (2, 2), 1.0), tmp_path / "a.safetensors", "diffusers")
    monkeypatch.setattr("lol_core.formats.writing.save_file", save_file)
    words = ["resize", str(tmp_path / "a.safetensors"), "--rank", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit) and reason in done.output
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_keeps_what_is_written_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        write(diffusion_lora(k, (2, 3), 0.5), tmp_path / f"{k}.safetensors", "diffusers")

    def interrupted(job: Job, item: Any) -> dict[str, Any]:
        row = do(job, item)
        signal.raise_signal(signal.SIGINT)
        return row

    do = Job.__call__
    words = ["convert", str(tmp_path / "*.safetensors"), "--to", "kohya", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr(Job, "__call__", interrupted)
        stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code == INTERRUPTED and "The same command writes the rest" in stopped.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.safetensors"]
    CliRunner().invoke(app, words)
    assert sum(read(path).dialect.startswith("kohya") for path in (tmp_path / "out").iterdir()) == 3


def test_two_files_of_one_name_are_not_written_over_each_other(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write(random_lora(seed=1), tmp_path / folder / "same", "PEFT")
    said = CliRunner().invoke(
        app, ["convert", str(tmp_path / "x" / "same"), str(tmp_path / "y" / "same"), "--to", "PEFT", "--out", "z"]
    )
    assert said.exit_code == 1 and "Two LoRAs would be written as same" in said.output


def test_compare_tells_the_same_function_from_another(tmp_path: Path) -> None:
    first = random_lora(seed=1, dtype=torch.float32)
    write(first, tmp_path / "one", "PEFT", torch.float32)
    write(merge([first], [2.0]).lora, tmp_path / "double", "PEFT", torch.float32)
    write(merge([first], [1.0]).lora, tmp_path / "again", "PEFT", torch.float32)
    assert output("compare", tmp_path / "one", tmp_path / "again")["same function"]
    double = output("compare", tmp_path / "one", tmp_path / "double")
    assert (
        not double["same function"] and double["cosine"] == pytest.approx(1) and double["distance"] == pytest.approx(1)
    )


def test_forms_of_one_lora_are_told_to_be_the_same(tmp_path: Path) -> None:
    one, other = diffusion_lora(1, (2, 3), 0.5), diffusion_lora(2, (2, 3), 0.5)
    write(one, tmp_path / "a.safetensors", "diffusers", torch.float32)
    write(one, tmp_path / "b.safetensors", "kohya", torch.float32)
    write(other, tmp_path / "c.safetensors", "kohya", torch.float32)
    report = output("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert report["same function"] and report["shared modules"] == len(one.layers)
    assert [row["module"] for row in report["modules"]] == list(read(tmp_path / "a.safetensors").names)
    assert not output("compare", tmp_path / "a.safetensors", tmp_path / "c.safetensors")["same function"]
    (group,) = output("duplicates", tmp_path)["groups"]
    assert {row["path"] for row in group} == {"a.safetensors", "b.safetensors"}
    closest = output("nearest", tmp_path, "b")["nearest"]
    assert closest[0]["lora"] == "a.safetensors" and closest[0]["cosine"] == pytest.approx(1)
    assert abs(closest[1]["cosine"]) < 0.9
    alien = random_lora([("model.layers.0.q", 6, 5, 2)], 0)
    with pytest.raises(LoRAFormatError, match=r"^model\.layers\.0\.q in .*: no module is adapted by both"):
        merge([alien, read(tmp_path / "a.safetensors")], [1, 1])


@pytest.mark.parametrize(
    ("fused", "split"),
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv", "transformer.transformer_blocks.0.attn.to_q"),
        ("lora_unet_single_blocks_0_linear1", "transformer.single_transformer_blocks.0.attn.to_q"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "transformer_blocks.0.attn.to_q"),
        ("diffusion_model.layers.0.attention.qkv", "diffusion_model.layers.0.attention.to_q"),
    ],
)
def test_fused_and_split_projections_are_not_written_into_one_file(fused: str, split: str) -> None:
    one, other = (random_lora([(name, 6, 5, 2)], 0) for name in (fused, split))
    with pytest.raises(LoRAFormatError, match=rf"^{fused} in one LoRA and {split} in another"):
        merge([other, one], [1, 1])
    again = random_lora([(fused, 6, 5, 2)], 1)
    assert merge([one, again], [1, 1]).lora.names == one.names


def test_a_unets_transformer_blocks_are_of_one_naming() -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"
    one, other = (random_lora([(f"unet.{name}{part}", 6, 5, 2)], 0) for part in ("q", "v"))
    assert len(merge([one, other], [1, 1]).lora.names) == 2


def test_nearest_ranks_by_the_update(tmp_path: Path) -> None:
    own, far = random_lora(seed=1, dtype=torch.float32), random_lora(seed=2, dtype=torch.float32)
    for name, share in (("own", 0.0), ("close", 0.1), ("farther", 0.6)):
        write(merge([own, far], [1 - share, share]).lora, tmp_path / name, "PEFT", torch.float32)
    rows = output("nearest", tmp_path, "own")["nearest"]
    assert [Path(row["lora"]).parent.name for row in rows] == ["close", "farther"]
    missing = CliRunner().invoke(app, ["nearest", str(tmp_path), "nobody"])
    assert missing.exit_code == 1 and "no such LoRA" in missing.output
    write(own, tmp_path / "x" / "same", "PEFT", torch.float32)
    assert output("nearest", tmp_path, "same")["nearest"][0]["lora"] == "own/adapter_model.safetensors"
    write(own, tmp_path / "y" / "same", "PEFT", torch.float32)
    two = " ".join(CliRunner().invoke(app, ["nearest", str(tmp_path), "same"]).output.split())
    assert "2 LoRAs are called so. Name one by its path: x/same/adapter_model.safetensors, y/same/" in two


def test_a_folder_of_one_lora_is_said_to_have_no_neighbours(tmp_path: Path) -> None:
    write(random_lora(), tmp_path / "one", "PEFT")
    result = CliRunner().invoke(app, ["nearest", str(tmp_path / "one"), "one"])
    assert result.exit_code == 1 and "Name the collection that it lies in" in result.stderr
    result = CliRunner().invoke(app, ["nearest", str(tmp_path / "one"), "another"])
    assert result.exit_code == 1 and "another: no such LoRA" in result.stderr


def test_a_folder_that_holds_more_than_a_lora_is_never_replaced(tmp_path: Path) -> None:
    write(random_lora(seed=1), tmp_path / "one", "PEFT")
    write(random_lora(seed=2), tmp_path / "loras" / "two", "PEFT")
    for target in (tmp_path / "loras", tmp_path):
        arguments = ["merge", str(tmp_path / "one"), "--to", "PEFT", "--out", str(target), "--force"]
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 1 and "it is not replaced" in refused.output
    assert (tmp_path / "loras" / "two" / "adapter_model.safetensors").is_file()
    assert output("merge", tmp_path / "one", "--out", tmp_path / "loras" / "two", "--force")["form"] == "PEFT"
    assert same_function(read(tmp_path / "loras" / "two"), random_lora(seed=1), 1e-2)
    assert [path.name for path in (tmp_path / "loras").iterdir()] == ["two"]


def test_a_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    row = Job(tmp_path / "out", None, Width.FLOAT16, False)(("../outside", lambda: random_lora(seed=1)))
    assert "outside" in row["refused"] and not (tmp_path / "outside").exists()


def test_no_energy_is_no_share(tmp_path: Path) -> None:
    write(random_lora(seed=1), tmp_path / "one", "PEFT")
    report = output("resize", tmp_path / "one", "--energy", 0, "--out", tmp_path / "cut", code=1)
    assert "share of the energy" in report["refused"][0]["refused"]


def test_loras_of_one_dialect_that_share_no_module_are_put_side_by_side() -> None:
    first, second = random_lora([("model.layers.0.q", 6, 5, 2)], 0), random_lora([("model.layers.0.v", 6, 5, 2)], 1)
    assert merge([first, second], [1, 1]).lora.names == (*first.names, *second.names)


def test_loras_of_other_bases_are_merged_with_a_word(tmp_path: Path) -> None:
    for name, module, base in (("a", "h.0.q", "gpt2"), ("b", "layer.0.q", "org/bert"), ("c", "h.0.q", "openai/GPT2")):
        write_peft(tmp_path / name, random_lora([(module, 8, 6, 2)]), base_model_name_or_path=base)
    a, b, c = (tmp_path / name for name in "abc")
    result = CliRunner().invoke(app, ["merge", str(a), str(b), "--out", str(tmp_path / "ab")])
    assert "different base models: gpt2, org/bert." in result.stderr and "No module is adapted by two" in result.stderr
    assert len(output("merge", a, b, "--out", tmp_path / "abj")["remarks"]) == 2
    assert "remarks" not in output("merge", a, c, "--out", tmp_path / "ac"), "one model under two names"
