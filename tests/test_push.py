"""Pushes to a small Hub on this machine; fresh processes with empty caches load what was pushed."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from tests import hub_client
from tests.common import ROUNDING, tiny_model, tiny_tokenizer
from tests.hub_server import HubServer
from tests.methods.common import tiny_method
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.checkpoint_facts import TRAINING_FILE, set_statements, write_training_facts
from vcp_clip_hf.checkpoint_folder import complete_parts, save_parts
from vcp_clip_hf.hub import push_checkpoint
from vcp_clip_hf.model_card import is_generated, write_model_card
from vcp_clip_hf.references import REFERENCES_FILE


ALICE, BOB = "token-of-alice", "token-of-bob"
CODE = {"modeling_vcp_clip.py", "configuration_vcp_clip.py", "pipeline_anomaly_segmentation.py"}


@dataclass
class Scene:
    """A server, a process that pushes to it, a checkpoint, and the checkpoint's map of an image."""

    hub: HubServer
    client: object
    folder: Path
    checkpoint: Path
    image: Path
    expected: np.ndarray

    def push(self, repo_id: str, *, function=hub_client.push, checkpoint: Path | None = None, **options) -> str:
        options = {"token": ALICE, **options}
        return self.client.submit(function, checkpoint or self.checkpoint, repo_id, **options).result()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    torch.manual_seed(0)
    model = tiny_model()
    model.clip.save_pretrained(folder / "clip")
    # as after training: the backbone is a folder of this machine
    model.config.backbone_name_or_path = str(folder / "clip")
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0, threshold=0.5)
    processor.save_pretrained(checkpoint)
    tiny_tokenizer().save_pretrained(checkpoint)
    write_training_facts(checkpoint, {"converted_from": {"file": "train.pth", "sha256": "0" * 64}})
    set_statements(checkpoint, license="apache-2.0")
    write_model_card(checkpoint)

    image = folder / "part.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    with torch.no_grad():
        outputs = model(**processor(Image.open(image), return_tensors="pt"))
    expected = processor.post_process_anomaly_segmentation(outputs, [(40, 56)])[0]["anomaly_map"].numpy()

    with HubServer({ALICE: "alice", BOB: "bob"}) as hub, hub_client.online(hub.url, folder / "home") as client:
        clip = hub.create("alice/clip")
        clip.commit("main", {path.name: path.read_bytes() for path in (folder / "clip").iterdir()}, "CLIP")
        yield Scene(hub, client, folder, checkpoint, image, expected)


@pytest.fixture(autouse=True)
def _no_interference(scene):
    yield
    scene.hub.interfere = lambda method, path: None


def changed_checkpoint(scene: Scene, folder: Path, by: float = 1.0) -> Path:
    """Return a copy with other learned weights; files that the server has already are not uploaded again."""
    model = VCPCLIPModel.from_pretrained(scene.checkpoint)
    with torch.no_grad():
        model.base_logit_scale += by
    model.save_pretrained(folder)
    for path in scene.checkpoint.iterdir():
        if path.suffix == ".json" and not (folder / path.name).exists() and path.name != TRAINING_FILE:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


# --- round trips ------------------------------------------------------------------------------------------------


def test_checkpoints_come_back_equal(scene, tmp_path):
    scene.push("alice/full", tag="v1")
    scene.push("alice/full", checkpoint=changed_checkpoint(scene, tmp_path / "changed"), revision="next")
    scene.push("alice/adapter", function=hub_client.push_from_memory, adapter_only=True, backbone="alice/clip")

    program = f"""
import numpy as np, torch
import vcp_clip_hf
from safetensors.torch import save_file
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
torch.set_num_threads(1)
for number, (name, revision) in enumerate(
    [("alice/full", None), ("alice/full", "v1"), ("alice/full", "next"), ("alice/adapter", None)]
):
    arguments = {{}} if revision is None else {{"revision": revision}}
    model = AutoModel.from_pretrained(name, **arguments)
    processor = AutoImageProcessor.from_pretrained(name, **arguments)
    assert len(AutoTokenizer.from_pretrained(name, **arguments)) == 514
    assert type(model) is vcp_clip_hf.VCPCLIPModel and processor.threshold == 0.5
    save_file(model.state_dict(), {str(tmp_path)!r} + f"/{{number}}.safetensors")
    with torch.no_grad():
        outputs = model(**processor(Image.open({str(scene.image)!r}), return_tensors="pt"))
    found = processor.post_process_anomaly_segmentation(outputs, [(40, 56)])[0]["anomaly_map"]
    np.save({str(tmp_path)!r} + f"/{{number}}.npy", found.numpy())
"""
    hub_client.run_fresh(program, scene.hub.url, tmp_path / "home")
    full, tagged, other, adapter = (np.load(tmp_path / f"{number}.npy") for number in range(4))
    for found in (full, tagged, adapter):
        np.testing.assert_allclose(found, scene.expected, atol=1e-6)
    weights = VCPCLIPModel.from_pretrained(scene.checkpoint).state_dict()
    for number in (0, 1, 3):
        back = load_file(tmp_path / f"{number}.safetensors")
        assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    assert abs(other - scene.expected).max() > 1e-3

    files = scene.hub.repository("alice/adapter").files()
    assert len(files["model.safetensors"]) < len(scene.hub.repository("alice/full").files()["model.safetensors"]) / 3
    config = json.loads(files["config.json"])
    assert config["backbone_name_or_path"] == "alice/clip" and not config["backbone_included"]


@pytest.mark.parametrize(("kind", "fields"), [("april_gan", {}), ("saa", {"plus": False})])
def test_another_method_comes_back_equal_without_code(scene, tmp_path, kind, fields):
    model = tiny_method(kind, **fields)
    save_parts(tmp_path / "method", complete_parts(model, tokenizer=model.tokenizer))
    scene.push(f"alice/{kind}", checkpoint=tmp_path / "method")
    files = scene.hub.repository(f"alice/{kind}").files()
    assert not [name for name in files if name.endswith(".py")] and model.config.title in files["README.md"].decode()
    program = f"""
import numpy as np
import vcp_clip_hf
from transformers import pipeline
inspect = pipeline("anomaly-segmentation", model="alice/{kind}")
np.save({str(tmp_path / "map.npy")!r}, inspect({str(scene.image)!r}, product_name="nut")["anomaly_map"])
"""
    hub_client.run_fresh(program, scene.hub.url, tmp_path / "home")
    inspect = pipeline("anomaly-segmentation", model=str(tmp_path / "method"))
    expected = inspect(str(scene.image), product_name="nut")["anomaly_map"]
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), expected, atol=1e-6)


def test_pipelines_work_without_the_package(scene, tmp_path):
    scene.push("alice/with_code")
    scene.push("alice/adapter_with_code", adapter_only=True, backbone="alice/clip", backbone_revision="main")
    program = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vcp_clip_hf":
            raise ImportError("hidden")
sys.meta_path.insert(0, Hide())
import numpy as np, torch
from transformers import pipeline
torch.set_num_threads(1)
for number, name in enumerate(["alice/with_code", "alice/adapter_with_code"]):
    pipe = pipeline("anomaly-segmentation", model=name, trust_remote_code=True)
    result = pipe({str(scene.image)!r}, regions=True)
    assert result["label"] in ("normal", "anomalous") and result["mask"].size == (56, 40)
    np.save({str(tmp_path)!r} + f"/{{number}}.npy", result["anomaly_map"])
assert "vcp_clip_hf" not in sys.modules
"""
    hub_client.run_fresh(program, scene.hub.url, tmp_path / "home")
    for number in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), scene.expected, atol=1e-6)


def test_datasets_come_back_with_plain_load_dataset(scene, tmp_path):
    commit = scene.client.submit(hub_client.push_records, "alice/parts", token=ALICE, tag="v1").result()
    files = scene.hub.repository("alice/parts", "datasets").files()
    card = files["README.md"].decode()
    assert (
        is_generated(card) and "size_categories:\n- n<1K" in card and "task_categories:\n- image-segmentation" in card
    )
    program = """
import sys
import datasets, json
every = datasets.load_dataset("alice/parts")
one = datasets.load_dataset("alice/parts", "product_1", split="test", revision="v1")
assert "vcp_clip_hf" not in sys.modules
facts = {
    "splits": {name: len(part) for name, part in every.items()},
    "features": str(every["train"].features),
    "product": sorted(set(one["product"])),
    "rows": [
        {**row, "image": row["image"].tobytes().hex(), "mask": row["mask"] and row["mask"].tobytes().hex()}
        for row in every["test"]
    ],
}
print(json.dumps(facts))
"""
    facts = json.loads(hub_client.run_fresh(program, scene.hub.url, tmp_path / "home").splitlines()[-1])
    records = make_records()
    assert facts["splits"] == {"train": 16, "test": 8} and facts["features"] == str(records.features)
    assert facts["product"] == ["product_1"]
    rows = {row["image_id"]: row for row in facts["rows"]}
    for record in records.select(range(16, 24)):
        row = rows[record["image_id"]]
        assert bytes.fromhex(row["image"]) == record["image"].tobytes()
        assert (row["mask"] and bytes.fromhex(row["mask"])) == (record["mask"] and record["mask"].tobytes())
        assert all(row[name] == record[name] for name in ("label", "product", "defect"))

    # pushing the same again changes nothing
    assert scene.client.submit(hub_client.push_records, "alice/parts", token=ALICE).result() == commit


def test_references_are_pushed_with_the_checkpoint(scene, tmp_path):
    """In full and adapter-only repositories; a pipeline whose references were cleared pushes none."""
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))
        for seed in (1, 2, 3)
    ]
    push = hub_client.push_references
    scene.push("alice/product", function=push, images=images)
    scene.push("alice/product_adapter", function=push, images=images, adapter_only=True, backbone="alice/clip")
    files = scene.hub.repository("alice/product").files()
    assert files[REFERENCES_FILE] == scene.hub.repository("alice/product_adapter").files()[REFERENCES_FILE]

    folder = tmp_path / "product"
    folder.mkdir()
    for name, content in files.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    local = pipeline("anomaly-segmentation", model=str(folder))
    expected = local(scene.image)
    assert expected["label"] is not None and len(local.references.pictures) == 3

    program = f"""
import numpy as np, torch
import vcp_clip_hf
from transformers import pipeline
torch.set_num_threads(1)
for number, name in enumerate(["alice/product", "alice/product_adapter"]):
    pipe = pipeline("anomaly-segmentation", model=name)
    result = pipe({str(scene.image)!r})
    assert pipe.references.digest == {local.references.digest!r} and result["label"] == {expected["label"]!r}
    np.save({str(tmp_path)!r} + f"/{{number}}.npy", result["anomaly_map"])
"""
    hub_client.run_fresh(program, scene.hub.url, tmp_path / "home")
    for number in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), expected["anomaly_map"], **ROUNDING)

    # a revision has its own references
    scene.push("alice/product", function=push, images=images[:2], tag="two")
    scene.push("alice/product", function=push, images=images[:1], revision="one", calibrate=False)
    program = """
import vcp_clip_hf
from transformers import pipeline
from vcp_clip_hf.checkpoint_folder import load_parts
arguments = [{}, {"revision": "two"}, {"revision": "one"}]
counts = [pipeline("anomaly-segmentation", model="alice/product", **each).references.pictures for each in arguments]
print(*map(len, counts), len(load_parts("alice/product").references.pictures))
"""
    assert hub_client.run_fresh(program, scene.hub.url, tmp_path / "home").split() == ["2", "2", "1", "2"]

    # the same folder is pushed again: first as it is, then without its references
    scene.push("alice/product", checkpoint=folder)
    assert scene.hub.repository("alice/product").files()[REFERENCES_FILE] == files[REFERENCES_FILE]
    scene.push("alice/product", checkpoint=folder, function=push, images=None)
    assert REFERENCES_FILE not in scene.hub.repository("alice/product").files()
    scene.push("alice/product", checkpoint=folder)
    scene.push("alice/product", checkpoint=folder, references=False)
    assert REFERENCES_FILE not in scene.hub.repository("alice/product").files()


def test_a_private_repository_is_loaded_with_a_token(scene, tmp_path):
    """Its references too, if the token is known to the Hub's client; else a warning says what is missing."""
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)) for seed in (1, 2)
    ]
    scene.push("alice/secret", function=hub_client.push_references, images=images, private=True)
    program = f"""
import os, sys
sys.stderr = sys.stdout
import torch
import vcp_clip_hf
from transformers import pipeline
torch.set_num_threads(1)
pipe = pipeline("anomaly-segmentation", model="alice/secret", token={ALICE!r})
print("given", pipe.references is not None, pipe({str(scene.image)!r})["label"])
os.environ["HF_TOKEN"] = {ALICE!r}
pipe = pipeline("anomaly-segmentation", model="alice/secret")
print("known", pipe.references is not None, pipe({str(scene.image)!r})["label"])
"""
    printed = hub_client.run_fresh(program, scene.hub.url, tmp_path / "home")
    assert "References of alice/secret were not looked for" in printed and "HF_TOKEN" in printed
    assert "given False None" in printed and "known True normal" in printed.replace("anomalous", "normal")


# --- contents -----------------------------------------------------------------------------------------------------


def test_a_push_has_all_parts_of_a_checkpoint_and_no_path_of_this_machine(scene):
    scene.push("alice/everything", commit_message="first", private=True)
    repository = scene.hub.repository("alice/everything")
    files = repository.files()
    assert {*CODE, "config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= files.keys()
    assert {"tokenizer.json", "tokenizer_config.json", TRAINING_FILE, "card.json"} <= files.keys()
    assert repository.private and list(repository.messages.values()) == ["initial commit", "first"]
    for name, content in files.items():
        assert str(scene.folder).encode() not in content, f"{name} names a folder of this machine"
    card = files["README.md"].decode()
    assert is_generated(card) and 'model="alice/everything", trust_remote_code=True' in card
    assert "license: apache-2.0" in card and "Converted from their file `train.pth`" in card
    assert "base_model" not in card

    arguments = ("push", "alice/no_code", "--model", str(scene.checkpoint), "--no-code", "--revision", "next")
    assert "/alice/no_code/commit/" in scene.client.submit(hub_client.command, *arguments, token=ALICE).result()
    repository = scene.hub.repository("alice/no_code")
    files = repository.files("next")
    assert list(repository.files("main")) == [".gitattributes"]
    assert not [name for name in files if name.endswith(".py")]
    assert "trust_remote_code" not in files["README.md"].decode()

    pushed = scene.client.submit(hub_client.example, "alice/example", scene.checkpoint, token=ALICE).result()
    assert "/alice/example/commit/" in pushed
    assert "auto_map" not in json.loads(files["config.json"])


def test_weights_of_an_earlier_push_are_deleted(scene):
    scene.push("alice/shards")
    repository = scene.hub.repository("alice/shards")
    extra = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt", "more/model.safetensors"]
    repository.commit("main", {**repository.files(), **dict.fromkeys(extra, b"{}")}, "an older push")
    scene.push("alice/shards")
    files = repository.files()
    assert "model.safetensors" in files and not set(extra[:2]) & files.keys() and set(extra[2:]) <= files.keys()


def test_a_readme_that_a_person_wrote_is_kept(scene, tmp_path):
    scene.push("alice/readme")
    repository = scene.hub.repository("alice/readme")
    edited = repository.files()["README.md"].replace(b"## Limitations", b"## Limitations, as we found them")
    repository.commit("main", {**repository.files(), "README.md": edited}, "edited on the Hub")
    scene.push("alice/readme", checkpoint=changed_checkpoint(scene, tmp_path / "changed"))
    assert repository.files()["README.md"] == edited
    assert len(repository.commits) == 4  # the new weights are there

    # a person's README beside the checkpoint is pushed as it is
    (tmp_path / "changed" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    scene.push("alice/mine", checkpoint=tmp_path / "changed")
    assert scene.hub.repository("alice/mine").files()["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
    assert (tmp_path / "changed" / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"


def test_an_adapter_needs_a_backbone_that_others_can_load(scene):
    for options, words in (
        ({}, "is not a Hub repository that others could load it from"),
        ({"backbone": "alice/no_such_clip"}, "'alice/no_such_clip' cannot be found"),
        ({"backbone": "alice/clip", "backbone_revision": "v9"}, "at revision 'v9' cannot be found"),
    ):
        with pytest.raises(ValueError, match=words):
            scene.push("alice/lonely", adapter_only=True, **options)
    assert ("models", "alice/lonely") not in scene.hub.repositories


def test_the_models_own_push_has_the_arguments_of_transformers(scene):
    options = {
        "create_pr": True,
        "tags": ["inspection"],
        "max_shard_size": "200KB",
        "commit_description": "The reason",
    }
    scene.push("alice/model_only", function=hub_client.push_model_only, **options)
    repository = scene.hub.repository("alice/model_only")
    assert list(repository.files()) == [".gitattributes"]
    files = repository.files("refs/pr/1")
    assert "config.json" in files and "preprocessor_config.json" not in files
    assert len([name for name in files if name.endswith(".safetensors")]) > 1 and b"- inspection" in files["README.md"]
    assert repository.descriptions[repository.branches["refs/pr/1"]] == "The reason"


def test_a_refused_push_leaves_the_model_as_it_was(scene):
    model = VCPCLIPModel.from_pretrained(scene.checkpoint)
    model.config.backbone_revision = "v2"
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="is not a Hub repository"):
        push_checkpoint(model, "alice/x", adapter_only=True, token=ALICE)
    with pytest.raises(ValueError, match="'runs/clip/last' is not a Hub repository"):
        push_checkpoint(model, "alice/x", adapter_only=True, backbone="runs/clip/last", token=ALICE)
    assert model.config.to_dict() == before


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_push_that_is_killed_halfway_changes_nothing(scene, tmp_path):
    scene.push("alice/killed")
    repository = scene.hub.repository("alice/killed")
    before, files = dict(repository.branches), repository.files()
    changed = changed_checkpoint(scene, tmp_path / "changed", by=2)
    arguments = ("push", "alice/killed", "--model", str(changed), "--tag", "v2")
    process = subprocess.Popen(
        [sys.executable, "-m", "vcp_clip_hf.cli", *arguments],
        cwd=hub_client.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=hub_client.environment(scene.hub.url, tmp_path / "home", ALICE),
    )

    def kill(method: str, path: str) -> int | None:
        if method == "PUT" and process.poll() is None:
            process.kill()
        return None

    scene.hub.interfere = kill
    output = process.communicate(timeout=600)
    assert process.returncode < 0, output
    assert repository.branches == before and repository.files() == files and not repository.tags

    # running the same command again succeeds
    scene.hub.interfere = lambda method, path: None
    printed = scene.client.submit(hub_client.command, *arguments, token=ALICE).result()
    commit = repository.branches["main"]
    assert printed == f"{scene.hub.url}/alice/killed/commit/{commit}\n"
    assert repository.tags == {"v2": commit} and repository.files() != files


def test_failing_uploads_and_commits_are_reported(scene, tmp_path):
    scene.push("alice/failing")
    repository = scene.hub.repository("alice/failing")
    before = dict(repository.branches)
    changed = changed_checkpoint(scene, tmp_path / "changed", by=3)

    scene.hub.interfere = lambda method, path: 400 if method == "PUT" else None
    with pytest.raises(OSError, match=r"(?s)The push failed: .*run the same command again") as error:
        scene.push("alice/failing", checkpoint=changed)
    assert not isinstance(error.value, PermissionError) and repository.branches == before

    def somebody_else(method: str, path: str) -> int | None:
        if "/commit/" in path:
            repository.commit("main", {**repository.files(), "notes.txt": b"mine"}, "somebody else")
        return None

    scene.hub.interfere = somebody_else
    with pytest.raises(OSError, match="Somebody else changed alice/failing during the push"):
        scene.push("alice/failing", checkpoint=changed)
    assert repository.files()["notes.txt"] == b"mine"

    scene.hub.interfere = lambda method, path: 403 if "/tag/" in path else None
    with pytest.raises(OSError, match=r"Pushed as .*, but the tag was not set: (.|\n)*hf repos tag create"):
        scene.push("alice/failing", checkpoint=changed, tag="v1")


def test_errors_about_permissions_say_what_to_do(scene):
    with pytest.raises(PermissionError, match=r"needs a token with write access. .*hf auth login.*HF_TOKEN"):
        scene.push("alice/x", token=None)
    with pytest.raises(PermissionError, match=r"does not accept the token.*hf auth login"):
        scene.push("alice/x", token="wrong")
    with pytest.raises(PermissionError, match=r"The token of 'bob' may not write to alice/clip. Push to a repository"):
        scene.push("alice/clip", token=BOB)
    with pytest.raises(PermissionError, match=r"The token of 'bob' may not write to alice/unmade"):
        scene.push("alice/unmade", token=BOB)
    assert not {("models", "alice/x"), ("models", "alice/unmade")} & scene.hub.repositories.keys()


def test_tags_do_not_move(scene, tmp_path):
    first = scene.push("alice/tagged", tag="v1")
    with pytest.raises(
        ValueError, match=rf"already has a tag 'v1', on commit {first[:12]}.*tag delete alice/tagged v1"
    ):
        scene.push("alice/tagged", checkpoint=changed_checkpoint(scene, tmp_path / "changed"), tag="v1")
    repository = scene.hub.repository("alice/tagged")
    assert repository.branches["main"] == repository.tags["v1"] == first


def test_offline_mode_is_reported(scene):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE=1 is set"):
        push_checkpoint(str(scene.checkpoint), "alice/x", token=ALICE)


def test_a_new_model_is_pushed_with_default_settings(scene):
    scene.client.submit(hub_client.push_new, "alice/new", token=ALICE).result()
    files = scene.hub.repository("alice/new").files()
    assert json.loads(files["preprocessor_config.json"])["size"] == {"height": 48, "width": 48}
    assert "tokenizer.json" not in files and "no record of its training" in files["README.md"].decode()
