"""Labs for many: a JupyterHub on one server, and what a cluster is given; from the published images, by digest.

`settings` is serve.toml; `offers` the images that students may choose from.

On a server: `hub` brings it up and down; `proofs` looks at what can go wrong before anything starts, `logins` at who
comes in; `configuration` renders jupyterhub_config.py, which calls `inside`; `gpus` hands one GPU to a student;
`keeper` is the process that holds the proxy and the hub; `state` the folder with all that is known of them.

For a cluster: `cluster` renders; `checks` validates offline, with `chart` (keys of Zero to JupyterHub), `traits` (real
classes), `rules` (ours; between objects `claims`) over `documents` (YAML with its lines).

labrig renders and checks, and is no scheduler: engines that exist do the work.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """One image that students may choose, as the table of published images has it."""

    target: str
    reference: str  # HOST/NAME@sha256:DIGEST, what a cluster pulls
    config: str  # digest of its config; an engine knows the image by this or by the digest of ``reference``
    image: str  # what an engine calls it once it is pulled
    size: int  # bytes to pull, compressed
    platform: str  # "linux_x86_64"
    torch: str
    device: str  # "cpu" or "cuda"
    variant: str
    min_driver: str  # "580.65.06"; empty where none is needed
    capabilities: tuple[str, ...]  # of GPUs that it has code for, "7.5"
    hub: str  # the version of jupyterhub in its lock; empty: none, so that no hub can start it
    why: str  # what students read below the title

    @property
    def title(self) -> str:
        """``cpu: torch 2.13.0``, what students read."""
        return f"{self.target}: torch {self.torch}" + (f" ({self.variant})" if self.device == "cuda" else "")
