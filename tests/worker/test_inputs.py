"""Jobs that can never run are rejected while they are prepared, with their reason."""

from __future__ import annotations

import pytest
import torch

from halp_producer import Job
from halp_worker.fates import FatalError, Reason, Rejected
from halp_worker.model.inputs import PreparedImage, SharedImages
from halp_worker.model.layers import choose_layers, choose_positions
from halp_worker.model.positions import Prompt, find_positions
from halp_worker.model.ranks import pack, unpack
from halp_worker.model.versions import check_transformers


def job(**changes):
    fields = {"question_id": "q", "image": "coffee.png", "question": "Is it?", "ground_truth": ""}
    return Job(**{**fields, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_a_question_with_a_special_token_is_rejected(bench, token):
    """It would end its own turn, or pass for an image."""
    with pytest.raises(Rejected, match="special token") as caught:
        bench().inputs.prepare(job(question=f"Is {token} here?"))
    assert caught.value.rejection.reason is Reason.SPECIAL_TOKEN


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_is_rejected(bench):
    """Room for the answer is part of the context."""
    with pytest.raises(Rejected, match="prompt has") as caught:
        bench().inputs.prepare(job(question="word " * 3000))
    assert caught.value.rejection.reason is Reason.PROMPT_TOO_LONG


@pytest.mark.slow
def test_an_image_too_thin_for_the_model_is_rejected(bench, photos):
    """Aspect ratios above 200 are refused by the model's own resizing."""
    from PIL import Image

    Image.new("RGB", (4000, 4)).save(photos / "thin.png")
    with pytest.raises(Rejected, match="aspect ratio"):
        bench().inputs.prepare(job(image="thin.png"))


@pytest.mark.slow
def test_a_question_keeps_its_unicode(bench):
    """What was asked is what the model reads: accents, emoji, right-to-left."""
    bench = bench()
    question = "Où est le chat 🐈? שלום"
    sample = bench.inputs.prepare(job(question=question))
    text = bench.loaded.processor.tokenizer.decode(sample.input_ids)
    assert f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n" in text


def test_layers_auto_are_the_five_of_the_document():
    """0, n/4, n/2, 3n/4, n-1 for any depth; fewer where they coincide."""
    assert choose_layers("auto", 28) == (0, 7, 14, 21, 27)
    assert choose_layers("auto", 36) == (0, 9, 18, 27, 35)
    assert choose_layers("auto", 64) == (0, 16, 32, 48, 63)
    assert choose_layers("auto", 2) == (0, 1)
    assert choose_layers("3,1,3", 5) == (1, 3)


@pytest.mark.parametrize("wanted", ["0,28", "-1", "a,b", ""])
def test_layers_that_are_not_there_are_refused(wanted):
    """With what there is."""
    with pytest.raises(FatalError, match="--layers"):
        choose_layers(wanted, 28)


def test_positions_have_their_defaults_and_refuse_others():
    """The two of the document always; extra ones on request, in a fixed order."""
    assert choose_positions(()) == ("vision_token", "query_token")
    assert choose_positions(("halp_reference", "question_token")) == (
        "vision_token",
        "query_token",
        "question_token",
        "halp_reference",
    )
    with pytest.raises(FatalError, match="there are vision_token"):
        choose_positions(("middle",))


def test_positions_of_the_documents_own_example():
    """640x480: 1564 patches, 391 tokens at 18..408 of 448; the document's index is outside."""
    ids = [1] * 18 + [7] * 391 + [1] * 34 + [9] + [1] * 4
    assert len(ids) == 448
    prompt = Prompt(ids, grid_patches=34 * 46, image_token_id=7, turn_end_id=9)
    names = ("vision_token", "query_token", "question_token", "halp_reference")
    assert find_positions(prompt, names) == (408, 447, 442, 224)


@pytest.mark.parametrize("broken", ["4.57.1", "5.3.0", "5.4.0", "5.5.3"])
def test_transformers_that_compute_wrong_positions_are_refused(broken):
    """5.3.0 to 5.5.3, and everything before 5."""
    with pytest.raises(FatalError, match="pip install"):
        check_transformers(broken)


@pytest.mark.parametrize("good", ["5.0.0", "5.2.1", "5.5.4", "5.23.0"])
def test_other_releases_of_transformers_5_are_fine(good):
    """The floor, the last before the defect, the first after it, a late one."""
    check_transformers(good)


def test_images_of_one_name_and_other_bytes_never_share_pixels():
    """The bytes are part of the key; the same image of the same name is made once."""
    made = []

    def prepare(key):
        made.append(key)
        return PreparedImage(str(key), torch.zeros(1, 1), torch.ones(1, 3, dtype=torch.int64), 1)

    shared = SharedImages(prepare)
    keys = [("a.png", b"one"), ("a.png", b"other"), ("a.png", None), ("a.png", b"one")]
    first, other, none, again = (shared.get(key) for key in keys)
    assert first is again
    assert len({id(one) for one in (first, other, none)}) == 3
    assert made == keys[:3]


@pytest.mark.slow
def test_an_image_inside_a_job_is_read_as_its_file_would_be(bench, photos):
    """The same pixels, hash and tokens; its name is not looked up and decides nothing."""
    from_file = bench().inputs.prepare(job())
    data = (photos / "coffee.png").read_bytes()
    inside = bench().inputs.prepare(job(image="nowhere/else.jpg", image_data=data))
    assert inside.image.sha256 == from_file.image.sha256
    assert torch.equal(inside.image.pixel_values, from_file.image.pixel_values)
    assert torch.equal(inside.input_ids, from_file.input_ids)
    other = (photos / "chelsea.png").read_bytes()
    samples = [
        bench().inputs.prepare(job(question_id=f"q{number}", image="a.png", image_data=one))
        for number, one in enumerate([data, other, data])
    ]
    rows = bench().extract(samples).features.text
    hashes = rows["image_sha256"]
    assert hashes[0] == hashes[2] == from_file.image.sha256 != hashes[1]
    assert rows["answer"][0] == rows["answer"][2]
    assert rows["content_hash"] == tuple(one.job.content_hash for one in samples)


@pytest.mark.slow
def test_a_damaged_image_inside_a_job_is_rejected_by_name(bench):
    """Through the same bounded decoder."""
    with pytest.raises(Rejected, match=r"not an image.*kettle\.jpg") as caught:
        bench().inputs.prepare(job(image="kettle.jpg", image_data=b"no picture"))
    assert caught.value.rejection.reason is Reason.IMAGE_UNREADABLE


@pytest.mark.slow
def test_samples_with_images_inside_reach_the_other_ranks(bench, photos):
    """As pixels: the bytes stay with the process that has the queue."""
    data = (photos / "coffee.png").read_bytes()
    sample = bench().inputs.prepare(job(image_data=data))
    (there,) = unpack(pack([sample]))
    assert there.job == job()
    assert torch.equal(there.image.pixel_values, sample.image.pixel_values)
