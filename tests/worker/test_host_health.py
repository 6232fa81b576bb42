"""Whether a job or this host is to blame for an image that cannot be read."""

from __future__ import annotations

import pytest

from halp_worker.batcher import Taken
from halp_worker.delivery import row_key
from halp_worker.fates import HostPart, Reason, Rejected, Rejection, Retryable
from halp_worker.host_health import HOST_FAULTS, HostHealth, part_of, place_of
from halp_worker.model.images import ImageReader

from .conftest import make_job


def fault(number, part=HostPart.IMAGES):
    return row_key(make_job(number)), Rejection(Reason.IMAGE_MISSING, f"no {number}", "", part)


def faults(*numbers):
    return Taken(None, tuple(fault(number) for number in numbers))


def readable(job):
    return job


def unreadable(job):
    raise Rejected(Reason.IMAGE_MISSING, "gone")


def test_a_fault_is_certain_once_another_image_was_read():
    """Before or after it, in the same breath or later."""
    host = HostHealth(readable)
    first, second, third = (fault(number) for number in range(3))
    assert host.judge(Taken(None, (first,))) == []
    assert len(host) == 1
    taken = Taken(None, (second, third), ((make_job(9), 1),))
    assert host.judge(taken) == [first, second]
    assert host.judge_held() == [third]
    assert len(host) == 0


def test_the_jobs_own_faults_are_certain_at_once():
    """They say nothing of the host."""
    host = HostHealth(readable)
    own = [fault(number, None) for number in range(2 * HOST_FAULTS)]
    assert host.judge(Taken(None, tuple(own))) == own
    assert host.broken is None


def test_a_host_that_reads_nothing_is_broken():
    """The fates are held to the end; the sentence has the last one and what to look at."""
    host = HostHealth(unreadable)
    assert host.judge(faults(*range(HOST_FAULTS - 1))) == []
    assert host.broken is None
    assert host.judge(faults(77)) == []
    assert f"{HOST_FAULTS} jobs" in str(host.broken)
    assert "no 77" in str(host.broken)
    assert "--image-root" in str(host.broken)
    assert len(host.drain()) == HOST_FAULTS


def test_one_job_again_and_again_breaks_no_host():
    """It is counted once."""
    host = HostHealth(unreadable)
    for _ in range(3 * HOST_FAULTS):
        host.judge(faults(1))
        host.judge_held()
    assert host.broken is None


@pytest.mark.parametrize("is_there", [True, False])
def test_a_host_that_has_read_images_looks_whether_it_still_can(is_there):
    """If so, a whole folder is missing, and that is the jobs' fault."""
    host = HostHealth(readable if is_there else unreadable)
    host.judge(Taken(None, (), ((make_job(0), 0),)))
    certain = host.judge(faults(*range(1, HOST_FAULTS + 1)))
    assert len(certain) == (HOST_FAULTS if is_there else 0)
    assert (host.broken is None) == is_there


def test_images_of_one_kind_say_nothing_of_the_other():
    """Files can be read where no URL can, and an image inside its job proves neither."""
    assert part_of(make_job(1)) is HostPart.IMAGES
    assert part_of(make_job(1, image="https://x.org/a.png")) is HostPart.NETWORK
    assert part_of(make_job(1, image_data=b"bytes")) is None
    host = HostHealth(readable)
    urls = tuple(fault(number, HostPart.NETWORK) for number in range(HOST_FAULTS))
    inline = make_job(2, image_data=b"bytes")
    assert host.judge(Taken(None, urls, ((make_job(1), 0), (inline, len(urls))))) == []
    assert "--allow-urls" in str(host.broken)


def test_a_place_is_a_host_with_what_it_can_read(tmp_path):
    """Another root, another mount of it, another answer to URLs: another place."""
    here = place_of(tmp_path, allow_urls=False)
    assert here == place_of(tmp_path, allow_urls=False)
    gone = tmp_path / "gone"
    places = {here, place_of(tmp_path, allow_urls=True), place_of(gone, allow_urls=False)}
    gone.mkdir()
    places.add(place_of(gone, allow_urls=False))
    assert len(places) == 4
    assert not any(character.isspace() for place in places for character in place)


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ("none.png", HostPart.IMAGES),
        ("../outside.png", None),
        ("text.png", None),
        ("http://127.0.0.1:9/a.png", HostPart.NETWORK),
        ("http://no-such-host.invalid/a.png", HostPart.NETWORK),
        ("http:///a.png", None),
    ],
)
def test_whose_fault_it_is_that_an_image_cannot_be_read(tmp_path, image, part):
    """What another host may be able to read is this host's."""
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises((Rejected, Retryable)) as raised:
        ImageReader(tmp_path, allow_urls=True).read(image)
    fate = getattr(raised.value, "rejection", None) or raised.value.setback
    assert fate.host_part is part


def test_missing_permission_a_missing_root_and_a_setting_are_the_hosts(tmp_path, monkeypatch):
    """Whatever reason they have."""

    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(Retryable) as gone:
        ImageReader(tmp_path / "gone").read("a.png")
    assert gone.value.setback.host_part is HostPart.IMAGES
    with pytest.raises(Rejected) as url:
        ImageReader(tmp_path).read("http://127.0.0.1:9/a.png")
    assert url.value.rejection.host_part is HostPart.NETWORK
    monkeypatch.setattr("os.open", refused)
    with pytest.raises(Rejected) as denied:
        ImageReader(tmp_path).read("a.png")
    assert denied.value.rejection.host_part is HostPart.IMAGES
    assert denied.value.rejection.reason is Reason.IMAGE_UNREADABLE
