"""The bill of materials of an image: every locked wheel by name, version, package URL and SHA-256, in CycloneDX."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

from labrig.files import EPOCH
from labrig.lock import Lock
from labrig.spec import Target


def of_lock(target: Target, lock: Lock) -> bytes:
    """CycloneDX 1.6 in JSON; the same bytes for the same lock."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    def component(name: str, version: str, sha256: str, file: str) -> Component:
        return Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name, version),
            bom_ref=f"{name}=={version}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
            properties=[Property(name="labrig:wheel", value=file)],
        )

    image = Component(
        type=ComponentType.CONTAINER,
        name=f"labrig/{target.name}",
        version=target.torch,
        bom_ref=f"labrig/{target.name}",
    )
    made = Bom(
        components=[component(one.name, one.version, one.sha256, one.file) for one in lock.wheels],
        metadata=BomMetaData(component=image, timestamp=datetime.fromtimestamp(int(EPOCH), UTC)),
        serial_number=uuid5(NAMESPACE_URL, f"labrig:{lock.digest}"),
    )
    made.register_dependency(image, made.components)
    return make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1).encode()
