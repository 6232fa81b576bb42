"""Jobs that can never run are rejected while they are prepared, with their reason."""

from __future__ import annotations

import pytest

from halp_producer import Job
from halp_worker.fates import FatalError, Reason, Rejected
from halp_worker.model.layers import choose_layers, choose_positions
from halp_worker.model.positions import Prompt, find_positions
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
