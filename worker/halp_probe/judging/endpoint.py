"""`ask_endpoint`: a language model as the judge, behind any OpenAI-compatible endpoint.

Knows `/chat/completions` and how it fails; refuses to know which provider it is. The model sees the
texts, never the image. Each verdict is on the disk before the next is asked for by the same thread.

Not guaranteed: that the same question gets the same verdict from a model twice, also at
temperature 0.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from halp_probe.errors import ProbeError
from halp_probe.judging.judges import not_answered
from halp_probe.judging.kinds import kind_of
from halp_probe.judging.normalise import truth_of
from halp_probe.judging.prompt import PROMPT, check_prompt, filled, label_of, shortened
from halp_probe.judging.unfinished import (
    Unfinished,
    forget,
    opened_unfinished,
    unfinished_file,
)
from halp_probe.judging.verdict import Kind, Label, Question, Verdict

if TYPE_CHECKING:
    import requests

    from halp_store.view import View

__all__ = ["Asked", "EndpointSettings", "ask_endpoint", "forget", "unfinished_path"]

KEY_VARIABLE: Final = "HALP_JUDGE_KEY"
_TRIES: Final = 6
"""With the pauses between them about a minute: a server that restarts, a limit per minute."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes that a later try may not meet."""
_OK: Final = 200


class EndpointFailed(ProbeError):  # noqa: N818 - named for what it says
    """The endpoint did not answer, or not as one. What it judged before is kept."""


@dataclass(frozen=True)
class EndpointSettings:
    """url: up to and without `/chat/completions`. prompt: see `halp_probe.judging.prompt`.

    concurrency: requests at once. allow_http: to hosts that are not this machine. timeout_s: for
    one reply. pause_s: before the second try, doubled for each further one.
    """

    url: str
    model: str
    prompt: str = PROMPT
    concurrency: int = 4
    allow_http: bool = False
    timeout_s: float = 120.0
    pause_s: float = _FIRST_PAUSE_S

    def check(self) -> None:
        """Raises ProbeError. What may hold a password is not repeated."""
        parts = _parts(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ProbeError("--endpoint: expected https://HOST/v1 or http://127.0.0.1:PORT/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ProbeError(
                "--endpoint: expected no user, password, query or fragment in it (not shown here); "
                f"the key comes from the environment: {KEY_VARIABLE}"
            )
        if parts.scheme == "http" and not (self.allow_http or is_loopback(parts.hostname)):
            raise ProbeError(
                f"--endpoint: http://{parts.hostname} would send the key and the texts in the "
                "open: use https, or --allow-http in a network that you trust"
            )
        if not self.model.strip():
            raise ProbeError("--judge-model: expected the model's name, got nothing")
        if self.concurrency < 1:
            raise ProbeError(f"--concurrency: expected at least 1, got {self.concurrency}")
        check_prompt(self.prompt, "--prompt")


@dataclass(frozen=True)
class Asked:
    """verdicts: of all questions, in their order. about: JSON object for the table's options."""

    verdicts: Mapping[str, Verdict]
    about: Mapping[str, Any]


def unfinished_path(folder: Path, judge: str, settings: EndpointSettings, store: View) -> Path:
    """Where the verdicts of a run that is not over are. folder: of the label tables."""
    identity = {
        "url": settings.url.rstrip("/"),
        "model": settings.model,
        "prompt": settings.prompt,
        "store": store.path,
        "fingerprint": dict(store.layout.fingerprint),
    }
    return unfinished_file(folder, judge, identity)


def ask_endpoint(
    questions: Sequence[Question],
    settings: EndpointSettings,
    unfinished: Path,
    told: Callable[[int, int], None] | None = None,
) -> Asked:
    """Asks about each question that is not in `unfinished` yet; that is left for the caller to
    `forget` once the table is written.

    told: is called with (verdicts so far, questions), from several threads, one at a time. Not
    asked: questions without truth, and those that were not answered. Raises EndpointFailed,
    ProbeError or OSError.
    """
    settings.check()
    with opened_unfinished(unfinished) as kept:
        run = _Run(settings, kept, len(questions), told)
        try:
            run.over(questions)
        except EndpointFailed as error:
            raise EndpointFailed(
                f"{error}\n{run.done:,} of {len(questions):,} verdicts are kept beside the label "
                "tables: the same command again asks only about the others"
            ) from None
    served = Counter(served for _, served in run.found.values() if served)
    about = {
        "endpoint": settings.url.rstrip("/"),
        "model": settings.model,
        "served_by": dict(served.most_common()),
        "temperature": 0,
        "prompt": settings.prompt,
    }
    return Asked({one.question_id: run.found[one.question_id][0] for one in questions}, about)


class _Run:
    """found: question id -> (verdict, the model's own name; empty where it was not asked)."""

    def __init__(
        self,
        settings: EndpointSettings,
        kept: Unfinished,
        total: int,
        told: Callable[[int, int], None] | None,
    ) -> None:
        self._settings, self._kept, self._total, self._told = settings, kept, total, told
        self.found: dict[str, tuple[Verdict, str]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._local = threading.local()
        self._key = os.environ.get(KEY_VARIABLE, "").strip()

    @property
    def done(self) -> int:
        return len(self.found)

    def over(self, questions: Sequence[Question]) -> None:
        """Returns when all are judged; what one thread raises stops the others."""
        left = []
        for one in questions:
            if known := _without_asking(one) or self._kept.get(one):
                self._note(one, known)
            else:
                left.append(one)
        waiting = iter(left)
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            workers = [
                threads.submit(self._work, waiting) for _ in range(self._settings.concurrency)
            ]
            try:
                done, _ = wait(workers, return_when=FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
            finally:
                self._stop.set()

    def _work(self, waiting: Any) -> None:
        while not self._stop.is_set():
            with self._lock:
                question = next(waiting, None)
            if question is None:
                return
            verdict, served = self._judge(question)
            self._kept.add(question, verdict, served)
            self._note(question, (verdict, served))

    def _note(self, question: Question, found: tuple[Verdict, str]) -> None:
        with self._lock:
            self.found[question.question_id] = found
            if self._told:
                self._told(len(self.found), self._total)

    def _judge(self, question: Question) -> tuple[Verdict, str]:
        reply, served = self._ask(filled(self._settings.prompt, question))
        label, rule, note = label_of(None if reply is None else self._hidden(reply))
        return Verdict(label, rule, _kind(question), note), self._hidden(served)

    def _ask(self, prompt: str) -> tuple[str | None, str]:
        """(reply, model's name), after as many tries as it takes."""
        said = ""
        for number in range(_TRIES):
            reply, said, pause_s = self._try(prompt)
            if reply is not None:
                return reply
            longest = min(self._settings.pause_s * 2**number, _LONGEST_PAUSE_S)
            is_last = number == _TRIES - 1
            if not is_last and self._stop.wait(min(max(longest, pause_s), _LONGEST_PAUSE_S)):
                break
        raise EndpointFailed(f"{self._settings.url}: gave no verdict in {_TRIES} tries: {said}")

    def _try(self, prompt: str) -> tuple[tuple[str | None, str] | None, str, float]:
        """(reply and model, or None; what went wrong; seconds that the server wants to be left
        alone). Raises EndpointFailed where a further try is of no use."""
        import requests

        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        try:
            response = self._session().post(
                f"{self._settings.url.rstrip('/')}/chat/completions",
                json=body,
                timeout=self._settings.timeout_s,
                allow_redirects=False,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            return None, self._hidden(f"{type(error).__name__}: {error}"), 0.0
        except (requests.RequestException, ValueError) as error:
            # Such as a key that is no header: the message of that repeats the key.
            raise EndpointFailed(
                f"{self._settings.url}: cannot be asked: {self._hidden(type(error).__name__)}"
            ) from None
        status = f"status {response.status_code}: {self._hidden(shortened(response.text))}"
        if response.status_code in _AGAIN:
            return None, status, _seconds(response.headers.get("Retry-After", ""))
        if response.status_code != _OK:
            raise EndpointFailed(f"{self._settings.url}: {status}{_hint(response.status_code)}")
        try:
            whole = response.json()
            content = whole["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return None, f"is no chat completion: {self._hidden(shortened(response.text))}", 0.0
        served = whole.get("model")
        text = content if isinstance(content, str) else None
        return (text, served if isinstance(served, str) else ""), "", 0.0

    def _session(self) -> requests.Session:
        """One for each thread, as they are not made for several."""
        import requests

        if (session := getattr(self._local, "session", None)) is None:
            session = self._local.session = requests.Session()
            session.trust_env = not is_loopback(urlsplit(self._settings.url).hostname or "")
            session.auth = self._sign
        found: requests.Session = session
        return found

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """In place of a header of the session, which an entry of .netrc would replace."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _hidden(self, text: str) -> str:
        """Servers repeat a key that they do not know."""
        return text.replace(self._key, "***") if self._key else text


def _parts(url: str) -> SplitResult:
    """Of nothing where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def is_loopback(host: str) -> bool:
    """Whether it is this machine, whatever a name server says."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_asking(question: Question) -> tuple[Verdict, str] | None:
    if without := not_answered(question):
        return Verdict(*without, _kind(question)), ""
    if _kind(question) is Kind.NONE:
        return Verdict(Label.UNJUDGED, "no truth", Kind.NONE), ""
    if not question.answer.strip():
        return Verdict(Label.UNJUDGED, "no answer", _kind(question)), ""
    return None


def _kind(question: Question) -> Kind:
    return kind_of(question.question, truth_of(question.ground_truth))


def _seconds(retry_after: str) -> float:
    """A date there is one wait like any other."""
    return float(retry_after) if retry_after.strip().isdecimal() else 0.0


def _hint(status: int) -> str:
    if status in {401, 403}:
        return f"; the key is read from the environment: {KEY_VARIABLE}"
    if 300 <= status < 400:
        return "; it points elsewhere: give that address"
    return ""
