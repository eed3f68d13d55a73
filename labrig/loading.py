"""Handing an image to a Docker engine: the stream that `docker load` reads, without what the engine has already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from labrig import daemon, oci
from labrig.errors import BuildError, Interrupted
from labrig.oci import Image
from labrig.progress import Progress, megabytes

if TYPE_CHECKING:
    from docker import DockerClient

TIMEOUT = 1800  # seconds between two answers: an engine is silent while it unpacks a large layer


def load(client: DockerClient, made: Image, reference: str, complete: Callable[[], None] = lambda: None) -> None:
    """Load an image under a name. Layers that the engine is known to have are not sent, and need not be in the store;
    ``complete`` brings them there where the engine turns out not to have them.

    Raises:
        BuildError: the engine refused it, or its disk is full; it has no image of that name then.
        Interrupted: Ctrl-C.
    """
    without = present(client, made)
    try:
        _send(client, made, reference, without)
    except BuildError:
        if not without:
            raise
        # An image that had these layers may have been removed since.
        print("the engine did not take it without the layers that it had; sending all", file=sys.stderr)
        complete()
        _send(client, made, reference, 0)


def present(client: DockerClient, made: Image) -> int:
    """How many of the lowest layers the engine has, as part of any image.

    An engine with a store of layers has a layer if it has all below it, too. One with containerd's store is asked
    nothing: it needs the blobs, which it may have dropped when it unpacked them.
    """
    if any("io.containerd.snapshotter" in str(value) for _, value in client.info().get("DriverStatus") or ()):
        return 0
    wanted = [layer.diff_id for layer in made.layers]
    best = 0
    for one in client.images.list(all=True):
        there = (one.attrs.get("RootFS") or {}).get("Layers") or []
        same = 0
        while same < min(len(there), len(wanted)) and there[same] == wanted[same]:
            same += 1
        best = max(best, same)
    return best


def _send(client: DockerClient, made: Image, reference: str, without: int) -> None:
    from docker.errors import ImageLoadError

    todo = made.layers[without:]
    total = sum(layer.size for layer in todo)
    has = f", {without} there already" if without else ""
    print(f"loading {reference}: {len(todo)} layers, {megabytes(total)}{has}", file=sys.stderr, flush=True)
    before, client.api.timeout = client.api.timeout, TIMEOUT
    try:
        with Progress("load") as progress:
            progress.start(total)

            def pieces() -> Iterator[bytes]:
                for piece in oci.archive(made, [reference], without=without):
                    yield piece
                    progress.advance(len(piece))
                progress.say("load: all is sent, the engine unpacks it")

            client.images.load(pieces())  # type: ignore[arg-type]  # requests takes an iterator, too
    except ImageLoadError as error:
        text = " ".join(str(error).split())
        raise (
            daemon.full(text)
            if daemon.is_full(text)
            else BuildError(f"the engine refused {reference}", found=text, fix="look at the engine's log, run it again")
        ) from None
    except KeyboardInterrupt:
        raise Interrupted("loading was interrupted; the layers are kept", fix="run it again") from None
    finally:
        client.api.timeout = before
