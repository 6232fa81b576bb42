"""`Job`: one (image, question, ground truth) triple, and its codec on the stream.

This is the wire contract between producers and workers. It knows field names, limits and the
version; it does not know Redis, files or images. A job that can be built can be encoded, and
what was encoded decodes to an equal job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

WIRE_VERSION: Final = "1"
"""Raised when the meaning of a field changes; a worker refuses entries of another version."""

INLINE_VERSION: Final = "2"
"""Of an entry that carries its image. Its own, so that a worker which would look for the image in a
file sets the job aside; all other entries stay what every version reads."""

IMAGE_DATA: Final = "image_data"
"""The field of the image's bytes, as they are; only in entries of INLINE_VERSION, the last one."""

MAX_IMAGE_BYTES: Final = 16 << 20
"""Of an image inside a job. The server holds it in memory until the job has ended, and a worker
some batches of them; what is larger belongs below an image root."""

MAX_ID_BYTES: Final = 512
"""An id is a key, a label on a plot and part of a log line; longer ones are text by mistake."""

MAX_TEXT_BYTES: Final = 1 << 20
"""Per field. Far above any question, far below what would hurt the server (512 MB a value)."""


MISSING: Final = "is missing"
"""The reason given for a field that is not there."""

MAX_METADATA_DEPTH: Final = 100
"""Levels of nesting; far below what makes a JSON reader somewhere down the line give up."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
)


class JobFormatError(ValueError):
    """A stream entry or a dataset record that is not a job; `problems` holds (field, reason)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{field}: {reason}" for field, reason in problems))


def _text(value: str) -> str:
    try:
        size = len(value) if value.isascii() else len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode text (character {error.start})") from None
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"is {size} bytes long, the limit is {MAX_TEXT_BYTES}")
    return value


def _non_empty_text(value: str) -> str:
    if not _text(value) or value.isspace():
        raise ValueError("is empty")
    return value


def _identifier(value: str) -> str:
    _non_empty_text(value)
    if 4 * len(value) > MAX_ID_BYTES and len(value.encode("utf-8")) > MAX_ID_BYTES:
        raise ValueError(f"is longer than {MAX_ID_BYTES} bytes")
    if _CONTROL.search(value):
        raise ValueError("has a control character")
    return value


def _path(value: str) -> str:
    if "\0" in _non_empty_text(value):
        raise ValueError("has a NUL character")
    return value


def _image_data(value: bytes | None) -> bytes | None:
    if value == b"":
        raise ValueError("is empty")
    if value is not None and len(value) > MAX_IMAGE_BYTES:
        raise ValueError(f"is {len(value)} bytes long, the limit is {MAX_IMAGE_BYTES}")
    return value


def _json_object(value: dict[str, Any]) -> dict[str, Any]:
    """A copy that holds only what JSON can (a tuple becomes a list), so it decodes to its equal."""
    if not value:
        return {}
    if all(type(one) in _SCALARS for one in value.values()):
        _text(canonical_json(value))
        return dict(value)
    if _too_deep(value):
        raise ValueError(f"is nested deeper than {MAX_METADATA_DEPTH} levels")
    copy: dict[str, Any] = json.loads(_text(canonical_json(value)))
    return copy


def _too_deep(value: Any) -> bool:
    """Whether `value` has more than MAX_METADATA_DEPTH levels; without recursion."""
    level = [value]
    for _ in range(MAX_METADATA_DEPTH + 1):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list, tuple))
        ]
        if not level:
            return False
    return True


class Job(BaseModel):
    """One question about one image, with its truth.

    question_id: the identity, unique in a run; in the store, the key of the row.
    image: path below the image root (or an absolute path inside it), or a URL.
    question: exactly what the model is asked.
    ground_truth: may be empty where it is not known.
    metadata: any JSON object, at most 100 levels deep; travels to the store untouched.
    image_data: the image itself, as a file of it would be; then `image` is only its name. None: it
        is where `image` says.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    question_id: Annotated[str, AfterValidator(_identifier)]
    image: Annotated[str, AfterValidator(_path)]
    question: Annotated[str, AfterValidator(_non_empty_text)]
    ground_truth: Annotated[str, AfterValidator(_text)]
    metadata: Annotated[dict[str, Any], AfterValidator(_json_object)] = {}
    image_data: Annotated[bytes | None, AfterValidator(_image_data), Field(repr=False)] = None

    @property
    def content_hash(self) -> str:
        """32 hex digits (BLAKE2b-128) over every field; equal hash means equal job."""
        return hash_fields(self.encode(), self.image_data)

    def encode(self) -> dict[str, str]:
        """The fields of the stream entry but `image_data`, which is bytes and comes last, in their
        fixed order (a stream packs equal orders)."""
        return {
            "v": WIRE_VERSION if self.image_data is None else INLINE_VERSION,
            "question_id": self.question_id,
            "image": self.image,
            "question": self.question,
            "ground_truth": self.ground_truth,
            "metadata": canonical_json(self.metadata),
        }


def hash_fields(fields: Mapping[str, str], image_data: bytes | None = None) -> str:
    """The content hash of the job with this `image_data` whose `encode()` gave these fields."""
    name, image, question = fields["question_id"], fields["image"], fields["question"]
    truth, metadata = fields["ground_truth"], fields["metadata"]
    # Only where there is an image: what was enqueued and stored without keeps its hash. Metadata
    # ends with its brace, so that no metadata can pass for a digest.
    digest = "" if image_data is None else hashlib.sha256(image_data).hexdigest()
    # The lengths come first, so that no text can pass for the end of the one before it.
    content = (
        f"{len(name)} {len(image)} {len(question)} {len(truth)} "
        f"{name}{image}{question}{truth}{metadata}{digest}"
    )
    return hashlib.blake2b(content.encode("utf-8"), digest_size=16).hexdigest()


def decode(fields: Mapping[bytes, bytes]) -> Job:
    """The job in a stream entry. Raises JobFormatError naming every field that is wrong."""
    text_fields = dict(fields)
    image_data = text_fields.pop(IMAGE_DATA.encode("ascii"), None)
    expected = WIRE_VERSION if image_data is None else INLINE_VERSION
    try:
        text = {name.decode("utf-8"): value.decode("utf-8") for name, value in text_fields.items()}
    except UnicodeDecodeError as error:
        raise JobFormatError([("entry", f"is not UTF-8 ({error.reason})")]) from None
    version = text.pop("v", None)
    if version != expected:
        inside = "without" if image_data is None else "with"
        raise JobFormatError(
            [("v", f"expected version {expected} {inside} an image inside, got {version!r}")]
        )
    record: dict[str, Any] = {**text, IMAGE_DATA: image_data}
    try:
        record["metadata"] = json.loads(text.get("metadata", "{}"))
    except (ValueError, RecursionError):  # ValueError: also an integer beyond Python's digit limit
        raise JobFormatError([("metadata", "is not JSON")]) from None
    return parse(record)


def parse(record: Mapping[str, Any]) -> Job:
    """A job from a plain mapping. Raises JobFormatError naming every field that is wrong."""
    try:
        return Job.model_validate(record)
    except ValidationError as error:
        raise JobFormatError(
            [
                (str(one["loc"][0]) if one["loc"] else "record", _reason(one))
                for one in error.errors()
            ]
        ) from None


def _reason(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "missing":
            return MISSING
        case "extra_forbidden":
            return "is not a field of a job"
        case "string_type":
            return f"expected text, got {type(error['input']).__name__}"
        case "dict_type":
            return f"expected an object, got {type(error['input']).__name__}"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return str(error["msg"])


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, Unicode as it is; refuses NaN and infinities."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
